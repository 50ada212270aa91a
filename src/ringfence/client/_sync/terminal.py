# Generated from client/_async/terminal.py by tools/unasync.py: edit that file, not this one.

"""Terminals and raw connections into a sandbox: bytes both ways."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import msgspec

from ringfence import wire
from ringfence.client._sync.link import Link
from ringfence.client.calls import decoded
from ringfence.client.results import fault


class _Channel:
    """What a terminal and a raw connection share."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; closing twice does nothing."""
        self._link.close()

    def __iter__(self) -> Iterator[bytes]:
        while (data := self.receive()) is not None:
            yield data

    def send(self, data: str | bytes) -> None:
        """Send bytes, or text as UTF-8."""
        self._link.send(data.encode() if isinstance(data, str) else data)

    def receive(self, timeout: float | None = None) -> bytes | None:
        """The next bytes, or None at the end. Raises DeadlineExceeded when none come in time."""
        while True:
            message = self._link.receive(timeout)
            if not isinstance(message, str):
                return message
            self._told(decoded(wire.TerminalOutput, message.encode()))

    def end_input(self) -> None:
        """Tell the other side that nothing more will be sent; its output still arrives."""
        self._control(wire.TerminalInput(eof=True))

    def _control(self, message: wire.TerminalInput) -> None:
        self._link.send(msgspec.json.encode(message).decode())

    def _told(self, message: wire.TerminalOutput) -> None:
        if message.error is not None:
            raise fault(message.error)


class Terminal(_Channel):
    """A program on a terminal. What it writes is what a terminal would be sent, escape sequences included.

    Print it to a real terminal only when you trust the program: escape sequences can do more than colour text.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.exit: wire.Exit | None = None

    def resize(self, cols: int, rows: int) -> None:
        """Give the terminal a new size."""
        self._control(wire.TerminalInput(resize=wire.PtySize(cols=cols, rows=rows)))

    def signal(self, name: str | int) -> None:
        """Send the program a signal."""
        self._control(wire.TerminalInput(signal=name))

    def _told(self, message: wire.TerminalOutput) -> None:
        super()._told(message)
        if message.exit is not None:
            self.exit = message.exit


class TunnelLink(_Channel):
    """One connection to a port inside a sandbox."""
