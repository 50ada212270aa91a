"""Where a body ends, byte by byte. A body takes from the front of a buffer what is its own, and nothing beyond.

No I/O. `take` returns b"" when the buffer holds nothing more of the body for now; `done` says that it is whole.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from ringfence.edge.parse import Framing, Malformed, bare, fields_of

PIECE: Final = 64 * 1024
MOST_SIZE_LINE: Final = 16  # hexadecimal digits of a chunk's size; no extension is read
MOST_TRAILER: Final = 8 * 1024
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,12}")


class Body(Protocol):
    """A body being read."""

    done: bool

    def take(self, buffer: bytearray) -> bytes:
        """Remove and return the next bytes of the body. Raises Malformed."""


class _Length:
    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def take(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer[: min(self._left, PIECE)])
        del buffer[: len(piece)]
        self._left -= len(piece)
        self.done = self._left == 0
        return piece


class _Rest:
    """Everything until the connection ends; who reads it says when that is."""

    done = False

    def take(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer[:PIECE])
        del buffer[: len(piece)]
        return piece


class _Chunks:
    """Chunked coding without extensions; trailers are read, bounded, and dropped."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # of the current chunk
        self._after = False  # the CRLF behind a chunk is due
        self._last = False  # the chunk of size 0 came: trailers follow

    def take(self, buffer: bytearray) -> bytes:
        while not self.done:
            if self._left:
                return self._data(buffer)
            if not (self._trailers(buffer) if self._last else self._size(buffer)):
                break
        return b""

    def _data(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer[: min(self._left, PIECE)])
        del buffer[: len(piece)]
        self._left -= len(piece)
        self._after = self._left == 0
        return piece

    def _size(self, buffer: bytearray) -> bool:
        """Read the next chunk's size; False when it is not all there."""
        if self._after:
            if len(buffer) < 2:
                return False
            if buffer[:2] != b"\r\n":
                raise Malformed("a chunk is longer than it said", code="bad_chunk")
            del buffer[:2]
            self._after = False
        end = buffer.find(b"\r\n", 0, MOST_SIZE_LINE + 2)
        if end < 0:
            if len(buffer) > MOST_SIZE_LINE or bare(buffer[:MOST_SIZE_LINE]):
                raise Malformed("a chunk's size is not a plain number", code="bad_chunk")
            return False
        if not _SIZE.fullmatch(buffer, 0, end):
            raise Malformed("a chunk's size is not a plain number", code="bad_chunk")
        self._left = int(buffer[:end], 16)
        self._last = self._left == 0
        del buffer[: end + 2]
        return True

    def _trailers(self, buffer: bytearray) -> bool:
        """Read trailers to their end; False when they are not all there."""
        end = 0 if buffer[:2] == b"\r\n" else buffer.find(b"\r\n\r\n", 0, MOST_TRAILER)
        if end < 0:
            if len(buffer) >= MOST_TRAILER or bare(buffer):
                raise Malformed("the trailers behind a chunked body are too long or malformed", code="bad_trailer")
            return False
        if end:
            lines = bytes(buffer[:end])
            if bare(lines):
                raise Malformed("a trailer ends in a bare CR or LF", code="bad_trailer")
            fields_of(lines.split(b"\r\n"))
        del buffer[: end + 4 if end else 2]
        self.done = True
        return False


def body_of(framing: Framing) -> Body:
    """A reader for a body of this framing."""
    if framing.kind == "chunked":
        return _Chunks()
    return _Rest() if framing.kind == "close" else _Length(framing.length)


def chunk(data: bytes) -> bytes:
    """Bytes as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
