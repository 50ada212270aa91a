"""A reader of tar streams that trusts nothing in them: strict headers, bounded names, no sparse files.

It only reads. What its members are called decides nothing on any file system: see unpack.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

BLOCK: Final = 512
CHUNK: Final = 256 * 1024
NAME_BYTES: Final = 64 * 1024
RECORDS_BYTES: Final = 1024 * 1024
_ZEROS: Final = bytes(BLOCK)
_RECORD: Final = re.compile(rb"([0-9]{1,9}) ([^=]{1,256})=", re.DOTALL)
_KINDS: Final = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hard", b"2": "link",
    b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe",
}  # fmt: skip
_CAPABILITY: Final = b"SCHILY.xattr.security.capability"


class LayerError(Exception):
    """A layer is not what a layer may be: a stable code, and words with the path in them."""

    def __init__(self, code: str, cause: str) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, as it says of itself."""

    kind: str
    path: str
    target: str
    size: int
    mode: int
    mtime: int
    has_capability: bool
    has_attributes: bool


class Source(Protocol):
    """Where the bytes come from."""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""


def damaged(what: str) -> LayerError:
    """Return the refusal of a stream that is no archive."""
    return LayerError("image_layer_damaged", f"a layer is damaged: {what}")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _until_nul(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes, what: str) -> int:
    """Octal digits, or the binary form that GNU tar uses for what octal cannot say."""
    if raw[:1] == b"\x80":
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b"\0 ")
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise damaged(f"{what} is no number")
    return int(digits or b"0", 8)


def _checksum_fits(header: bytes) -> bool:
    blank = header[:148] + b" " * 8 + header[156:]
    given = _number(header[148:156], "a checksum")
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)
    return given in {sum(blank), signed}


def _records(raw: bytes) -> dict[bytes, bytes]:
    """Read pax records: LENGTH KEY=VALUE and the end of a line, each."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(raw):
        head = _RECORD.match(raw, at)
        end = at + int(head[1]) if head else 0
        if not head or end > len(raw) or end <= head.end() or raw[end - 1 : end] != b"\n":
            raise damaged("an extended header is malformed")
        found[head[2]] = raw[head.end() : end - 1]
        at = end
    return found


def _seconds(raw: bytes) -> int:
    found = re.match(rb"-?[0-9]{1,15}", raw)
    return int(found[0]) if found else 0


class Archive:
    """The members of one tar stream, in order; `chunks` gives the content of the one that came last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Every member. Raises LayerError for a stream that is none, or has a sparse file."""
        while (header := self._header()) is not None:
            records: dict[bytes, bytes] = {}
            name = target = None
            kind = header[156:157]
            while kind in b"LKxg":
                body = self._body(header, NAME_BYTES if kind in b"LK" else RECORDS_BYTES)
                if kind == b"L":
                    name = _until_nul(body)
                elif kind == b"K":
                    target = _until_nul(body)
                elif kind == b"x":
                    records = _records(body)
                header = self._header()
                if header is None:
                    raise damaged("it ends within a member")
                kind = header[156:157]
            yield self._member(header, kind, records, name, target)

    def chunks(self) -> Iterator[bytes]:
        """The content of the member that came last."""
        while self._left:
            yield self._exactly(min(self._left, CHUNK), content=True)

    def _header(self) -> bytes | None:
        for _ in self.chunks():
            pass
        self._exactly(self._padding)
        self._padding = 0
        header = self._source.read(BLOCK)
        if header in {b"", _ZEROS}:
            return None
        if len(header) != BLOCK or not _checksum_fits(header):
            raise damaged("a header's checksum is wrong")
        return header

    def _exactly(self, size: int, *, content: bool = False) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise damaged("it ends within a member")
        if content:
            self._left -= size
        return data

    def _body(self, header: bytes, most: int) -> bytes:
        size = _number(header[124:136], "a size")
        if size > most:
            raise LayerError("image_name_too_long", f"a layer has an extended header of {size} bytes")
        body = self._exactly(size)
        self._exactly(-size % BLOCK)
        return body

    def _member(
        self, header: bytes, kind: bytes, records: dict[bytes, bytes], name: bytes | None, target: bytes | None
    ) -> Member:
        path = _text(records.get(b"path", name if name is not None else self._name(header)))
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in records):
            raise LayerError("image_sparse_file", f"a layer has a sparse file: {path!r:.200}")
        if kind not in _KINDS:
            raise damaged(f"{path!r:.200} is of a kind that layers do not have")
        what = "folder" if _KINDS[kind] == "file" and path.endswith("/") else _KINDS[kind]
        # Only files have content, whatever the header of another kind says.
        self._left = self._size(header, records) if what == "file" else 0
        self._padding = -self._left % BLOCK
        return Member(
            kind=what,
            path=path,
            target=_text(records.get(b"linkpath", target if target is not None else _until_nul(header[157:257]))),
            size=self._left,
            mode=_number(header[100:108], "a mode") & 0o7777,
            mtime=_seconds(records[b"mtime"]) if b"mtime" in records else _number(header[136:148], "a time"),
            has_capability=_CAPABILITY in records,
            has_attributes=any(b".xattr." in key for key in records),
        )

    @staticmethod
    def _size(header: bytes, records: dict[bytes, bytes]) -> int:
        given = records.get(b"size")
        if given is None:
            return _number(header[124:136], "a size")
        if not re.fullmatch(rb"[0-9]{1,18}", given):
            raise damaged("a size is no number")
        return int(given)

    @staticmethod
    def _name(header: bytes) -> bytes:
        name = _until_nul(header[:100])
        prefix = _until_nul(header[345:500]) if header[257:263] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name
