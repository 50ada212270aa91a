"""A server for one round of attacks: started on a fresh state directory, stopped and removed afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ringfence.client import Client
from ringfence.domain.errors import PlatformFault, RingfenceError

START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 60.0
TENANT: Final = "attacker"


def free_port() -> int:
    """A port nobody listens on just now, below those that the kernel gives to connections while a server starts."""
    while True:
        port = random.SystemRandom().randrange(11_000, 31_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class OwnServer:
    """`ringfence serve` as a process of our own, with a key. Use it in a `with`."""

    def __init__(self, templates: Path, env: Mapping[str, str] | None = None) -> None:
        """`env` is added to the server's environment: the place for canaries."""
        self._templates = templates
        self._env = dict(env or {})
        self.state = Path()
        self.url = ""
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.state = Path(tempfile.mkdtemp(prefix="ringfence-own-"))
        self.state.chmod(0o755)  # the api drops to a uid that must be able to walk through
        try:
            self._start()
            self.key = self.new_key(TENANT)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def log(self) -> Path:
        """Everything the server said."""
        return self.state / "serve.log"

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
        waits = {"RINGFENCE_WAIT_SECONDS": "60"}  # a probe that found no room on a busy machine would tell nothing
        return {**kept, **waits, **self._env, "RINGFENCE_TEMPLATES": str(self._templates)}

    def _start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = ["serve", "--state", str(self.state), "--host", "127.0.0.1", "--port", str(port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ringfence", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise PlatformFault(
                    f"the server did not start: {'; '.join(said[-2:])[-500:]}",
                    code="not_started",
                    remediation="look at `ringfence doctor`",
                )
            time.sleep(0.05)

    def restart(self) -> None:
        """Start again on the same state directory, after the server was killed."""
        self._start()

    def _answers(self) -> bool:
        try:
            with Client(self.url, "", timeout=2.0) as client:
                client.health()
        except RingfenceError:
            return False
        return True

    def new_key(self, tenant: str) -> str:
        """A key of this tenant's, made as an operator would."""
        done = subprocess.run(
            [sys.executable, "-m", "ringfence", "keys", "create", "--tenant", tenant, "--state", str(self.state)],
            capture_output=True, text=True, env=self._environment(), check=False, timeout=60,
        )  # fmt: skip
        key = done.stdout.strip()
        if done.returncode or not key.startswith("rf_"):
            raise PlatformFault(f"no key could be made: {done.stderr.strip()[-300:]}", code="no_key")
        return key

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        shutil.rmtree(self.state, ignore_errors=True)
