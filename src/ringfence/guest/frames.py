"""Frames: the only thing that crosses a sandbox's wall. Shared by guest, node and api.

A frame is: payload length (4 bytes), type (1 byte), stream id (4 bytes), payload; big-endian.
The side that opens a stream chooses its id; ids are not reused within a connection.
A reader never allocates more than one frame's bound, whatever the length field claims.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from ringfence.guest.annotations import TYPE_CHECKING, Final

OPEN: Final = 1  # JSON; the opener asks for something
STDIN: Final = 2  # raw bytes toward the program
STDOUT: Final = 3  # raw bytes from the program (also: file contents, tunnel bytes)
STDERR: Final = 4  # raw bytes from the program
EOF: Final = 5  # no more STDIN (toward the program) or no more output (from it)
CREDIT: Final = 6  # 4 bytes: this many more bytes may be sent on this stream
CONTROL: Final = 7  # JSON; a message on an open stream (resize, signal, started, event)
END: Final = 8  # JSON; the answer, and the last frame of the stream
CANCEL: Final = 9  # empty; the opener lost interest
WAITED: Final = 10  # how the interpreter of a lone run ended, in the kernel's own words (init.py)

TYPES: Final = frozenset(range(OPEN, WAITED + 1))
HEADER: Final = struct.Struct(">IBI")
MAX_DATA: Final = 64 * 1024  # raw frames: keeps one stream from hogging the channel
WAITED_SIZE: Final = 124  # a wait status and a struct statfs (x86_64)
MAX_JSON: Final = 4 * 1024 * 1024  # OPEN, CONTROL, END: holds a program's source
WINDOW: Final = 256 * 1024  # bytes a sender may have unacknowledged on one stream, per direction

_BOUND: Final = {
    OPEN: MAX_JSON,
    STDIN: MAX_DATA,
    STDOUT: MAX_DATA,
    STDERR: MAX_DATA,
    EOF: 0,
    CREDIT: 4,
    CONTROL: MAX_JSON,
    END: MAX_JSON,
    CANCEL: 0,
    WAITED: WAITED_SIZE,
}


class FrameError(Exception):
    """The peer sent something that is not a frame; the connection cannot be trusted further."""


if TYPE_CHECKING:
    from typing import NamedTuple

    class Frame(NamedTuple):
        """One parsed frame."""

        type: int
        stream: int
        payload: bytes
else:
    Frame = namedtuple("Frame", "type stream payload")  # noqa: PYI024 - typing stays out of sandboxes


def encode(type_: int, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises FrameError past the type's bound."""
    if type_ not in _BOUND or len(payload) > _BOUND[type_]:
        raise FrameError(f"frame of type {type_} with {len(payload)} bytes")
    return HEADER.pack(len(payload), type_, stream) + payload


def credit(stream: int, count: int) -> bytes:
    """A CREDIT frame for `count` bytes."""
    return HEADER.pack(4, CREDIT, stream) + struct.pack(">I", count)


def credit_of(payload: bytes) -> int:
    """The count inside a CREDIT frame."""
    if len(payload) != 4:
        raise FrameError("credit frame of wrong length")
    return int.from_bytes(payload, "big")


class Parser:
    """Feeds on bytes, yields frames; keeps at most one unfinished frame."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Start with nothing buffered."""
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Every frame completed by `data`. Raises FrameError at the first lie; feed no more after it."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= 9:
            length, type_, stream = HEADER.unpack_from(buffer, at)
            bound = _BOUND.get(type_)
            if bound is None or length > bound or (type_ == CREDIT and length != 4):
                raise FrameError(f"frame of type {type_} claims {length} bytes")
            if len(buffer) - at - 9 < length:
                break
            frames.append(Frame(type_, stream, bytes(buffer[at + 9 : at + 9 + length])))
            at += 9 + length
        if at:
            del buffer[:at]
        return frames
