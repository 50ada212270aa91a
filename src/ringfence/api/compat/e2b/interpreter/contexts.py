"""Contexts: a language, a folder, and at most one kernel, in which cells run one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ringfence.api.compat.e2b.interpreter import sources
from ringfence.api.compat.e2b.interpreter.answers import END, answer, error
from ringfence.api.compat.e2b.interpreter.kernel import Cell, Death, Kernel
from ringfence.api.compat.e2b.interpreter.messages import Output
from ringfence.api.compat.e2b.interpreter.sources import NoKernel
from ringfence.api.compat.e2b.interpreter.tags import Tag
from ringfence.api.errors import ours
from ringfence.domain.errors import Conflict, NotFound, OverQuota, SandboxLost
from ringfence.domain.limits import Limits
from ringfence.engine import checks
from ringfence.engine.engine import Engine

HOME: Final = "/home/user"
MOST_CONTEXTS: Final = 32  # of one sandbox
MOST_WAITING: Final = 64  # cells in one context
TRIES: Final = 20  # to start a kernel while the sandbox has no process to spare
AGAIN_SECONDS: Final = 0.5
CROWDED: Final = ("can't start new thread", "Resource temporarily unavailable")  # what a kernel says that had no room
DEFAULTS: Final = ("python", "javascript")
NO_IPYTHON: Final = "No module named 'IPython'"
#: Why a kernel is not there any more, beside what it did itself.
SERVER_AGAIN: Final = "the server was started again"
SANDBOX_AGAIN: Final = "its sandbox was started again, with its files alone"


class Crowded(NoKernel):
    """A kernel that had no room for its threads or processes: what an ended one left may still be going."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose sandbox a context is in, and the variables every program of it gets.

    `lost` are the kernels that ran cells of default contexts which nobody knows any more.
    """

    engine: Engine
    tenant: str
    sandbox: str
    env: Mapping[str, str] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()


class Context:
    """One context. A kernel is started when it is first needed, and again after it died."""

    def __init__(
        self, place: Place, tag: Tag, kernel: Kernel | None = None, *, untold: str = "", unused: bool = False
    ) -> None:
        self.id = tag.id
        self.language = tag.language
        self.cwd = tag.cwd
        self._tag = tag
        self._place = place
        self._turn = asyncio.Lock()
        self._kernel = kernel
        self._cap = Limits().output_bytes
        self.waiting = 0
        self._unused = unused  # no cell of anybody's was run in its kernel: there is nothing to lose
        self._untold = untold  # why a kernel ended, while there was nobody to hear it
        self._gone = ""  # it was removed
        self._running: set[asyncio.Task[None]] = set()

    def execute(self, code: str, env: dict[str, str], language: str) -> Cell:
        """Queue a cell. Raises OverQuota when too many wait."""
        if self.waiting >= MOST_WAITING:
            raise OverQuota("too many cells wait in this context", remediation="wait for one to end")
        cell = Cell(code, env, language, self._cap)
        task = asyncio.create_task(self._run(cell))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return cell

    async def _run(self, cell: Cell) -> None:
        self.waiting += 1
        try:
            async with self._turn:
                if not cell.left.is_set():
                    await self._run_now(cell)
        except Exception as fault:  # noqa: BLE001 - whatever it was, somebody waits for an answer
            cell.fault = ours(fault)
        finally:
            self.waiting -= 1
            cell.end()

    async def _run_now(self, cell: Cell) -> None:
        if self._gone:
            raise NotFound(f"context {self.id} {self._gone}")
        try:
            kernel = await self._kernel_for(cell)
            cell.cap, self._unused = self._cap, False
            await kernel.run(cell)
        except Death as death:
            self._kernel = None
            if death.lost is not None:
                raise _lost() from None
            if cell.left.is_set():
                self._untold = str(death)
            await cell.put(error("KernelDied", f"{death}; its variables are lost, the next cell has a fresh kernel"))
        await cell.put(END)

    async def _kernel_for(self, cell: Cell) -> Kernel:
        if self._kernel is not None and self._kernel.alive and not self._kernel.greeted_by_us:
            await self._greeted(self._kernel, cell)
        if self._kernel is None or not self._kernel.alive:
            if self._kernel is not None:
                death = await self._kernel.died
                why = str(death) if death.lost is None else SANDBOX_AGAIN
                self._untold = "" if self._unused else why
            self._kernel = await self._started()
        if self._untold:
            note = f"[ringfence] a fresh kernel: the one before ended ({self._untold})\n"
            self._untold = ""
            await cell.put(answer(Output(name="stderr", text=note)))
        return self._kernel

    async def _greeted(self, kernel: Kernel, cell: Cell) -> None:
        """Speak to a kernel of an earlier process; one that does not answer is dead afterwards."""
        await self._measure()
        with contextlib.suppress(Death):
            await kernel.greeted()
            if kernel.missed:
                note = f"[ringfence] {SERVER_AGAIN} while a cell ran: {kernel.missed}\n"
                await cell.put(answer(Output(name="stderr", text=note)))

    async def _measure(self) -> None:
        """Learn how much a cell may say."""
        place = self._place
        sandbox = await place.engine.sandboxes.get(place.tenant, place.sandbox)
        self._cap = (sandbox.limits or Limits()).output_bytes

    async def _started(self) -> Kernel:
        """A kernel that can be asked. Raises NoKernel, or what the engine raises."""
        await self._measure()
        for _ in range(TRIES - 1):
            try:
                return await self._tried()
            except (Conflict, Crowded) as error:  # what a kernel that ended just now left may still be in its way
                if isinstance(error, Conflict) and error.code != "guest_busy":
                    raise
            await asyncio.sleep(AGAIN_SECONDS)
        return await self._tried()

    async def _tried(self) -> Kernel:
        place = self._place
        kernel = Kernel(
            await place.engine.processes.kernel(place.tenant, place.sandbox, sources.BOOT, place.env, self._tag.text)
        )
        name = sources.KERNELS[self.language]
        try:
            await kernel.begun(sources.order(name, self.cwd))
        except Death as death:
            if death.lost is not None:
                raise _lost() from None
            if NO_IPYTHON in str(death):
                raise NoKernel("this template has no IPython: use code-interpreter-v1, or install ipython") from None
            kind = Crowded if any(words in str(death) for words in CROWDED) else NoKernel
            raise kind(f"the {name} kernel did not start: {str(death)[-1000:]}") from None
        except BaseException:
            kernel.end("nobody waited for it")
            raise
        return kernel

    async def warm(self) -> None:
        """Have a kernel. Raises NoKernel, or what the engine raises."""
        async with self._turn:
            if self._kernel is None or not self._kernel.alive:
                self._kernel = None
                self._kernel = await self._started()

    def restart(self, why: str = "the context was restarted") -> None:
        """End the kernel; a running cell is told, the next one has a fresh kernel and nothing to be told."""
        kernel, self._kernel, self._untold = self._kernel, None, ""
        if kernel is not None:
            kernel.end(why)

    def remove(self) -> None:
        """End it for good."""
        self._gone = "was removed"
        self.restart("the context was removed")

    def lose(self) -> None:
        """The sandbox is gone, and whoever waits for a cell hears that."""
        if self._kernel is not None:
            self._kernel.end("the sandbox ended", _lost())


def _lost() -> SandboxLost:
    return SandboxLost("The sandbox was not found")  # words that E2B's clients look for


def _new(language: str, cwd: str, *, usual: bool) -> Tag:
    return Tag(str(uuid.uuid4()), language, usual, cwd)


class Contexts:
    """The contexts of one sandbox; those of the usual languages are there unasked."""

    def __init__(self, place: Place, *, new: bool = False) -> None:
        self._place = place
        self._all: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}
        self._found = new  # nobody can have left anything in a sandbox that was made just now
        self._finding = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many cells run or wait."""
        return sum(context.waiting for context in self._all.values())

    async def find(self) -> None:
        """Know the kernels that an earlier process of ours left here. Raises what the engine raises."""
        async with self._finding:
            if self._found:
                return
            place = self._place
            left = await place.engine.processes.kernels(place.tenant, place.sandbox)
            for process in sorted(left, key=lambda process: process.started_at or 0.0):
                tag = Tag.read(process.tag)
                with contextlib.suppress(NotFound, Conflict):  # it has ended meanwhile
                    if Tag.outdated(process.tag):
                        await place.engine.processes.signal(place.tenant, place.sandbox, process.pid, "KILL")
                    elif tag is not None and tag.id not in self._all and len(self._all) < MOST_CONTEXTS:
                        await self._know(tag, process.pid)
            self._found = True

    async def _know(self, tag: Tag, pid: int) -> None:
        place = self._place
        live = await place.engine.processes.kernel_again(place.tenant, place.sandbox, pid)
        unused = tag.usual and tag.language not in place.lost
        self._added(Context(place, tag, Kernel(live, again=True), unused=unused))
        if tag.usual:
            self._defaults[sources.KERNELS[tag.language]] = tag.id

    def all(self) -> list[Context]:
        """Every context, the oldest first."""
        for language in DEFAULTS:
            self.default(language)
        return list(self._all.values())

    def default(self, language: str) -> Context:
        """The one for cells that name a language only."""
        kernel = sources.KERNELS[language]
        found = self._all.get(self._defaults.get(kernel, ""))
        if found is None:
            untold = SERVER_AGAIN if kernel in self._place.lost else ""
            found = self._added(Context(self._place, _new(kernel, HOME, usual=True), untold=untold))
            self._defaults[kernel] = found.id
        return found

    def get(self, context_id: str) -> Context:
        """One by its id. Raises NotFound."""
        found = self._all.get(context_id)
        if found is None:
            raise NotFound(f"context {context_id[:64]!r} not found")
        return found

    async def create(self, language: str, cwd: str) -> Context:
        """A new one, with its kernel. Raises OverQuota, NoKernel, BadRequest."""
        for usual in DEFAULTS:
            self.default(usual)
        context = Context(self._place, _new(language, checks.path(cwd, "cwd"), usual=False))
        if len(self._all) >= MOST_CONTEXTS:
            raise OverQuota(f"a sandbox has at most {MOST_CONTEXTS} contexts", remediation="remove one")
        self._added(context)
        try:
            await context.warm()
        except BaseException:
            self.remove(context.id)
            raise
        return context

    def _added(self, context: Context) -> Context:
        self._all[context.id] = context
        return context

    def remove(self, context_id: str) -> None:
        """End one and forget it. Raises NotFound."""
        self.get(context_id).remove()
        del self._all[context_id]

    def end(self) -> None:
        """The sandbox is gone."""
        for context in self._all.values():
            context.lose()
        self._all.clear()
