"""A program of the fake: a coroutine with standard streams, an environment, and a fate."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ringfence.domain.limits import Limits
from ringfence.guest import frames
from ringfence.runtimes.fake.channel import Stream
from ringfence.runtimes.fake.tree import HOME, Tree

TAIL: Final = 64 * 1024
IDLE_PAUSE: Final = 0.001  # between two pieces of output that nobody reads
_HARMLESS: Final = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})


class Exited(Exception):
    """A program ends itself with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code & 0xFF


class Box:
    """What the programs of one sandbox share, and what the node may count."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tree = Tree(limits.scratch_bytes)
        self.programs: dict[int, Program] = {}
        self.ports: set[int] = set()  # where something listens, and sends back what it hears
        self.cpu_seconds = 0.0
        self.memory_peak = 0
        self.oom_kills = 0
        self._last_pid = 1

    def next_pid(self) -> int:
        """A pid nobody had."""
        self._last_pid += 1
        return self._last_pid

    def allocate(self, count: int, program: Program) -> None:
        """Use memory for a moment; past the limit the program is killed, as the kernel would."""
        self.memory_peak = max(self.memory_peak, min(count, self.limits.memory_bytes))
        if count > self.limits.memory_bytes:
            self.oom_kills += 1
            program.signal(signal.SIGKILL)


class Input:
    """A program's standard input; credit goes back as it reads."""

    def __init__(self, *, connected: bool) -> None:
        self._waiting: deque[tuple[Stream, bytes]] = deque()
        self._came = asyncio.Event()
        self._eof = not connected

    def feed(self, stream: Stream, data: bytes) -> None:
        """Bytes from a stream; after the end they are taken and dropped."""
        if self._eof:
            stream.consumed(len(data))
            return
        self._waiting.append((stream, data))
        self._came.set()

    def close(self) -> None:
        """No more will come."""
        self._eof = True
        self._came.set()

    def drain(self) -> None:
        """The reader is gone: nothing may wait for it."""
        self.close()
        while self._waiting:
            stream, data = self._waiting.popleft()
            stream.consumed(len(data))

    async def read(self) -> bytes:
        """What came first; empty at the end."""
        while not self._waiting:
            if self._eof:
                return b""
            self._came.clear()
            await self._came.wait()
        stream, data = self._waiting.popleft()
        stream.consumed(len(data))
        return data


class Program:
    """One running or ended program."""

    def __init__(self, box: Box, argv: list[str], request: dict[str, Any], kind: str) -> None:
        self.box = box
        self.pid = box.next_pid()
        self.detached = bool(request.get("detach"))
        self.about = {"tag": request.get("tag"), "argv": argv, "kind": kind, "detach": self.detached}
        self.env = {"HOME": HOME, "USER": "user", "PATH": "/usr/bin:/bin", **(request.get("env") or {})}
        self.cwd = box.tree.at(request.get("cwd") or HOME)
        self.stdin = Input(connected=bool(request.get("stdin")))
        self.started_at = time.time()
        self.fate: dict[str, Any] | None = None
        self._attached: list[Stream] = []
        self._tails: dict[int, bytes] = {}
        self._roomy = asyncio.Event()
        self._doom: tuple[str, int | None] = ("", None)
        self._task: asyncio.Task[int] | None = None
        box.programs[self.pid] = self

    # -- life -----------------------------------------------------------------------------------------------

    def begin(self, body: Coroutine[Any, Any, int], timeout: float | None) -> None:
        """Run, and tell everybody attached how it ended."""
        self._task = asyncio.get_running_loop().create_task(body)
        self._task.add_done_callback(self._ended)
        if timeout is not None:
            late = asyncio.get_running_loop().call_later(timeout, self._kill, "timed_out")
            self._task.add_done_callback(lambda _: late.cancel())

    def _kill(self, how: str, number: int = signal.SIGKILL) -> None:
        if self._task is not None and not self._task.done() and not self._doom[0]:
            self._doom = (how, number)
            self._task.cancel()

    def signal(self, number: int) -> None:
        """Every signal that would end a real program ends this one."""
        if number not in _HARMLESS:
            self._kill("signalled", number)

    def abandon(self) -> None:
        """Its owner lost interest."""
        self._kill("stopped")

    def _ended(self, task: asyncio.Task[int]) -> None:
        how, number = self._doom
        code: int | None = None
        if not how:
            how, number = "exited", None
            with contextlib.suppress(asyncio.CancelledError):
                error = task.exception()
                code = error.code if isinstance(error, Exited) else 70 if error is not None else task.result()
        self.fate = {
            "how": how,
            "code": code,
            "signal": number,
            "cpu_seconds": 0.0,
            "peak_memory_bytes": 0,
            "scratch_full": bool(code) and self.box.tree.full,
        }
        self.stdin.drain()
        for stream in self._attached:
            stream.end({"exit": self.fate})
        self._attached.clear()

    # -- output ---------------------------------------------------------------------------------------------

    async def write(self, type_: int, data: bytes) -> None:
        """Send to everybody attached, no faster than the slowest takes it."""
        view = memoryview(data)
        while view:
            room = min((stream.room for stream in self._attached), default=frames.MAX_DATA)
            if not room:
                self._roomy.clear()
                await self._roomy.wait()
                continue
            piece = bytes(view[:room])
            view = view[room:]
            self._tails[type_] = (self._tails.get(type_, b"") + piece)[-TAIL:]
            for stream in self._attached:
                stream.send(type_, piece)
            await asyncio.sleep(0 if self._attached else IDLE_PAUSE)

    def attach(self, stream: Stream, *, replay: bool, owner: bool) -> None:
        """Everything live, after the tail if asked; the owner's leaving ends a program that is not detached."""
        stream.control({"started": {"pid": self.pid}})
        for type_, tail in self._tails.items() if replay else ():
            stream.send(type_, tail)
        if self.fate is not None:
            stream.end({"exit": self.fate})
            return
        self._attached.append(stream)
        stream.on_room = self._roomy.set
        stream.on_control = self._heard
        stream.on_cancel = lambda: self._left(stream, owner=owner)

    def _heard(self, message: dict[str, Any]) -> None:
        if isinstance(message.get("signal"), int):
            self.signal(message["signal"])

    def _left(self, stream: Stream, *, owner: bool) -> None:
        if stream in self._attached:
            self._attached.remove(stream)
        self._roomy.set()
        if owner and not self.detached:
            self.abandon()
        stream.end({})

    async def follow(self, stream: Stream, *, closing: bool = True) -> None:
        """Pass a stream's bytes to the input until it ends; its EOF ends the input too, if that is `closing`."""
        while not stream.closed and (data := await stream.inbox.get()) is not None:
            self.stdin.feed(stream, data)
        if closing and not stream.closed:
            self.stdin.close()

    # -- for its code ---------------------------------------------------------------------------------------

    async def out(self, data: bytes) -> None:
        """Standard output."""
        await self.write(frames.STDOUT, data)

    async def err(self, data: bytes) -> None:
        """Standard error."""
        await self.write(frames.STDERR, data)

    def row(self) -> dict[str, Any]:
        """As `list` shows it."""
        fate = self.fate
        return {"pid": self.pid, **self.about, "started_at": self.started_at, "running": fate is None, "exit": fate}


Body = Callable[[Program], Coroutine[Any, Any, int]]
