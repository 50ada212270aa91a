"""Output of untrusted programs made safe for our own terminal.

A terminal obeys what it is sent: it can be told to type, to copy, to answer, to hide. So only text, line ends, tabs and
plain colours pass; every other control sequence is dropped. This is a filter over a stream: a sequence may arrive in
pieces, and nothing a program leaves unfinished can swallow more than one line.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

ESC: Final = "\x1b"
RESET: Final = "\x1b[0m"
KEPT: Final = frozenset("\n\t\r")
COLOUR: Final = re.compile(r"\x1b\[[0-9;:]{0,48}m")
CSI: Final = re.compile(r"\x1b\[[\x20-\x3f]*[\x40-\x7e]")
SHORT: Final = re.compile(r"\x1b[\x20-\x2f]*[\x30-\x7e]")
STRING: Final = re.compile(r"\x1b[\]PX^_][^\x07\x18\x1a\x1b\n]*(?:\x07|\x18|\x1a|\x1b\\|(?=\x1b)|(?=\n))")
STRING_START: Final = frozenset("]PX^_")
UNFINISHED: Final = 4096  # a longer sequence is no sequence; its bytes are shown as the text they are
# The eight-bit forms of ESC followed by a letter; terminals in some modes obey them too.
C1: Final = {chr(code): ESC + chr(code - 0x40) for code in range(0x80, 0xA0)}
SPECIAL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


class Sanitiser:
    """Bytes from one stream in, text for a terminal out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes, *, last: bool = False) -> str:
        """The part of what has come so far that may be printed."""
        text = self._held + SPECIAL.sub(
            lambda match: C1.get(match.group(), match.group()), self._decoder.decode(data, last)
        )
        self._held = ""
        out: list[str] = []
        at = 0
        while at < len(text):
            at = self._step(text, at, out, last=last)
        return "".join(out)

    def close(self) -> str:
        """What was still held back, and an end to any colour that was left on."""
        rest = self.feed(b"", last=True)
        return rest + (RESET if self._coloured else "")

    def _step(self, text: str, at: int, out: list[str], *, last: bool) -> int:
        if text[at] != ESC:
            found = SPECIAL.search(text, at)
            end = found.start() if found else len(text)
            if end == at:  # a control character by itself
                out.append(text[at] if text[at] in KEPT else "")
                return at + 1
            out.append(text[at:end])
            return end
        return self._sequence(text, at, out, last=last)

    def _sequence(self, text: str, at: int, out: list[str], *, last: bool) -> int:
        colour = COLOUR.match(text, at)
        if colour:
            out.append(colour.group())
            self._coloured = colour.group() not in {RESET, "\x1b[m"}
            return colour.end()
        second = text[at + 1 : at + 2]
        pattern = STRING if second in STRING_START else CSI if second == "[" else SHORT
        found = pattern.match(text, at) if second else None
        if found:
            return found.end()
        if not last and len(text) - at < UNFINISHED and _may_continue(text[at + 1 :], second):
            self._held = text[at:]
            return len(text)
        return at + 1  # the escape itself is dropped and what follows is plain text


def _may_continue(rest: str, second: str) -> bool:
    """Whether more bytes could still make this a whole sequence."""
    if second and second in STRING_START:
        return True
    if second == "[":
        return all("\x20" <= char <= "\x3f" for char in rest[1:])
    return all("\x20" <= char <= "\x2f" for char in rest)


def clean(text: str) -> str:
    """One string from elsewhere, made fit for one line of a table: no control character survives."""
    return SPECIAL.sub("\N{REPLACEMENT CHARACTER}", text)


BYTES_STRING: Final = re.compile(
    rb"(?:\x1b[\]PX^_]|\xc2[\x90\x98\x9d\x9e\x9f])[^\x07\x18\x1a\x1b]*(?:\x07|\x18|\x1a|\x1b\\|\xc2\x9c|(?=\x1b))"
)
BYTES_START: Final = re.compile(
    rb"(?:\x1b(?:[\]PX^_][^\x07\x18\x1a\x1b]*\x1b?)?|\xc2(?:[\x90\x98\x9d\x9e\x9f][^\x07\x18\x1a\x1b]*\x1b?)?)\Z"
)


class StringFilter:
    """For a real terminal session: everything passes except control strings.

    A full-screen program needs the cursor and the colours. It does not need what strings can do: set the title and have
    it typed back, write the clipboard, define keys, draw pictures.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The part of what has come so far that may be shown."""
        text = BYTES_STRING.sub(b"", self._held + data)
        unfinished = BYTES_START.search(text)
        if unfinished is None:
            self._held = b""
            return text
        self._held = text[unfinished.start() :]
        if len(self._held) > UNFINISHED:  # no string is that long: drop it, and its beginning with it
            self._held = self._held[:2]
        return text[: unfinished.start()]
