"""multipart/form-data, piece by piece: a part's contents are handed on as they come, whatever their size.

A part's file name is kept whole: it is the path where the file shall be, and a parser that strips directories would
put files elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import unquote

from ringfence.domain.errors import BadRequest

MOST_HEAD: Final = 16 * 1024  # bytes of one part's headers
MOST_PARTS: Final = 1000
_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_PARAMETER: Final = re.compile(r';\s*([a-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.IGNORECASE)


def _bad(cause: str) -> BadRequest:
    return BadRequest(f"multipart: {cause}", code="bad_multipart")


def boundary_of(content_type: str) -> bytes:
    """The boundary a header names. Raises BadRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _bad("the content type names no boundary")
    return (found[1] or found[2]).encode("latin-1", "replace")


def _disposed(head: bytes) -> dict[str, str]:
    """The parameters of Content-Disposition. Raises BadRequest."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            found = {
                m[1].lower(): _plain(m[2]) if m[2] is not None else m[3].strip() for m in _PARAMETER.finditer(value)
            }
            extended = found.get("filename*")
            if extended is not None:
                found["filename"] = unquote(extended.partition("''")[2])
            return found
    raise _bad("a part without Content-Disposition")


def _plain(quoted: str) -> str:
    """A quoted value, its escapes undone: browsers write a quote as %22, others put a backslash before it."""
    text = re.sub(r'\\(["\\])', r"\1", quoted)
    for code, mark in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n")):
        text = text.replace(code, mark)
    return text


class Parts:
    """The parts of a body. Take each one's contents before the next is asked for."""

    def __init__(self, chunks: AsyncIterator[bytes], boundary: bytes) -> None:
        self._chunks = chunks
        self._mark = b"\r\n--" + boundary
        self._held = bytearray(b"\r\n")  # the first boundary need not follow a line
        self._inside = False
        self._count = 0

    async def _more(self) -> None:
        try:
            self._held += await anext(self._chunks)
        except StopAsyncIteration:
            raise _bad("the body ends before its last boundary") from None

    async def _until(self, mark: bytes, most: int) -> bytes:
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > most:
                raise _bad("what stands before a boundary is too long")
            await self._more()
        found = bytes(self._held[:at])
        del self._held[: at + len(mark)]
        return found

    async def next(self) -> dict[str, str] | None:
        """The next part's name and file name; None after the last. Raises BadRequest."""
        if self._inside:
            async for _ in self.contents():
                continue
        elif not self._count:
            await self._until(self._mark, MOST_HEAD)
        while len(self._held) < 2:
            await self._more()
        if self._held[:2] == b"--":
            async for _ in self._chunks:
                continue
            return None
        self._count += 1
        if self._held[:2] != b"\r\n" or self._count > MOST_PARTS:
            raise _bad("a boundary is followed by something else" if self._count <= MOST_PARTS else "too many parts")
        head = await self._until(b"\r\n\r\n", MOST_HEAD)
        self._inside = True
        return _disposed(head)

    async def contents(self) -> AsyncIterator[bytes]:
        """The bytes of the part that next() named, to its end. Raises BadRequest when the body ends first."""
        while (at := self._held.find(self._mark)) < 0:
            keep = len(self._mark) - 1
            if len(self._held) > keep:
                piece = bytes(self._held[:-keep])
                del self._held[:-keep]
                yield piece
            await self._more()
        end = at + len(self._mark)
        while len(self._held) < end + 2:  # a file is whole when its boundary is, not before
            await self._more()
        if bytes(self._held[end : end + 2]) not in {b"--", b"\r\n"}:
            raise _bad("a boundary is followed by something else")
        piece = bytes(self._held[:at])
        del self._held[: at + len(self._mark)]
        self._inside = False
        if piece:
            yield piece
