"""A real server in a process of its own, started once for all tests that need one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ringfence import Client
from ringfence.cli.daemon import Daemon
from ringfence.config import read_server
from ringfence.store.sqlite import KeyRing

TEMPLATES = os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates")


@dataclass(frozen=True, slots=True)
class Served:
    """Where the server is, and a key of a tenant that nobody else uses."""

    url: str
    key: str
    state: Path

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of a user of this server."""
        return {**os.environ, "RINGFENCE_URL": self.url, "RINGFENCE_KEY": self.key, "RINGFENCE_STATE": str(self.state)}

    def client(self) -> Client:
        """A client of it."""
        return Client(self.url, self.key, timeout=60)

    def run(self, *words: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run `ringfence` as a user would, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "ringfence", *words],
            env={**self.env, **env}, input=stdin or b"", capture_output=True, timeout=250, check=False,
        )  # fmt: skip


def free_port() -> int:
    """A port nobody listens on, nor on the one a thousand above it, which is its edge's.

    Below those that the kernel gives to connections: of these tests make thousands while a server starts.
    """
    while True:
        port = random.SystemRandom().randrange(11_000, 31_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1000))
            return port


@functools.cache
def served() -> Served:
    """The one server of this test session; stopped when the session ends."""
    state = Path(tempfile.mkdtemp(prefix="ringfence-test-"))
    state.chmod(0o755)
    settings = read_server(state=str(state), templates=TEMPLATES, port=free_port())
    daemon = Daemon(settings)
    atexit.register(shutil.rmtree, state, ignore_errors=True)
    atexit.register(daemon.stop)
    os.environ["RINGFENCE_WAIT_SECONDS"] = "60"  # for its process: containers start slowly where much else is tested
    try:
        url, _ = daemon.ensure()
    finally:
        del os.environ["RINGFENCE_WAIT_SECONDS"]
    return Served(url, key(settings.database), state)


def key(database: Path, tenant: str = "acceptance") -> str:
    """A new key for a tenant."""
    ring = KeyRing(database)
    secret, _ = ring.add(tenant)
    ring.close()
    return secret
