"""One kernel as seen from the host: a process that runs cells, and whose death is a fact like any other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from typing import Any, Final

from ringfence.api.compat.e2b.interpreter.answers import END, answer, error
from ringfence.api.compat.e2b.interpreter.messages import BrokenProtocol, Done, Failed, Lines, Message, Ready, read
from ringfence.domain.errors import RingfenceError, SandboxLost
from ringfence.domain.process import How
from ringfence.engine.processes import LiveProcess
from ringfence.engine.programs import Fate
from ringfence.guest import frames

START_SECONDS: Final = 60.0  # where nothing is preloaded a kernel imports all of its libraries first
MOST_HELD: Final = 8  # lines made and not yet taken by the client; then the kernel waits
TAIL: Final = 2000  # bytes kept of what a kernel says before it can speak
#: An interrupt, how long it may take (s), and again. Then the kernel is ended: a context must not hang for good.
PATIENCE: Final = (2.0, 3.0, 5.0)
#: Whoever asked before us may have left within a line (guest/kernel/speech.py).
GREETING: Final = b'\n{"hello": true}\n'


class Cell:
    """Code on its way through a kernel, and the lines that came of it. Whoever leaves hears no more."""

    def __init__(self, code: str, env: dict[str, str], language: str, cap: int) -> None:
        self.words = {"code": code, "env": env, "language": language}
        self.left = asyncio.Event()  # nobody wants more of it
        self.over = False  # nothing more will be put
        self.fault: RingfenceError | None = None  # why it was not run to its end, when that was not its own doing
        self.cap = cap  # bytes of lines; a client gets no more
        self._lines: deque[bytes] = deque()
        self._changed = asyncio.Event()

    async def put(self, line: bytes) -> None:
        """Hand a line on; waits while the client is behind."""
        while len(self._lines) >= MOST_HELD and not self.left.is_set():
            self._changed.clear()
            await self._changed.wait()
        if not self.left.is_set():
            self.cap -= len(line)
            if self.cap < 0:
                line = error("OutputLimitExceeded", "the cell printed or showed more than the sandbox's output limit")
                line += END
                self.left.set()
            self._lines.append(line)
            self._changed.set()

    def end(self) -> None:
        """There is no more."""
        self.over = True
        self._changed.set()

    def leave(self) -> None:
        """The client is gone."""
        self.left.set()
        self._lines.clear()
        self._changed.set()

    async def lines(self, seconds: float) -> list[bytes] | None:
        """What there is, waiting so long for some (then an empty list); None at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._lines and not self.over:
                    self._changed.clear()
                    await self._changed.wait()
        taken = list(self._lines)
        self._lines.clear()
        self._changed.set()
        return taken if taken or not self.over else None


