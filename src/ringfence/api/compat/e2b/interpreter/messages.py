"""What a kernel says. It runs a stranger's code, so each line is bounded, read strictly, and believed for nothing."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

MOST_LINE: Final = 12 * 1024 * 1024  # bytes; a kernel of ours keeps its largest result below 8 MiB
Text = Annotated[str, msgspec.Meta(max_length=1024 * 1024)]
Media = Annotated[str, msgspec.Meta(max_length=200)]


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of all messages."""


class Ready(Said, frozen=True, tag="ready"):
    """It can be asked."""


class Started(Said, frozen=True, tag="started"):
    """A cell begins; how many there were, this one included."""

    count: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Output(Said, frozen=True, tag="output"):
    """Text that was printed."""

    name: Annotated[str, msgspec.Meta(pattern="^std(out|err)$")]
    text: Text


class Shown(Said, frozen=True, tag="shown"):
    """A result, or something displayed: its representations by media type."""

    main: bool
    data: dict[Media, Any]


class Failed(Said, frozen=True, tag="error"):
    """The cell raised."""

    name: Text
    value: Text
    traceback: Text


class Done(Said, frozen=True, tag="done"):
    """The cell with this number is over; after the last one the kernel goes."""

    id: int
    last: bool = False


class BrokenProtocol(Exception):
    """What came is not what a kernel of ours says."""


Message = Ready | Started | Output | Shown | Failed | Done
_decoder: Final = msgspec.json.Decoder(Message)


def read(line: bytes) -> Message:
    """One line. Raises BrokenProtocol."""
    try:
        message: Message = _decoder.decode(line)
        return message
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BrokenProtocol("it said something that is no message") from None


class Lines:
    """Bytes in, whole lines out; at most one unfinished line is kept."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Every line that `data` completes. Raises BrokenProtocol for one that is too long."""
        self._kept += data
        if b"\n" not in data:
            if len(self._kept) > MOST_LINE:
                raise BrokenProtocol("it said a line without an end")
            return []
        *lines, rest = self._kept.split(b"\n")
        self._kept = bytearray(rest)
        if any(len(line) > MOST_LINE for line in lines):
            raise BrokenProtocol("it said a line that is too long")
        return [bytes(line) for line in lines]
