"""Streams cut into pieces without any I/O: lines of JSON, and server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ringfence.client.errors import Unreachable

MOST: Final = 128 * 1024 * 1024  # a last line may carry collected files; a server that sends more is broken


class Lines:
    """Bytes in, whole lines out. A line past MOST is refused rather than kept."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield b"".join([*self._kept, line]).removesuffix(b"\r")
            self._kept, self._size = [], 0
        if rest:
            self._kept.append(rest)
            self._size += len(rest)
        if self._size > MOST:
            raise Unreachable(f"the server sent a line of more than {MOST} bytes", code="bad_answer")

    def complete(self) -> bool:
        """Whether nothing is left over; False at the end of a stream means it was cut."""
        return not self._kept


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: its name, its cursor and its data."""

    name: str
    id: str
    data: str


class ServerEvents:
    """Bytes in, server-sent events out; comments (a server's keep-alive) are dropped."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._name, self._id = "message", ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events that `data` completes."""
        for line in self._lines.feed(data):
            if line:
                self._field(line.decode("utf-8", "replace"))
            elif self._data:
                yield ServerEvent(self._name, self._id, "\n".join(self._data))
                self._name, self._data = "message", []

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id":
            self._id = value
