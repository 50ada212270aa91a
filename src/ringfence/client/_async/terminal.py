"""Terminals and raw connections into a sandbox: bytes both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import msgspec

from ringfence import wire
from ringfence.client._async.link import AsyncLink
from ringfence.client.calls import decoded
from ringfence.client.results import fault


class _AsyncChannel:
    """What a terminal and a raw connection share."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect; closing twice does nothing."""
        await self._link.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.receive()) is not None:
            yield data

    async def send(self, data: str | bytes) -> None:
        """Send bytes, or text as UTF-8."""
        await self._link.send(data.encode() if isinstance(data, str) else data)

    async def receive(self, timeout: float | None = None) -> bytes | None:
        """The next bytes, or None at the end. Raises DeadlineExceeded when none come in time."""
        while True:
            message = await self._link.receive(timeout)
            if not isinstance(message, str):
                return message
            self._told(decoded(wire.TerminalOutput, message.encode()))

    async def end_input(self) -> None:
        """Tell the other side that nothing more will be sent; its output still arrives."""
        await self._control(wire.TerminalInput(eof=True))

    async def _control(self, message: wire.TerminalInput) -> None:
        await self._link.send(msgspec.json.encode(message).decode())

    def _told(self, message: wire.TerminalOutput) -> None:
        if message.error is not None:
            raise fault(message.error)


class AsyncTerminal(_AsyncChannel):
    """A program on a terminal. What it writes is what a terminal would be sent, escape sequences included.

    Print it to a real terminal only when you trust the program: escape sequences can do more than colour text.
    """

    def __init__(self, link: AsyncLink) -> None:
        super().__init__(link)
        self.exit: wire.Exit | None = None

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal a new size."""
        await self._control(wire.TerminalInput(resize=wire.PtySize(cols=cols, rows=rows)))

    async def signal(self, name: str | int) -> None:
        """Send the program a signal."""
        await self._control(wire.TerminalInput(signal=name))

    def _told(self, message: wire.TerminalOutput) -> None:
        super()._told(message)
        if message.exit is not None:
            self.exit = message.exit


class AsyncTunnelLink(_AsyncChannel):
    """One connection to a port inside a sandbox."""
