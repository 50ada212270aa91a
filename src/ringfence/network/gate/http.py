"""The head of a plain HTTP request, and where its body ends; one parser, and what it is unsure of is refused.

One request a connection: a second one could name another host than the first (attack 90), so what follows the first
is not sent on, and the server is told that no more will come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ringfence.domain.names import BadName, heard_name

MOST_HEAD: Final = 32 * 1024
MOST_HEADERS: Final = 128
MOST_LINE: Final = 8 * 1024
MOST_CHUNK_LINE: Final = 256
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.([01])")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,12})(?:;[\t\x20-\x7e]*)?")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# Whatever is about this connection rather than this request; its peer hears "close" instead.
_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade"})
_STARTS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE ")


class BadRequestHead(ValueError):
    """Not a request that may pass; its text says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request, ready to be judged and sent on."""

    method: str
    host: str
    port: int
    path: str  # without its query
    onward: bytes  # the head as the server gets it
    length: int  # of the body; -1: in chunks


def looks_like(data: bytes) -> bool:
    """Whether these first bytes could begin a request. True also while there are too few of them to tell."""
    return any(data[: len(start)] == start[: len(data)] for start in _STARTS)


def _host(value: bytes) -> tuple[str, int]:
    name, colon, port = value.partition(b":")
    if colon and not re.fullmatch(rb"[1-9][0-9]{0,4}", port):
        raise BadRequestHead("its Host has a port that is none")
    try:
        return heard_name(name), int(port) if colon else 80
    except BadName as error:
        raise BadRequestHead(f"its Host {error}") from None


def _headers(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    if len(lines) > MOST_HEADERS:
        raise BadRequestHead("it has too many headers")
    found = []
    for line in lines:
        name, colon, value = line.partition(b":")
        # A blank before the colon or at the start of a line is read by some as part of the line before it.
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadRequestHead("it has a header line that is none")
        found.append((name.lower(), value.strip(b"\t ")))
    return found


def _one(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    values = [value for each, value in headers if each == name]
    if len(values) > 1:
        raise BadRequestHead(f"it has more than one {name.decode().title()}")
    return values[0] if values else None


def _body(headers: list[tuple[bytes, bytes]]) -> int:
    coding, length = _one(headers, b"transfer-encoding"), _one(headers, b"content-length")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise BadRequestHead("the end of its body can be read in two ways")
        return -1
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadRequestHead("its Content-Length is none")
    return int(length) if length is not None else 0


def _target(target: bytes, host: tuple[str, int]) -> bytes:
    """The target as a path. One that names a host must name the same as the Host header."""
    if target.startswith(b"/"):
        return target
    if not target.lower().startswith(b"http://"):
        raise BadRequestHead("its target is neither a path nor an http address")
    place, slash, rest = target[7:].partition(b"/")
    if _host(place) != host:
        raise BadRequestHead("its target names another host than its Host header")
    return slash + rest if slash else b"/"


def head_from(data: bytes) -> tuple[Head, int] | None:
    """The request these bytes begin with, and the size of its head; None while more are needed.

    Raises BadRequestHead with the reason.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MOST_HEAD or (b"\r\n" not in data and len(data) > MOST_LINE):
            raise BadRequestHead("its head is too long")
        if data.startswith(b"PRI "):
            raise BadRequestHead("it is HTTP/2 without TLS, which names a host for every stream")
        return None
    if end > MOST_HEAD:
        raise BadRequestHead("its head is too long")
    first, *rest = data[:end].split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise BadRequestHead("its first line is no HTTP/1 request")
    if line[1] in {b"CONNECT", b"TRACE", b"PRI"}:
        raise BadRequestHead(f"{line[1].decode()} is not carried here")
    headers = _headers(rest)
    host_value = _one(headers, b"host")
    if host_value is None:
        raise BadRequestHead("it names no Host")
    host = _host(host_value)
    if any(name == b"upgrade" for name, _ in headers):
        raise BadRequestHead("it asks to become another protocol")
    length, target = _body(headers), _target(line[2], host)
    return Head(line[1].decode(), *host, _path(target), _onward(line[1], target, headers), length), end + 4


def _path(target: bytes) -> str:
    return target.partition(b"?")[0].partition(b"#")[0].decode("ascii")


def _onward(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head as the server gets it: written anew, so that it reads what we have read."""
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    dropped = _HOP | (named - {b"host", b"content-length", b"transfer-encoding"})
    lines = [name + b": " + value for name, value in headers if name not in dropped]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines, b"connection: close", b"", b""])


class Body:
    """Passes on exactly one body and nothing behind it."""

    def __init__(self, length: int, seen: Callable[[bytes], None] = lambda _: None) -> None:
        """`length` is -1 for chunks. `seen` is called with the body itself, without what frames it."""
        self._seen = seen
        self._chunked = length < 0
        self._left = max(0, length)
        self._pending = b""
        self._trailer = False
        self._tail = False  # the two bytes behind a chunk are next
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        """What of these bytes is to be sent on. Raises BadRequestHead when the framing is broken."""
        if self.done:
            return b""
        if not self._chunked:
            passed = data[: self._left]
            self._left -= len(passed)
            self.done = not self._left
            self._seen(passed)
            return passed
        data = self._pending + data
        passing, at = bytearray(), 0
        while not self.done and (step := self._step(data, at, passing)):
            at += step
        self._pending = data[at:]
        return bytes(passing)

    def _step(self, data: bytes, at: int, passing: bytearray) -> int:
        """Read one piece; gives its size, 0 while it is incomplete."""
        if self._left:
            size = min(self._left, len(data) - at)
            passing += data[at : at + size]
            self._seen(data[at : at + size])
            self._left -= size
            return size
        if self._tail:
            if len(data) - at < 2:
                return 0
            if data[at : at + 2] != b"\r\n":
                raise BadRequestHead("its body has a chunk that does not end where it says")
            self._tail = False
            passing += b"\r\n"
            return 2
        end = data.find(b"\r\n", at, at + MOST_CHUNK_LINE)
        if end < 0:
            if len(data) - at >= MOST_CHUNK_LINE:
                raise BadRequestHead("its body has a line without an end")
            return 0
        line = data[at:end]
        passing += self._last(line) if self._trailer else self._chunk(line)
        return end + 2 - at

    def _chunk(self, line: bytes) -> bytes:
        size = _CHUNK.fullmatch(line)
        if size is None:
            raise BadRequestHead("its body has a chunk without a size")
        self._left = int(size[1], 16)
        self._tail = self._left > 0
        self._trailer = self._left == 0
        return size[1] + b"\r\n"

    def _last(self, line: bytes) -> bytes:
        # Trailers could be taken for headers; nothing here needs them.
        if line:
            raise BadRequestHead("its body has trailers")
        self.done = True
        return b"\r\n"


def refusal(reason: str) -> bytes:
    """A readable no."""
    text = f"ringfence: denied: {reason}\n".encode("utf-8", "replace")
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"Connection: close\r\nX-Ringfence: denied\r\n\r\n" + text
