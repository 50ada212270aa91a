"""A lone run in passing: its output comes from two pipes, its fate from a page or in the kernel's own words."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import struct
import termios
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.guest import frames, init, lone
from ringfence.node.relay import OUTPUT, Relay

_INT: Final = struct.Struct("i")


def waiting(fd: int) -> int:
    """How many bytes a pipe holds."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))[0])


def _end_of(fate: dict[str, Any]) -> bytes:
    return json.dumps({"exit": fate}).encode()


@dataclass(eq=False)
class LoneRelay(Relay):
    """The sink of a lone run's one stream; credit is enforced here, where the pipes are read."""

    beside: tuple[int, int, int] = (-1, -1, -1)
    _credit: int = frames.WINDOW
    _open: dict[int, int] = field(default_factory=dict)  # descriptor -> frame type
    _left: dict[int, int] | None = None  # once its end is known: bytes still to be taken from each pipe
    _answer: bytes | None = None

    def begin(self, payload: bytes) -> None:
        """Send the order, and read what is written from now on."""
        super().begin(payload)
        self._open = dict(zip(self.beside, (frames.STDOUT, frames.STDERR), strict=False))
        self._listen()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._open:
            loop.add_reader(fd, self._readable, fd)

    def _deaf(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._open:
            loop.remove_reader(fd)

    def _readable(self, fd: int) -> None:
        if not self._credit:
            self._deaf()
            return
        try:
            data = os.read(fd, min(self._credit, frames.MAX_DATA))
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(fd)  # nobody is left who could write
            del self._open[fd]
            if not self._open and self._left is None:
                self._closed()
            return
        if self._left is not None:
            data = data[: self._left[fd]]
            self._left[fd] -= len(data)
        self._credit -= len(data)
        self._output(self._open[fd], data)
        self.outlet.throttle(self.live.link)

    def _closed(self) -> None:
        """Nobody can write any more. If that is because the interpreter came to its end, its exit code is there."""
        said = lone.fate(os.pread(self.beside[2], lone.FATE_SIZE, 0))
        if said is not None:
            self._over(_end_of(said))

    def on_frame(self, type_: int, payload: bytes) -> None:
        """From the sandbox. Raises FrameError for what no lone run says."""
        if type_ == frames.END:
            self._over(payload)
        elif type_ == frames.WAITED:
            self._over(_end_of(init.answer(payload)))
        elif type_ in OUTPUT:
            raise frames.FrameError("a lone run's output does not come in frames")
        else:
            super().on_frame(type_, payload)

    def on_lost(self) -> None:
        """The sandbox is gone; what it wrote before is still in the pipes, and nobody will wait for room to take it."""
        self._over(None)
        if not self.ended.done():
            self._finish(None)

    def _over(self, answer: bytes | None) -> None:
        """Its end is known: what is in the pipes now is its output, whatever a child of its writes later."""
        if self._left is not None or self.ended.done():
            return
        self._answer = answer
        self._left = {fd: waiting(fd) for fd in self._open}
        self._take_rest()

    def _take_rest(self) -> None:
        for fd in list(self._open):
            while self._left is not None and self._left[fd] and self._credit and not self.ended.done():
                self._readable(fd)
        if self._left is not None and not any(self._left[fd] for fd in self._open):
            self._finish(self._answer)

    def _finish(self, answer: bytes | None) -> None:
        self._deaf()
        self._open.clear()
        super()._finish(answer)

    def from_above(self, type_: int, payload: bytes) -> None:
        """Credit is ours to keep; there is nothing else that a lone run could be told."""
        if type_ == frames.CREDIT:
            self._credit += frames.credit_of(payload)
            if self._left is not None:
                self._take_rest()
            else:
                self._listen()
