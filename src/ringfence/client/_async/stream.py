"""Output as it is written: an iterator of chunks that ends in a result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from ringfence import wire
from ringfence.client._async.transport import AsyncBody, AsyncTransport
from ringfence.client.calls import Call, decoded
from ringfence.client.deadline import Deadline
from ringfence.client.errors import Unreachable
from ringfence.client.lines import Lines
from ringfence.client.results import (
    Chunk,
    ProcessResult,
    RunResult,
    chunk,
    fault,
    process_result,
    run_result,
    with_output,
)
from ringfence.domain.errors import Conflict

R = TypeVar("R", bound=RunResult | ProcessResult)
OnText = Callable[[str], object]


class AsyncStream(Generic[R]):
    """A program that is running elsewhere. Iterate over its output; afterwards `result` says how it ended.

    Opened by `async with` or by the first step of the iteration. Closing it early (leaving the `with`) disconnects:
    a one-shot run is then stopped, and so is a process that was not detached.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        call: Call,
        seconds: float | None,
        ended: Callable[[wire.Line], R | None],
        *,
        quiet: float | None = None,
    ) -> None:
        self._transport = transport
        self._call = call
        self._seconds = seconds
        self._quiet = quiet
        self._ended = ended
        self._body: AsyncBody | None = None
        self._result: R | None = None
        self.started = wire.Started()

    @property
    def result(self) -> R:
        """How the program ended, once the output has been read to its end."""
        if self._result is None:
            raise Conflict("the stream has not ended yet", code="not_ended", remediation="read it to its end first")
        return self._result

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect; closing twice does nothing."""
        if self._body is not None:
            await self._body.aclose()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        body = await self._open()
        lines = Lines()
        async with body:
            async for piece in body.pieces():
                for line in lines.feed(piece):
                    found = self._take(decoded(wire.Line, line)) if line else None
                    if found is not None:
                        yield found
                    if self._result is not None:
                        return
        raise Unreachable("the stream broke off before the program's fate was told", code="stream_cut")

    async def wait(self, on_stdout: OnText | None = None, on_stderr: OnText | None = None) -> R:
        """Read to the end, hand each piece of text on, and return the result with all the output in it."""
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        heard = {"stdout": on_stdout, "stderr": on_stderr}
        async for piece in self:
            kept[piece.stream].append(piece.data)
            listener = heard[piece.stream]
            if listener is not None:
                listener(piece.text)
        return with_output(self.result, b"".join(kept["stdout"]), b"".join(kept["stderr"]))

    async def _open(self) -> AsyncBody:
        if self._body is None:
            self._body = await self._transport.open(self._call, Deadline(self._seconds, self._quiet))
        return self._body

    def _take(self, line: wire.Line) -> Chunk | None:
        if line.error is not None:
            raise fault(line.error)
        if line.started is not None:
            self.started = line.started
        self._result = self._ended(line)
        return chunk(line)


def run_ended(line: wire.Line) -> RunResult | None:
    """The result in a run's last line."""
    return run_result(line.run) if line.run is not None else None


def process_ended(line: wire.Line) -> ProcessResult | None:
    """The result in a process's last line."""
    return process_result(line.process) if line.process is not None else None
