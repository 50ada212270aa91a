"""A server with E2B's face, its key in E2B's spelling, and the TLS that domain mode needs."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from ringfence.store.base import e2b_spelling
from tests.e2b.tlsfront import TlsFront, certificate
from tests.support.served import TEMPLATES, key

DOMAIN = "sbx.test"


@dataclass(frozen=True)
class Served:
    """Where it is, and how a client is pointed at it."""

    url: str
    port: int
    key: str
    other_key: str
    cert: Path
    tls_port: int
    pid: int
    state: Path

    def env(self, *, domain: bool) -> dict[str, str]:
        """The environment of a user's program: nothing else of E2B's is set."""
        base = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "PYTHON"))}
        if domain:
            trust = {"SSL_CERT_FILE": str(self.cert), "NODE_EXTRA_CA_CERTS": str(self.cert)}
            return {**base, "E2B_API_KEY": self.key, "E2B_DOMAIN": f"{DOMAIN}:{self.tls_port}", **trust}
        return {**base, "E2B_API_KEY": self.key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """An HTTP client of the control plane."""
        sent = {"X-API-Key": key or self.key, **headers}
        return httpx.Client(base_url=self.url, headers=sent, timeout=20, trust_env=False)


@contextlib.contextmanager
def serving(settings: str = "") -> Iterator[Served]:
    """A server of one's own, with these further settings."""
    state = Path(tempfile.mkdtemp(prefix="ringfence-e2b-"))
    state.chmod(0o755)
    config = state / "server.toml"
    config.write_text(f'[edge]\ndomain = "{DOMAIN}"\n{settings}')
    ready_in, ready_out = os.pipe()
    words = ["--state", str(state), "--templates", TEMPLATES, "--port", "0", "--config", str(config)]
    with (state / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ringfence.serve", *words, "--ready-fd", str(ready_out)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[ready_out], start_new_session=True,
        )  # fmt: skip
    os.close(ready_out)
    try:
        woken, _, _ = select.select([ready_in], [], [], 40)
        url = os.read(ready_in, 1000).decode().strip() if woken else ""
        assert url, (state / "log").read_text()
        port = int(url.rpartition(":")[2])
        cert, tls_key = certificate(state, DOMAIN)
        front = TlsFront(cert, tls_key, ("127.0.0.1", port))
        database = state / "api" / "ringfence.db"
        keys = [e2b_spelling(key(database, tenant)) for tenant in ("ada", "bob")]
        try:
            yield Served(url, port, keys[0], keys[1], cert, front.port, child.pid, state)
        finally:
            front.close()
    finally:
        os.close(ready_in)
        child.terminate()
        child.wait(40)
        shutil.rmtree(state, ignore_errors=True)
