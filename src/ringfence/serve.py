"""The composition root: one small parent that starts the node and the api, and starts again whichever dies.

It holds the listening socket, so a restarted api loses no connection that waits for it, and the lock on the state
directory, so that no two servers share one. It serves nothing itself.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final, Self

import msgspec

from ringfence.api.privileges import api_ids, die_with
from ringfence.config import ServerSettings, Settings, read_server
from ringfence.domain.errors import Conflict, PlatformFault, RingfenceError
from ringfence.edge import developing, listening
from ringfence.edge.certificates import Channel, Watched
from ringfence.store.sqlite import KeyRing

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
STEADY_SECONDS: Final = 10.0  # a child that lived this long starts again at once
GIVE_UP_AFTER: Final = 3  # deaths of one child before the server was ever ready
NODE_STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 60.0


class Child:
    """One of the two processes: how it is started, when it last was, how often it died."""

    def __init__(self, name: str, words: list[str], fds: tuple[int, ...] = ()) -> None:
        self.name = name
        self.deaths = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._words = words
        self._fds = fds
        self._began = 0.0
        self._due = 0.0
        self._pause = FIRST_PAUSE

    def start(self, extra: list[str] | None = None, fds: tuple[int, ...] = ()) -> None:
        """Start it now, in a session of its own: a Ctrl-C at the terminal is ours alone to hear."""
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self._words, *(extra or [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(*self._fds, *fds),
            start_new_session=True,
        )

    def died(self) -> bool:
        """True once, when it has ended since the last look; its restart is then due after a pause."""
        if self.process is None or self.process.poll() is None:
            return False
        lived = time.monotonic() - self._began
        self._pause = FIRST_PAUSE if lived > STEADY_SECONDS else min(self._pause * 2, LONGEST_PAUSE)
        self._due = time.monotonic() + self._pause
        self.deaths += 1
        self.process = None
        return True

    def due(self) -> bool:
        """True when it should be started again."""
        return self.process is None and time.monotonic() >= self._due

    def stop(self, seconds: float) -> None:
        """Ask, wait, then insist."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Signals:
    """Signals as bytes in a pipe, so that one select waits for everything."""

    def __init__(self) -> None:
        self.stopping = False
        self.reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self.reader)
        os.close(self._writer)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def drain(self) -> None:
        """Forget what woke us."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, 256):
                continue


class Supervisor:
    """Keeps both children alive until a signal says stop."""

    def __init__(
        self,
        settings: ServerSettings,
        listener: socket.socket,
        ready_fd: int | None,
        published: socket.socket | None = None,
        watched: Watched | None = None,
    ) -> None:
        self._settings = settings
        self._published = published
        self._watched = watched
        self._channel: Channel | None = None
        self._ready_fd = ready_fd
        self._ready_pipe: int | None = None
        self._ready = False
        uid, _ = api_ids(settings.user)
        places = ["--state", str(settings.state_dir), "--templates", str(settings.templates_dir)]
        self._node = Child("node", ["ringfence.node", *places, "--api-uid", str(uid)])
        words = ["ringfence.api", "--listen-fd", str(listener.fileno()), "--parent", str(os.getpid())]
        fds: tuple[int, ...] = (listener.fileno(),)
        if published is not None:
            words, fds = [*words, "--edge-fd", str(published.fileno())], (*fds, published.fileno())
        self._api = Child("api", words, fds)

    def run(self) -> int:
        """Until stopped; the exit code."""
        with Signals() as signals:
            try:
                return self._loop(signals)
            finally:
                self._api.stop(self._settings.drain_seconds + 5)
                self._node.stop(NODE_STOP_SECONDS)
                if self._ready_pipe is not None:
                    os.close(self._ready_pipe)
                if self._channel is not None:
                    self._channel.close()

    def _loop(self, signals: Signals) -> int:
        self._start_node()
        self._start_api()
        while not signals.stopping:
            waiting = [signals.reader, *([self._ready_pipe] if self._ready_pipe is not None else [])]
            woken, _, _ = select.select(waiting, [], [], 0.5 if self._all_alive() else 0.05)
            signals.drain()
            if self._ready_pipe in woken:
                self._hear_ready()
            for child in (self._node, self._api):
                if child.died():
                    _say(f"the {child.name} ended; it is started again")
                    if not self._ready and child.deaths >= GIVE_UP_AFTER:
                        _say(f"the {child.name} does not start; see above")
                        return 1
            self._restart()
            self._renew()
        return 0

    def _renew(self) -> None:
        """Hand a changed certificate over. Files that cannot be used change nothing, and are told of once."""
        if self._watched is None or self._channel is None:
            return
        before = self._watched.trouble
        if self._watched.changed():
            self._channel.send(self._watched.pair)
            _say("the edge shows a new certificate")
        elif self._watched.trouble is not None and before is None:
            _say(f"the old certificate stays: {self._watched.trouble.cause}")

    def _all_alive(self) -> bool:
        return self._node.process is not None and self._api.process is not None

    def _restart(self) -> None:
        if self._node.due():
            self._start_node()
        if self._api.due():
            self._start_api()

    def _start_node(self) -> None:
        """It inherits what it needs of the settings in a nameless file: a gateway's password is on no command line."""
        egress_in = handed(self._settings.egress)
        try:
            self._node.start(["--egress-fd", str(egress_in)], (egress_in,))
        finally:
            os.close(egress_in)

    def _start_api(self) -> None:
        """It inherits its settings in a nameless file, and says through a pipe that it is ready."""
        settings_in = handed(without_passwords(self._settings))
        ready_in, ready_out = os.pipe2(os.O_CLOEXEC)
        certificates = self._certificates()
        try:
            extra = ["--settings-fd", str(settings_in), "--ready-fd", str(ready_out)]
            extra += ["--tls-fd", str(certificates)] if certificates is not None else []
            self._api.start(extra, (settings_in, ready_out, *([] if certificates is None else [certificates])))
        finally:
            os.close(settings_in)
            os.close(ready_out)
            if self._channel is not None:
                self._channel.theirs.close()
        if self._ready_pipe is not None:
            os.close(self._ready_pipe)
        self._ready_pipe = ready_in

    def _certificates(self) -> int | None:
        """A channel of its own for each api, with the newest pair in it; None where the edge speaks no TLS."""
        if self._watched is None:
            return None
        if self._channel is not None:
            self._channel.close()
        self._channel = Channel()
        self._channel.send(self._watched.pair)
        return self._channel.theirs.fileno()

    def _hear_ready(self) -> None:
        if self._ready_pipe is None:
            return
        url = os.read(self._ready_pipe, 1000).decode().strip()
        os.close(self._ready_pipe)
        self._ready_pipe = None
        if not url or self._ready:
            return
        self._ready = True
        if self._ready_fd is None:
            sys.stdout.write(f"ringfence serves at {url}\n" + self._explained())
            sys.stdout.flush()
        else:
            os.write(self._ready_fd, (url + "\n").encode())
            os.close(self._ready_fd)

    def _explained(self) -> str:
        """What somebody needs to know of a development domain."""
        if not self._settings.dev_domain or self._published is None:
            return ""
        return developing.explained(self._settings, self._published.getsockname()[1])


