"""`ringfence serve --detach`: the server in the background is the one that was asked for."""

from __future__ import annotations

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


def ringfence(folder: str, *words: str) -> None:
    """A command, in this folder."""
    done = subprocess.run(
        [sys.executable, "-m", "ringfence", *words],
        cwd=folder, env={**os.environ, "RINGFENCE_TEMPLATES": TEMPLATES}, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