async def first(*waits: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Return when one of these is done, or the time is over."""
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


class Death(Exception):
    """The kernel ended; the words say why. `lost` is set when the whole sandbox is gone."""

    def __init__(self, why: str, lost: RingfenceError | None = None) -> None:
        super().__init__(why)
        self.lost = lost


class Kernel:
    """A kernel that runs: made by begun(), or `again` one that another process began, known by greeted()."""

    def __init__(self, live: LiveProcess, *, again: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.greeted_by_us = not again
        self.missed = ""  # what became of a cell that somebody else asked for and nobody heard
        self._again = again
        self._strange = again  # what it says is meant for somebody else
        self.died: asyncio.Future[Death] = loop.create_future()
        self._live = live
        self._tail = b""
        self._why = ""  # we ended it, because
        self._lost: RingfenceError | None = None
        self._cell: Cell | None = None
        self._asked = 0
        self._leaving = False
        self._ready: asyncio.Future[None] = loop.create_future()
        self._done = asyncio.Event()
        self._hearing = loop.create_task(self._hear())

    async def begun(self, order: bytes) -> None:
        """Send the program, and return when it can be asked. Raises Death."""
        sending = asyncio.create_task(self._live.reader.send(order))
        try:
            await first(self._ready, self.died, seconds=START_SECONDS)
        finally:
            sending.cancel()
        if not self._ready.done():
            self.end("it did not start in time")
            raise await self.died

    async def greeted(self) -> None:
        """Return when a kernel that runs already can be asked; a cell that runs in it is interrupted. Raises Death."""
        sending = asyncio.create_task(self._live.reader.send(GREETING))
        interrupted = False
        try:
            await first(self._ready, self.died, seconds=PATIENCE[0])
            for seconds in PATIENCE:
                if self._ready.done() or not self.alive:
                    break
                interrupted = True
                self._live.signal("INT")
                await first(self._ready, self.died, seconds=seconds)
        finally:
            sending.cancel()
        if not self._ready.done():
            self.end("it did not stop when it was interrupted")
            raise await self.died
        self.greeted_by_us = True
        self.missed += ", and it was interrupted" if self.missed and interrupted else ""

    @property
    def alive(self) -> bool:
        """Whether it may be asked."""
        return not self.died.done() and not self._why and not self._leaving

    # -- hearing it --------------------------------------------------------------------------------------------

    async def _hear(self) -> None:
        lines = Lines()
        try:
            while (item := await self._live.reader.next()) is not None:
                if item[0] == frames.STDOUT:
                    for line in lines.feed(item[1]):
                        await self._heard(line)
                elif item[0] == frames.STDERR:
                    self._tail = (self._tail + item[1])[-TAIL:]
        except (BrokenProtocol, RecursionError) as broken:
            self.end(str(broken) or "it said something that is no message")
        except asyncio.CancelledError:
            self._why = "the server stopped"
            self._live.leave()  # it lives on: the server that comes next finds it
            raise
        finally:
            await asyncio.shield(self._buried())

    def _overheard(self, line: bytes) -> None:
        """What it says to whoever was here before, which may begin within a line, until it greets us."""
        with contextlib.suppress(BrokenProtocol):
            message = read(line)
            if isinstance(message, Done):
                self.missed = "what it said is lost"
            elif isinstance(message, Ready):
                self._strange = False
                self._ready.set_result(None)

    async def _heard(self, line: bytes) -> None:
        if self._strange:
            self._overheard(line)
        elif (
            line or not self._again
        ):  # an answer to a greeting begins a line of its own, and others may have greeted it
            await self._told(read(line))

    async def _told(self, message: Message) -> None:
        if isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, Done):
            if message.id == self._asked:
                self._leaving = message.last
                self._done.set()
        elif isinstance(message, Failed) and not self._ready.done():
            self._tail += message.value.encode()[:TAIL]
        elif self._cell is not None and (line := answer(message)):
            await self._cell.put(line)

    async def _buried(self) -> None:
        """Learn how it ended, once nothing more comes of it."""
        try:
            death = Death(self._why, self._lost) if self._why else self._death(await self._live.fate())
        except RingfenceError as error:
            death = Death(f"the sandbox ended: {error.cause}", error)
        if not self.died.done():
            self.died.set_result(death)

    def _death(self, fate: Fate) -> Death:
        how, words = fate.exit, self._tail.decode("utf-8", "replace").strip()
        if how.code is None and how.signal is None:  # nobody was left to tell: the verdict is on the whole sandbox
            return Death(how.reason, SandboxLost(f"the sandbox ended: {how.reason}"))
        if how.how is How.OUT_OF_MEMORY:
            return Death("the memory limit was reached")
        said = how.reason or (f"signal {how.signal}" if how.signal else f"exit code {how.code}")
        return Death(f"{said}: {words}" if words and not self._ready.done() else said)

    # -- asking it ---------------------------------------------------------------------------------------------

    async def run(self, cell: Cell) -> None:
        """Run a cell to its end, or to its interruption once its client left. Raises Death."""
        self._asked += 1
        self._cell = cell
        self._done.clear()
        line = json.dumps({**cell.words, "id": self._asked}).encode() + b"\n"
        sending = asyncio.create_task(self._live.reader.send(line))
        tasks = [asyncio.create_task(event.wait()) for event in (self._done, cell.left)]
        try:
            await first(*tasks, self.died)
            if not self._done.is_set():
                await self._calm()
        finally:
            self._cell = None
            for task in (sending, *tasks):
                task.cancel()

    async def _calm(self) -> None:
        """Interrupt it until it is done; what cannot be interrupted is ended. Raises Death."""
        for seconds in PATIENCE:
            if not self.alive:
                break
            self._live.signal("INT")
            done = asyncio.create_task(self._done.wait())
            await first(done, self.died, seconds=seconds)
            done.cancel()
            if self._done.is_set():
                return
        self.end("it did not stop when it was interrupted")
        raise await self.died

    def end(self, why: str, lost: RingfenceError | None = None) -> None:
        """Kill it, if it lives."""
        if self._why or self.died.done():
            return
        self._why, self._lost = why, lost
        self._live.kill()
        self._live.reader.lost(SandboxLost(why))