def without_passwords(settings: ServerSettings) -> ServerSettings:
    """The settings as the process may have them that faces the network: it names gateways and never uses one."""
    kept = {
        name: {key: value for key, value in table.items() if key not in {"username", "password"}}
        for name, table in settings.egress.gateways.items()
    }
    egress = msgspec.structs.replace(settings.egress, gateways=kept)
    return msgspec.structs.replace(settings, egress=egress)


def handed(settings: Settings) -> int:
    """Put settings into a nameless file for a child to inherit; returns its descriptor."""
    file = os.memfd_create("ringfence-settings", os.MFD_CLOEXEC)
    os.write(file, msgspec.json.encode(settings))
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _say(words: str) -> None:
    sys.stderr.write(f"ringfence: {words}\n")


def take_state(settings: ServerSettings) -> int:
    """Lock the state directory; returns the lock's descriptor. Raises Conflict when another server has it."""
    place = settings.state_dir
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Conflict(
            f"another server uses the state directory {place}",
            code="state_in_use",
            remediation="stop it, or give this one its own with --state",
        ) from None
    return lock


def listen(settings: ServerSettings) -> socket.socket:
    """The address, bound. Raises PlatformFault when it cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=4096)
    except OSError as error:
        raise PlatformFault(
            f"cannot listen at {settings.host} port {settings.port}: {error.strerror or error}",
            code="cannot_listen",
            remediation="choose another with --host and --port",
        ) from None


def listen_edge(settings: ServerSettings) -> contextlib.AbstractContextManager[socket.socket | None]:
    """The address of published ports, bound; None where none are served."""
    return listening.listen(settings.edge, settings.port) if settings.edge.enabled else contextlib.nullcontext()


def certificates(settings: ServerSettings) -> Watched | None:
    """The edge's certificate, to be watched; None without TLS. Raises BadCertificate."""
    return Watched(settings.edge) if settings.edge.enabled and settings.edge.certificate else None


