"""Connect's protocol over HTTP/1.1 with JSON: unary calls, and streams of envelopes.

An envelope is a flag byte, a length of four bytes, and that much JSON. A stream's answer is always 200; its last
envelope carries flag 2 and, when it failed, the error. Nothing is ever compressed.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

import msgspec

from ringfence.api.compat.e2b.http import JSON, Exchange
from ringfence.api.errors import ours
from ringfence.domain.errors import BadRequest, Conflict, Forbidden, NotFound, RingfenceError, TooLarge

HEAD: Final = struct.Struct(">BI")
END: Final = 2
STREAM: Final = "application/connect+json"
MOST_MESSAGE: Final = 16 * 1024 * 1024
MOST_TIMEOUT_MS: Final = 86_400_000
T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode

STATUS: Final = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
}
_BY_CODE: Final = {
    "guest_not_found": "not_found",
    "guest_not_running": "not_found",
    "guest_exists": "already_exists",
    # Their daemon is root and knows no such failure; for a path that will not do their clients have this one word.
    "guest_permission": "invalid_argument",
    "guest_no_space": "resource_exhausted",
    "guest_no_input": "internal",
    "guest_io": "internal",
    "guest_busy": "resource_exhausted",  # unavailable means to them that the sandbox is gone
    "over_quota": "resource_exhausted",
    "body_timeout": "deadline_exceeded",
}
_BY_KIND: Final[tuple[tuple[type[RingfenceError], str], ...]] = (
    (NotFound, "not_found"),
    (Forbidden, "permission_denied"),
    (Conflict, "failed_precondition"),
    (TooLarge, "resource_exhausted"),
    (BadRequest, "invalid_argument"),
)


class ConnectError(Exception):
    """A failure in the protocol's own words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def body(self) -> dict[str, str]:
        """As it is sent."""
        return {"code": self.code, "message": self.message}


class Cut(Exception):
    """The sandbox is gone: what is being answered breaks off. `sure` is false where the node may yet have it."""

    def __init__(self, *, sure: bool = True) -> None:
        super().__init__("the sandbox is gone")
        self.sure = sure


def known(error: Exception) -> ConnectError:
    """Any error as one of the protocol's."""
    if isinstance(error, ConnectError):
        return error
    mine = ours(error)
    code = _BY_CODE.get(mine.code) or next((word for kind, word in _BY_KIND if isinstance(mine, kind)), None)
    if code is None:
        code = "unavailable" if type(mine).status == 503 else "internal"
    return ConnectError(code, mine.cause.removeprefix("in the sandbox: "))


def envelope(message: Any, flags: int = 0) -> bytes:
    """One message, framed."""
    data = _encode(message)
    return HEAD.pack(flags, len(data)) + data


def decoded(data: bytes, kind: type[T]) -> T:
    """A message as `kind`; null means absent and fields we do not know are let be, as JSON of protobuf has it."""
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConnectError("invalid_argument", f"the message is not what this method takes: {error}"[:300]) from None


def timeout_of(exchange: Exchange) -> float | None:
    """Seconds the client allows. Raises ConnectError."""
    text = exchange.header(b"connect-timeout-ms")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 10:
        raise ConnectError("invalid_argument", "Connect-Timeout-Ms is at most ten digits")
    return min(max(int(text), 1), MOST_TIMEOUT_MS) / 1000


def check_unary(exchange: Exchange) -> None:
    """Refuse a codec we do not speak. Raises ConnectError."""
    kind = (exchange.header(b"content-type") or "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise ConnectError("unimplemented", f"only {JSON} is spoken here")
    if (exchange.header(b"content-encoding") or "identity").lower() != "identity":
        raise ConnectError("unimplemented", "compressed messages are not taken")


def is_stream(exchange: Exchange) -> bool:
    """Whether the content type is a stream's."""
    return (exchange.header(b"content-type") or "").partition(";")[0].strip().lower() == STREAM


class Envelopes:
    """Messages out of a body, as they become whole. What is unfinished at its end is an error."""

    def __init__(self, exchange: Exchange) -> None:
        self._chunks = exchange.chunks()
        self._held = bytearray()

    async def next(self) -> bytes | None:
        """The next message, or None at the body's end. Raises ConnectError, ClientGone."""
        while True:
            found = self._whole()
            if found is not None:
                return found
            try:
                self._held += await anext(self._chunks)
            except StopAsyncIteration:
                if self._held:
                    raise ConnectError("invalid_argument", "the stream ends inside an envelope") from None
                return None

    def _whole(self) -> bytes | None:
        if len(self._held) < HEAD.size:
            return None
        flags, size = HEAD.unpack_from(self._held)
        if flags:
            raise ConnectError("internal", f"envelope flags {flags} are not taken")
        if size > MOST_MESSAGE:
            raise ConnectError("resource_exhausted", f"a message is larger than {MOST_MESSAGE} bytes")
        if len(self._held) < HEAD.size + size:
            return None
        message = bytes(self._held[HEAD.size : HEAD.size + size])
        del self._held[: HEAD.size + size]
        return message

    async def only(self, kind: type[T]) -> T:
        """The one message that a method takes. Raises ConnectError for none, and for more."""
        first = await self.next()
        if first is None:
            raise ConnectError("invalid_argument", "the stream has no message")
        if await self.next() is not None:
            raise ConnectError("unimplemented", "the stream has more than one message")
        return decoded(first, kind)

    async def rest(self) -> AsyncIterator[bytes]:
        """Every further message."""
        while (message := await self.next()) is not None:
            yield message


class Outgoing:
    """A stream's answer: messages, then the end."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def _begin(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, {"content-type": STREAM, "cache-control": "no-store"})

    async def send(self, message: Any) -> None:
        """One message, on its way at once."""
        await self._begin()
        await self._exchange.write(envelope(message))

    async def end(self, error: ConnectError | None = None) -> None:
        """No more."""
        await self._begin()
        await self._exchange.finish(envelope({"error": error.body} if error is not None else {}, END))
