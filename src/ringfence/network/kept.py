"""A process of ours that is kept alive and kept informed: the gate, and each opener.

It is told words over one socket and answers each by its number. Whoever keeps it keeps what it must know, so that the
next one, when it dies, hears everything before it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import PlatformFault, SandboxRefused
from ringfence.network import words

READY_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 30.0  # then it is stuck and is ended, with all its connections: never for being slow
AGAIN_SECONDS: Final = 0.2  # between a death and the next life
GONE_SECONDS: Final = 10.0
READ: Final = 256 * 1024
_SOURCE: Final = Path(__file__).parent.parent.parent
Words = dict[str, Any]


class Process:
    """One running process, as long as it runs."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control = control
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def launch(cls, module: str, first: bytes, given: Sequence[socket.socket], name: str = "") -> Process:
        """Start a module in the network namespace of the calling thread, and give it some sockets. Raises OSError.

        Its control socket is descriptor 3, on which `first` and the sockets come before anything else. It inherits
        nothing and is told nothing by its command line or its environment: those can be read by others. `name` is on
        the command line for people and for whoever counts what is left; it reads it not.
        """
        ours, theirs = socket.socketpair()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
        ]
        argv = [sys.executable, "-B", "-s", "-m", module, *([name] if name else [])]
        try:
            pid = os.posix_spawn(sys.executable, argv, {"PYTHONPATH": str(_SOURCE)}, file_actions=actions)
            socket.send_fds(ours, [first], [each.fileno() for each in given])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            for each in given:
                each.close()
        return cls(ours, pid)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Its words, and ours to it."""
        return await asyncio.open_connection(sock=self._control)

    def kill(self) -> None:
        """End it. Harmless when it has ended: a number that was given back may be another process's by now."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self.pidfd, gone.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                await gone.wait()
        loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        _reap(self.pid)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Kept:
    """Keeps one process alive from open() to close()."""

    def __init__(
        self,
        what: str,
        launch: Callable[[], Awaitable[Process]],
        greet: Callable[[], Iterable[Words]],
        heard: Callable[[Words], None],
        died: Callable[[], None] = lambda: None,
    ) -> None:
        """`greet` is all that a new process must know before it counts as ready; `what` is its name in our words."""
        self._what = what
        self._launch = launch
        self._greet = greet
        self._heard = heard
        self._died = died
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.deaths = 0

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        return self._process.pid if self._process is not None and self._ready.is_set() else 0

    async def open(self) -> None:
        """Return when one serves. Raises SandboxRefused."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            await self.close()
            raise SandboxRefused(
                f"the {self._what} does not start", code=f"no_{self._what}", remediation="see the node's log"
            ) from None

    async def _keep(self) -> None:
        while True:
            try:
                await self._one_life()
            except (OSError, words.BadWords, SandboxRefused) as error:
                os.write(2, f"ringfence node: the {self._what} failed: {error}\n"[:500].encode())
            self.deaths += 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def _one_life(self) -> None:
        """Start it, tell it everything there is to know, hear it until it is gone."""
        process = self._process = await self._launch()
        try:
            reader, self._writer = await process.connect()
            parser = words.Parser(words.MOST_TO_NODE)
            while data := await reader.read(READ):
                for message in parser.feed(data):
                    self._hear(message)
        finally:
            self._ready.clear()
            self._lost()
            await process.end()

    def _hear(self, message: Words) -> None:
        if "ready" in message:
            for words_ in self._greet():
                self._send(words_)
            self._ready.set()
        else:
            self._heard(message)
        waiting = self._waiting.pop(message.get("done", 0), None)
        if waiting is not None and not waiting.done():
            error = message.get("error")
            if error:
                waiting.set_exception(PlatformFault(f"the {self._what} refuses: {error!s:.300}"))
            else:
                waiting.set_result(None)

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(PlatformFault(f"the {self._what} died"))
        self._died()

    def _send(self, message: Words) -> asyncio.Future[None]:
        number = next(self._numbers)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        if self._writer is None:
            done.set_exception(PlatformFault(f"there is no {self._what} at the moment"))
            return done
        self._waiting[number] = done
        self._writer.write(words.encode({**message, "number": number}))
        return done

    async def told(self, message: Words) -> None:
        """Tell the present one, and return when it has answered. Raises PlatformFault."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._send(message)
        except TimeoutError:
            if self._process is not None:
                self._process.kill()  # it is stuck: end it, and with it whatever it still lets pass
            raise PlatformFault(f"the {self._what} does not answer") from None

    async def ready(self) -> None:
        """Return once there is one: one that died is replaced within a second. Raises PlatformFault."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            raise PlatformFault(f"there is no {self._what}") from None

    def renew(self) -> None:
        """End the present one; another takes its place."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End it for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
