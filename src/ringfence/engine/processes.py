"""Processes of a living sandbox: started, followed, fed, signalled. A named process outlives its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import msgspec

from ringfence import wire
from ringfence.domain.errors import RingfenceError, SandboxLost
from ringfence.domain.process import How
from ringfence.engine import checks, output
from ringfence.engine.answers import guest_control
from ringfence.engine.link import Collector, NodeStream, Reader
from ringfence.engine.programs import Fate, fate, feed, finished
from ringfence.engine.sandboxes import Sandboxes, answering
from ringfence.guest import frames

_encode: Final = msgspec.json.Encoder().encode
NOWHERE: Final = "/dev/null"  # where the source of a program of ours is kept: its owner finds no file of it


def started_pid(payload: bytes) -> int | None:
    """The pid a message announces, if that is what it does. Raises SandboxLost for a lie."""
    started = guest_control(payload).started
    return started.pid if started is not None else None


class LiveProcess:
    """A process being followed: frames to take, input to give, a fate at the end."""

    def __init__(self, owner: Processes, tenant: str, sandbox_id: str) -> None:
        self.reader = Reader()
        self.pid = 0
        self._owner = owner
        self._tenant = tenant
        self._sandbox_id = sandbox_id

    async def begun(self) -> None:
        """Return once the process is known to run. Raises what node or agent raised instead."""
        async with answering():
            item = await self.reader.next()
        if item is None:
            await self.fate()
        elif item[0] == frames.CONTROL:
            self.pid = started_pid(item[1]) or 0
        if not self.pid:
            raise SandboxLost("the sandbox's agent broke the protocol", remediation="create a new sandbox")

    async def fate(self) -> Fate:
        """How it ended, once all output was taken."""
        return await self._owner.fate(self._tenant, self._sandbox_id, self.reader)

    async def result(self) -> wire.ProcessResult:
        """The same as an answer without output."""
        ended = await self.fate()
        return wire.ProcessResult(
            pid=self.pid,
            exit=ended.exit,
            truncated=ended.exit.how is How.OUTPUT_CAPPED,
            usage=ended.usage,
            timings=ended.timings,
        )

    def resize(self, size: wire.PtySize) -> None:
        """Tell its terminal."""
        self.reader.control(_encode({"resize": {"cols": size.cols, "rows": size.rows}}))

    def leave(self) -> None:
        """Follow it no more. What was not started detached ends with this."""
        self.reader.cancel()

    def kill(self) -> None:
        """End it with its group, and follow it no more."""
        self.signal("KILL")
        self.leave()

    def signal(self, wanted: str | int) -> None:
        """Signal it and its group."""
        self.reader.control(_encode({"signal": checks.signal_number(wanted)}))


class Processes:
    """What can be done with processes in a living sandbox. All raise NotFound, Conflict or BadRequest."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def fate(self, tenant: str, sandbox_id: str, stream: NodeStream) -> Fate:
        """A program's fate; memory kills seen before are not blamed on it."""
        before = self._sandboxes.oom_kills(sandbox_id)
        try:
            ended = fate(await stream.ended, before)
        except RingfenceError as error:
            raise await self._sandboxes.explained(tenant, sandbox_id, error) from None
        self._sandboxes.saw_oom_kills(sandbox_id, ended.oom_kills)
        return ended

    async def collected(self, tenant: str, sandbox_id: str, request: wire.ProcessRequest) -> wire.ProcessResult:
        """Run to its end. Cancelling stops it."""
        words = checks.process(request)
        stream = Collector(self._sandboxes.policy.collected_bytes)
        await self._sandboxes.open(tenant, sandbox_id, stream, words, program=True)
        try:
            await finished(stream, checks.stdin_bytes(request.stdin))
        except RingfenceError as error:
            raise await self._sandboxes.explained(tenant, sandbox_id, error) from None
        ended = await self.fate(tenant, sandbox_id, stream)
        truncated = stream.truncated or ended.exit.how is How.OUTPUT_CAPPED
        return wire.ProcessResult(
            pid=(started_pid(stream.controls[0]) or 0) if stream.controls else 0,
            exit=ended.exit,
            truncated=truncated,
            timings=ended.timings,
            usage=ended.usage,
            **output.fields(stream.out, stream.err, truncated=truncated),
        )

    @asynccontextmanager
    async def following(self, tenant: str, sandbox_id: str, request: wire.ProcessRequest) -> AsyncIterator[LiveProcess]:
        """Start a process and follow it; leaving stops it unless it was detached."""
        words = checks.process(request)
        async with self._live(tenant, sandbox_id, words, checks.stdin_bytes(request.stdin)) as live:
            yield live

    @asynccontextmanager
    async def attached(
        self, tenant: str, sandbox_id: str, pid: int, *, replay: bool = True
    ) -> AsyncIterator[LiveProcess]:
        """Follow a process that runs already: its tail with `replay`, then live; leaving leaves it alone."""
        words = {"op": "attach", "pid": pid, "replay": replay}
        async with self._live(tenant, sandbox_id, words, None) as live:
            yield live

    @asynccontextmanager
    async def _live(
        self, tenant: str, sandbox_id: str, words: dict[str, Any], stdin: bytes | None
    ) -> AsyncIterator[LiveProcess]:
        live = LiveProcess(self, tenant, sandbox_id)
        await self._sandboxes.open(tenant, sandbox_id, live.reader, words, program=True)
        feeding: asyncio.Task[None] | None = None
        try:
            await live.begun()
            if stdin is not None:
                feeding = asyncio.get_running_loop().create_task(feed(live.reader, stdin))
            yield live
        finally:
            if feeding is not None:
                feeding.cancel()
            live.reader.cancel()

    async def detached(self, tenant: str, sandbox_id: str, request: wire.ProcessRequest) -> wire.ProcessStarted:
        """Start a process and leave it to itself."""
        words = checks.process(request)
        live = LiveProcess(self, tenant, sandbox_id)
        await self._sandboxes.open(tenant, sandbox_id, live.reader, words, program=True)
        try:
            await live.begun()
            await feed(live.reader, checks.stdin_bytes(request.stdin))
        finally:
            live.reader.cancel()
        return wire.ProcessStarted(pid=live.pid)

    async def kernel(self, tenant: str, sandbox_id: str, code: str, env: Mapping[str, str], tag: str) -> LiveProcess:
        """Start Python source as a kernel: a program that is spoken to by its input while it lives.

        The caller bounds what it says, and ends it by kill(): it outlives whoever merely leaves it.
        """
        words = {"op": "run", "code": code, "filename": NOWHERE, "env": dict(env), "stdin": True}
        return await self._kernel(tenant, sandbox_id, {**words, "tag": tag, "detach": True}, LiveProcess.kill)

    async def kernels(self, tenant: str, sandbox_id: str) -> list[wire.Process]:
        """Those that run, whoever began them."""
        listed = await self.list(tenant, sandbox_id)
        return [each for each in listed if each.running and each.kind == "run" and each.argv[:1] == [NOWHERE]]

    async def kernel_again(self, tenant: str, sandbox_id: str, pid: int) -> LiveProcess:
        """Follow a kernel that runs already, from now on."""
        words = {"op": "attach", "pid": pid, "replay": False}
        return await self._kernel(tenant, sandbox_id, words, LiveProcess.leave)

    async def _kernel(
        self, tenant: str, sandbox_id: str, words: dict[str, Any], failed: Callable[[LiveProcess], None]
    ) -> LiveProcess:
        live = LiveProcess(self, tenant, sandbox_id)
        await self._sandboxes.open(tenant, sandbox_id, live.reader, words, kernel=True)
        try:
            await live.begun()
        except BaseException:
            failed(live)
            raise
        return live

    async def list(self, tenant: str, sandbox_id: str) -> list[wire.Process]:
        """Every process started through the API."""
        end = await self._sandboxes.ask(tenant, sandbox_id, {"op": "list"})
        return [process.public() for process in end.processes]

    async def signal(self, tenant: str, sandbox_id: str, pid: int, wanted: str | int) -> None:
        """Signal a process and its group."""
        words = {"op": "signal", "pid": pid, "signal": checks.signal_number(wanted)}
        await self._sandboxes.ask(tenant, sandbox_id, words)

    async def resize(self, tenant: str, sandbox_id: str, pid: int, size: wire.PtySize) -> None:
        """Resize a process's terminal."""
        await self._sandboxes.ask(
            tenant, sandbox_id, {"op": "resize", "pid": pid, "cols": size.cols, "rows": size.rows}
        )

    async def input(
        self,
        tenant: str,
        sandbox_id: str,
        pid: int,
        chunks: AsyncIterator[bytes],
        *,
        close: bool,
        into: Literal["", "stdin", "pty"] = "",
    ) -> None:
        """Give a process more input; `close` ends its input after. With `into` it must have such an input, open."""
        stream = Collector(0)
        words = {"op": "input", "pid": pid, "close": close, "into": into}
        await self._sandboxes.open(tenant, sandbox_id, stream, words)
        try:
            async for chunk in chunks:
                if not await stream.send(chunk):
                    break
            else:
                stream.eof()
            await self._sandboxes.answered(tenant, sandbox_id, stream)
        finally:
            stream.cancel()