def main(settings: ServerSettings, ready_fd: int | None = None, lock: int | None = None) -> int:
    """Serve until told to stop; 0 after a clean stop. Raises Conflict when the state directory is in use."""
    held = take_state(settings) if lock is None else lock
    try:
        watched = certificates(settings)
        with listen(settings) as listener, listen_edge(settings) as published:
            return Supervisor(settings, listener, ready_fd, published, watched).run()
    finally:
        os.close(held)


# --- a private server for one command --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embedded:
    """Where a private server answers, and the one key it knows."""

    url: str
    key: str


@contextlib.contextmanager
def embedded(settings: ServerSettings, tenant: str = "local", *, publishes: bool = False) -> Iterator[Embedded]:
    """A server of one's own, on an ephemeral loopback port, with a key that ends with it.

    It uses the settings' state directory when that is free, else a temporary one with the same templates. The server
    dies with the thread that entered this, whatever happens to it. Unless it `publishes`, it has no edge.
    """
    with contextlib.ExitStack() as stack:
        private, lock = _private_state(settings, stack, publishes=publishes)
        key = stack.enter_context(_temporary_key(private, tenant))
        ready_in, ready_out = os.pipe2(os.O_CLOEXEC)
        settings_in = handed(private)
        words = ["--settings-fd", str(settings_in), "--ready-fd", str(ready_out), "--lock-fd", str(lock)]
        child = Child("server", ["ringfence.serve", *words, "--parent", str(os.getpid())])
        child.start(fds=(settings_in, ready_out, lock))
        stack.callback(child.stop, NODE_STOP_SECONDS + private.drain_seconds + 10)
        for fd in (settings_in, ready_out, lock):
            os.close(fd)
        yield Embedded(_await_ready(ready_in), key)


def _private_state(
    settings: ServerSettings, stack: contextlib.ExitStack, *, publishes: bool
) -> tuple[ServerSettings, int]:
    edge = msgspec.structs.replace(settings.edge, enabled=publishes)
    places = {"host": "127.0.0.1", "port": 0, "templates": str(settings.templates_dir)}
    changed = msgspec.structs.replace(settings, edge=edge, **places)
    try:
        return changed, take_state(changed)
    except (Conflict, OSError):
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-", ignore_cleanup_errors=True))
        changed = msgspec.structs.replace(changed, state=place)
        return changed, take_state(changed)


@contextlib.contextmanager
def _temporary_key(settings: ServerSettings, tenant: str) -> Iterator[str]:
    settings.database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ring = KeyRing(settings.database)
    try:
        secret, made = ring.add(tenant, "for one command", time.time() + 86_400)
        try:
            yield secret
        finally:
            ring.revoke(made.id)
    finally:
        ring.close()


def _await_ready(pipe: int) -> str:
    with os.fdopen(pipe, "rb") as ready:
        woken, _, _ = select.select([ready], [], [], READY_SECONDS)
        url = ready.readline().decode().strip() if woken else ""
    if not url:
        raise PlatformFault(
            "the private server did not start",
            code="not_started",
            remediation="`ringfence doctor` says what is missing",
        )
    return url


def _command_line() -> int:
    """`python -m ringfence.serve`, as embedded() starts it."""
    parser = argparse.ArgumentParser(prog="ringfence-serve")
    parser.add_argument("--settings-fd", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lock-fd", type=int)
    parser.add_argument("--state")
    parser.add_argument("--templates")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--config")
    parser.add_argument("--parent", type=int)
    given = parser.parse_args()
    try:
        if given.parent is not None:
            die_with(given.parent)
        if given.settings_fd is not None:
            with os.fdopen(given.settings_fd, "rb") as pipe:
                settings = msgspec.json.decode(pipe.read(), type=ServerSettings)
        else:
            flags = {name: getattr(given, name) for name in ("state", "templates", "host", "port")}
            settings = read_server(given.config, **flags)
        return main(settings, given.ready_fd, given.lock_fd)
    except RingfenceError as error:
        sys.stderr.write(f"error[{error.code}]: {error.cause}\n")
        return 1


if __name__ == "__main__":
    sys.exit(_command_line())
