"""One strict reading of HTTP/1.1, for both sides. What two readers could read differently is refused, never repaired.

No I/O: bytes in, frozen values out. `Malformed` carries the code a client or a log is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from ringfence.domain.errors import BadRequest

MOST_FIELDS: Final = 128
MOST_LENGTH: Final = 2**53  # of a body: past it, readers of JSON numbers and of C longs differ
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET: Final = re.compile(rb"/[\x21-\x22\x24-\x7e]*")  # no space, no control, no fragment, nothing past ASCII
_DIGITS: Final = re.compile(rb"[0-9]{1,16}")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")  # sixteen bytes in base64
END: Final = b"\r\n\r\n"


class Malformed(BadRequest):
    """Not HTTP/1.1 as we read it; the connection is closed, for nobody knows where the next message begins."""

    default_code: ClassVar[str] = "bad_http"


class Unimplemented(Malformed):
    """A part of HTTP that this edge does not speak."""

    status: ClassVar[int] = 501
    default_code: ClassVar[str] = "not_implemented"


class HeadTooLarge(Malformed):
    """More header bytes, or more headers, than are read."""

    status: ClassVar[int] = 431
    default_code: ClassVar[str] = "head_too_large"


class Field(NamedTuple):
    """One header: its name in lower case, its name as sent, its value without the white space around it."""

    name: bytes
    raw: bytes
    value: bytes


Fields = tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Framing:
    """Where a body ends: after `length` bytes, by its chunks, with the connection, or before it began."""

    kind: str  # "none", "length", "chunked", "close"
    length: int = 0


NO_BODY: Final = Framing("none")


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head."""

    method: bytes
    target: bytes
    minor: int
    fields: Fields
    host: bytes
    framing: Framing

    @property
    def keeps(self) -> bool:
        """Whether the client means to send another request on this connection."""
        return self.minor == 1 and b"close" not in tokens(self.fields, b"connection")

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def only(self, name: bytes) -> bytes | None:
        """The value of a header that was sent exactly once."""
        return only(self.fields, name)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's head."""

    status: int
    minor: int
    reason: bytes
    fields: Fields
    framing: Framing


# --- the head --------------------------------------------------------------------------------------------------------


def bare(data: bytes | bytearray, start: int = 0) -> bool:
    """Whether a line ends in less than CRLF; a CR that is last may still get its LF."""
    found = _BARE.search(data, start)
    return found is not None and found.start() < len(data) - (data[-1:] == b"\r")


def _lines(data: bytes) -> list[bytes]:
    if bare(data) or data.endswith(b"\r"):
        raise Malformed("a line ends in a bare CR or LF", code="bare_line_end")
    return data.split(b"\r\n")


def fields_of(lines: list[bytes]) -> Fields:
    """Header lines as fields. Raises Malformed."""
    if len(lines) > MOST_FIELDS:
        raise HeadTooLarge(f"more than {MOST_FIELDS} headers", code="too_many_headers")
    return tuple(_field(line) for line in lines)


def _field(line: bytes) -> Field:
    if line[:1] in {b" ", b"\t"}:
        raise Malformed("a header is folded over two lines", code="folded_header")
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name):
        raise Malformed("a header's name is not one, or white space stands before its colon", code="bad_header")
    if not _VALUE.fullmatch(value):
        raise Malformed("a header's value has a control character", code="bad_header")
    return Field(name.lower(), name, value.strip(b" \t"))


def all_of(fields: Fields, name: bytes) -> list[bytes]:
    """Every value of a header."""
    return [field.value for field in fields if field.name == name]


def only(fields: Fields, name: bytes) -> bytes | None:
    """The value of a header that is there exactly once."""
    found = all_of(fields, name)
    return found[0] if len(found) == 1 else None


def tokens(fields: Fields, name: bytes) -> frozenset[bytes]:
    """The comma-separated words of a header, in lower case."""
    words = b",".join(all_of(fields, name)).split(b",")
    return frozenset(word.strip(b" \t").lower() for word in words) - {b""}


def _framing(fields: Fields, minor: int, absent: Framing) -> Framing:
    lengths, codings = all_of(fields, b"content-length"), all_of(fields, b"transfer-encoding")
    if lengths and codings:
        raise Malformed("both Content-Length and Transfer-Encoding", code="two_framings")
    if codings:
        if minor == 0:
            raise Malformed("Transfer-Encoding in HTTP/1.0", code="bad_encoding")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Unimplemented("a Transfer-Encoding other than chunked, or more than one", code="bad_encoding")
        return Framing("chunked")
    if not lengths:
        return absent
    if len(lengths) != 1:
        raise Malformed("more than one Content-Length", code="duplicate_length")
    if not _DIGITS.fullmatch(lengths[0]) or int(lengths[0]) > MOST_LENGTH:
        raise Malformed("Content-Length is not a plain number", code="bad_length")
    return Framing("length", int(lengths[0]))


def request_of(data: bytes) -> Request:
    """A request's head, without the empty line that ended it. Raises Malformed."""
    first, *rest = _lines(data)
    words = first.split(b" ")
    if len(words) != 3:
        raise Malformed("the request line is not METHOD TARGET VERSION", code="bad_request_line")
    method, target, version = words
    if version not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise _bad_version(version)
    if not _TOKEN.fullmatch(method) or len(method) > 32:
        raise Malformed("the method is not a word", code="bad_method")
    if method in {b"CONNECT", b"TRACE"}:
        raise Unimplemented(f"{method.decode()} is not served", code="bad_method")
    if not _TARGET.fullmatch(target):
        raise Malformed("the target is not a path that starts with /", code="bad_target")
    fields = fields_of(rest)
    hosts = all_of(fields, b"host")
    if len(hosts) != 1:
        cause = "no Host header" if not hosts else "more than one Host header"
        raise Malformed(cause, code="missing_host" if not hosts else "duplicate_host")
    minor = version[-1] - ord("0")
    return Request(method, target, minor, fields, hosts[0], _framing(fields, minor, NO_BODY))


def _bad_version(version: bytes) -> Malformed:
    if version.startswith(b"HTTP/"):
        return Unimplemented("only HTTP/1.1 and HTTP/1.0 are spoken here", code="bad_version")
    return Malformed("the request line does not end in a version of HTTP", code="bad_version")


def answer_of(data: bytes, method: bytes) -> Answer:
    """A response's head, to a request of that method. Raises Malformed."""
    first, *rest = _lines(data)
    found = _STATUS.fullmatch(first)
    if found is None:
        raise Malformed("the answer does not begin with a status line of HTTP/1", code="bad_answer")
    status, minor, fields = int(found[2]), int(found[1]), fields_of(rest)
    framing = _framing(fields, minor, Framing("close"))
    if method == b"HEAD" or status in {204, 304} or status < 200:
        framing = NO_BODY
    return Answer(status, minor, first[13:], fields, framing)


def websocket_key(request: Request) -> bytes | None:
    """The key of a well-formed WebSocket handshake; None when it is anything else, `Upgrade: h2c` included."""
    if request.method != b"GET" or request.minor != 1 or request.framing.kind != "none":
        return None
    if b"upgrade" not in tokens(request.fields, b"connection") or request.only(b"upgrade") is None:
        return None
    if tokens(request.fields, b"upgrade") != {b"websocket"} or request.only(b"sec-websocket-version") != b"13":
        return None
    key = request.only(b"sec-websocket-key")
    return key if key is not None and _KEY.fullmatch(key) else None
