"""A server of this machine, found, started in the background and stopped through one file in its state directory.

The file names a process by its pid and its start time, so that a pid used again by something else is never mistaken
for the server, and never signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ringfence.client import Client, DeadlineExceeded, Unreachable
from ringfence.config import ServerSettings
from ringfence.domain.errors import Conflict, NotFound, PlatformFault, RingfenceError

START_SECONDS: Final = 90.0  # the server itself gives its parts a minute
STOP_SECONDS: Final = 60.0  # the server itself gives its node half a minute, after the api
POLL_SECONDS: Final = 0.05
LOG_TAIL: Final = 2000


class Record(msgspec.Struct, frozen=True):
    """What the file says."""

    pid: int
    started: int
    url: str


@dataclass(frozen=True, slots=True)
class Daemon:
    """The server of one state directory."""

    settings: ServerSettings
    config: str | None = None  # the settings file that was named, if one was

    @property
    def file(self) -> Path:
        """Where it is written down."""
        return self.settings.state_dir / "serve.json"

    @property
    def log(self) -> Path:
        """Where it writes what it has to say."""
        return self.settings.state_dir / "serve.log"

    @property
    def url(self) -> str:
        """Where it listens."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)  # noqa: S104 - compared
        return f"http://{host}:{self.settings.port}"

    def running(self) -> Record | None:
        """What is written down of a server that still lives, or None."""
        try:
            record = msgspec.json.decode(self.file.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None
        return record if _started(record.pid) == record.started else None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Write this process down as the server of its state directory, while the `with` lasts."""
        record = Record(os.getpid(), _started(os.getpid()) or 0, self.url)
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        if self.running() is None:
            self.file.write_bytes(msgspec.json.encode(record))
        try:
            yield
        finally:
            if self.running() == record:
                self.file.unlink(missing_ok=True)

    def ensure(self) -> tuple[str, bool]:
        """Return where a server of this state directory answers, and whether it had to be started for that."""
        record = self.running()
        if record is not None:
            self._wait(record.url, None)
            return record.url, False
        if _answers(self.url):
            hint = f"stop it, or choose another port: --port {self.settings.port + 1}"
            raise Conflict(f"something else already listens at {self.url}", remediation=hint)
        self._start()
        return self.url, True

    def stop(self) -> int:
        """Stop the server and return the pid it had. Raises NotFound when none of this state directory runs."""
        record = self.running()
        if record is None:
            raise NotFound(f"no server of {self.settings.state_dir} is running")
        os.kill(record.pid, signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while _started(record.pid) == record.started:
            if time.monotonic() > until:
                raise PlatformFault(f"the server (pid {record.pid}) did not stop within {STOP_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        return record.pid

    def _start(self) -> None:
        settings = self.settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        places = ["--state", str(settings.state_dir), "--templates", str(settings.templates_dir)]
        words = ["serve", *places, "--host", settings.host, "--port", str(settings.port)]
        words += ["--dev-domain", settings.dev_domain] if settings.dev_domain else []
        words += ["--config", os.path.abspath(self.config)] if self.config else []
        with self.log.open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ringfence", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(self.url, child)
        except BaseException:
            child.terminate()
            child.wait(STOP_SECONDS)
            raise

    def _wait(self, url: str, child: subprocess.Popen[bytes] | None) -> None:
        until = time.monotonic() + START_SECONDS
        while not _answers(url, slowly=False):
            ended = child is not None and child.poll() is not None
            if ended or time.monotonic() > until:
                what = "ended while it started" if ended else f"does not answer at {url}"
                hint = f"look at {self.log}, and at `ringfence doctor`"
                raise PlatformFault(f"the server {what}: {self._last_words()}", code="not_started", remediation=hint)
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace")[-LOG_TAIL:].strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


def with_port(settings: ServerSettings) -> ServerSettings:
    """The same with a port that is free, where any was asked for: what is written down must find the server again.

    Raises PlatformFault when nothing can listen there.
    """
    if settings.port:
        return settings
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.create_server((settings.host, 0), family=family) as listener:
            return msgspec.structs.replace(settings, port=listener.getsockname()[1])
    except OSError as error:
        cause = f"nothing can listen at {settings.host}: {error.strerror or error}"
        raise PlatformFault(cause, code="cannot_listen", remediation="choose another --host") from None


def _answers(url: str, *, slowly: bool = True) -> bool:
    """Whether somebody is there; `slowly` also one who takes a connection and says nothing in time."""
    try:
        with Client(url, "", timeout=2.0) as client:
            client.health()
    except Unreachable:
        return False
    except DeadlineExceeded:
        return slowly
    except RingfenceError:
        return True  # whoever it is, the port is taken
    return True


def _started(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks since boot; None when it is gone or only awaits burial."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
