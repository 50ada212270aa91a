"""`ringfence serve --detach`: the server in the background is the one that was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from tests.support.served import TEMPLATES, free_port


def test_a_detached_server_reads_the_settings_file_that_was_named() -> None:
    """A name that only this file allows is answered to; --stop finds the server and ends it."""
    with tempfile.TemporaryDirectory(prefix="ringfence-serve-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "server.toml").write_text('allowed_hosts = ["sandboxes.example"]\n')
        port = free_port()
        try:
            ringfence(folder, "serve", "--detach", "--config", "server.toml", "--state", "state", "--port", str(port))
            answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": "sandboxes.example"}, timeout=60)
            assert answer.status_code == 200, answer.text
            other = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": "others.example"}, timeout=60)
            assert other.status_code == 421
        finally:
            ringfence(folder, "serve", "--stop", "--state", "state")
        assert not (Path(folder) / "state/serve.json").exists()


def test_any_free_port_is_found_again() -> None:
    """Asked for port 0, it says which one it took, and every later command knows that."""
    with tempfile.TemporaryDirectory(prefix="ringfence-serve-") as folder:
        Path(folder).chmod(0o755)
        words = ["--detach", "--json", "--state", "state", "--port", "0"]
        try:
            first = json.loads(ringfence(folder, "serve", *words))
            assert first["started"] is True
            assert httpx.get(f"{first['url']}/health", timeout=60).status_code == 200
            assert json.loads(ringfence(folder, "serve", *words)) == {"url": first["url"], "started": False}
        finally:
            ringfence(folder, "serve", "--stop", "--state", "state")


def ringfence(folder: str, *words: str) -> str:
    """A command, in this folder; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ringfence", *words],
        cwd=folder, env={**os.environ, "RINGFENCE_TEMPLATES": TEMPLATES}, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
