"""A server with E2B's face in a development domain, keys in E2B's spelling, and the names that domain mode needs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from ringfence.store.base import e2b_spelling
from tests.e2b import sdks
from tests.support.served import TEMPLATES, free_port, key

DOMAIN = "sbx.test"
# A resolver of one's own for one program: some clients look at no file but this one, and at no port but 53.
WITH_NAMES = ["unshare", "--mount", "--", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']


@dataclass(frozen=True)
class Served:
    """Where it is, and how a client is pointed at it."""

    url: str
    port: int
    key: str
    other_key: str
    edge_port: int
    state: Path
    nameserver: str

    def env(self, *, domain: bool) -> dict[str, str]:
        """The environment of a user's program: nothing else of E2B's is set."""
        base = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "PYTHON"))}
        if domain:
            place = self.state / "dev" / DOMAIN
            trust = {"SSL_CERT_FILE": str(place / "bundle.crt"), "NODE_EXTRA_CA_CERTS": str(place / "ca.crt")}
            return {**base, "E2B_API_KEY": self.key, "E2B_DOMAIN": f"{DOMAIN}:{self.edge_port}", **trust}
        return {**base, "E2B_API_KEY": self.key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}

    def words(self, *, domain: bool) -> list[str]:
        """What stands before a program's own words, so that it finds the domain's names."""
        return [*WITH_NAMES, str(self.state / "resolv.conf")] if domain else []

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """An HTTP client of the control plane."""
        sent = {"X-API-Key": key or self.key, **headers}
        return httpx.Client(base_url=self.url, headers=sent, timeout=60, trust_env=False)

    def need(self, template: str = "base") -> None:
        """Its sandboxes can be made. Where this host lacks what isolates them that is a skip, and a failure in CI."""
        with self.client() as client:
            deadline = time.monotonic() + 60
            while True:
                seen = client.post("/v2/sandboxes", json={"templateID": template, "timeout": 60})
                if seen.status_code != 503 or time.monotonic() > deadline:  # the first of a template may take a while
                    break
            if seen.status_code == 400 and seen.json()["message"].startswith("no "):
                sdks.absent(seen.json()["message"])
            assert seen.status_code == 201, seen.text
            client.delete(f"/sandboxes/{seen.json()['sandboxID']}").raise_for_status()


@contextlib.contextmanager
def serving(settings: str = "") -> Iterator[Served]:
    """A server of one's own, with these further settings."""
    state = Path(tempfile.mkdtemp(prefix="ringfence-e2b-"))
    state.chmod(0o755)
    config, edge_port = state / "server.toml", free_port()
    config.write_text(f"wait_seconds = 60\n[edge]\nport = {edge_port}\n{settings}")
    nameserver = f"127.53.{edge_port >> 8}.{edge_port & 0xFF}"  # nobody else asks there
    (state / "resolv.conf").write_text(f"nameserver {nameserver}\n")
    words = ["--state", str(state), "--templates", TEMPLATES, "--port", str(free_port()), "--config", str(config)]
    with (state / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ringfence", "serve", *words, "--dev-domain", DOMAIN],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url = _url(child)
        assert url, (state / "log").read_text()
        database = state / "api" / "ringfence.db"
        keys = [e2b_spelling(key(database, tenant)) for tenant in ("ada", "bob")]
        yield Served(url, int(url.rpartition(":")[2]), *keys, edge_port, state, nameserver)
    finally:
        child.terminate()
        child.communicate(timeout=90)
        shutil.rmtree(state, ignore_errors=True)


def _url(child: subprocess.Popen[bytes]) -> str:
    """Where it says that it serves; nothing when it says nothing in time."""
    assert child.stdout is not None
    said, deadline = b"", time.monotonic() + 90
    while time.monotonic() < deadline and b"\n" not in said:
        if select.select([child.stdout], [], [], 0.5)[0]:
            piece = os.read(child.stdout.fileno(), 4096)
            if not piece:
                break
            said += piece
    found = re.search(rb"http://\S+", said)
    return found[0].decode() if found else ""


@contextlib.contextmanager
def named(server: Served) -> Iterator[None]:
    """While it lasts, names of the domain are known to who asks the server's own name server."""
    child = subprocess.Popen(
        [sys.executable, "-m", "ringfence", "hosts", "--domain", DOMAIN, "--dns", f"{server.nameserver}:53"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _await_names(child, server.nameserver)
        yield
    finally:
        child.terminate()
        child.wait(60)


def _await_names(child: subprocess.Popen[bytes], nameserver: str) -> None:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in f"api.{DOMAIN}".split("."))
    question = b"\1\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    deadline = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.2)
        while time.monotonic() < deadline and child.poll() is None:
            with contextlib.suppress(OSError):
                asking.sendto(question, (nameserver, 53))
                if asking.recv(512):
                    return
            time.sleep(0.05)
    raise AssertionError("the name server does not answer")


def api_of(server: Served) -> int:
    """The pid of the process that listens."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            words = _words(place)
            if b"ringfence.api" in words and _parents_state(words, server):
                return int(place.name)
    raise AssertionError("there is no api")


def _words(place: Path) -> list[bytes]:
    try:
        return (place / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _parents_state(words: list[bytes], server: Served) -> bool:
    parent = words[words.index(b"--parent") + 1].decode() if b"--parent" in words else "0"
    return str(server.state).encode() in _words(Path("/proc") / parent)
