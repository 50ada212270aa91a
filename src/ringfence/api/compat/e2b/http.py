"""One request and its answer, as both planes use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import msgspec

from ringfence.api.errors import ClientGone
from ringfence.domain.errors import BadRequest, TooLarge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Interprets(Protocol):
    """What answers at a sandbox's port for cells, and can have a kernel ready before the first comes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

    def prepare(self, tenant: str, sandbox_id: str, env: dict[str, str]) -> None:
        """Begin to start the usual kernel of a new sandbox, and return at once."""


JSON: Final = "application/json"
MOST_QUERY: Final = 16 * 1024
_encode: Final = msgspec.json.Encoder().encode
_LEAVING: Final = "the client left"
_STOPPING: Final = "the server stops"


class Stopping(Exception):
    """The server stops; what is under way is cut."""


class Exchange:
    """A request, read as it is asked for, and at most one answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.raw_path: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
        self.extra: Headers = []  # headers that every answer carries
        self.started = False
        self._receive = receive
        self._send = send
        self._ended = False

    # --- what was asked ---

    def header(self, name: bytes) -> str | None:
        """A header that is there once. Raises BadRequest when it is there more often."""
        found = [value for known, value in self.scope["headers"] if known == name]
        if len(found) > 1:
            raise BadRequest(f"more than one {name.decode()} header")
        return found[0].decode("latin-1") if found else None

    def query(self) -> dict[str, str]:
        """The query's parameters; of one that is repeated, the last. Raises BadRequest."""
        raw = self.scope["query_string"]
        if len(raw) > MOST_QUERY:
            raise BadRequest("the query is too long")
        try:
            found = parse_qs(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=200)
        except (UnicodeDecodeError, ValueError):
            raise BadRequest("the query is not valid") from None
        return {name: values[-1] for name, values in found.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises ClientGone when it breaks off."""
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the body broke off")
            self._ended = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def body(self, most: int) -> bytes:
        """The whole body. Raises TooLarge past `most` bytes."""
        whole = bytearray()
        async for chunk in self.chunks():
            whole += chunk
            if len(whole) > most:
                raise TooLarge(f"the body is larger than {most} bytes")
        return bytes(whole)

    # --- the answer ---

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the head."""
        self.started = True
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": [*raw, *self.extra]})

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client reads slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece. Without it the connection is cut, which a client can tell."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        length = {} if status == 204 else {"content-length": str(len(body))}
        await self.start(status, {**(headers or {}), **length})
        await self.finish(b"" if self.method == "HEAD" else body)

    async def tell(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """A whole answer in JSON."""
        await self.say(status, _encode(value), {"content-type": JSON, **(headers or {})})

    async def refuse(self, status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        """E2B's error: {"code", "message"}."""
        await self.tell(status, {"code": status, "message": message, **more}, headers)

    async def hand_over(self, app: App, **state: Any) -> None:
        """Let another application answer, with what is known by now in its state."""
        self.scope["state"] = {**self.scope.get("state", {}), **state}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.started = True
                message["headers"] = [*message.get("headers", []), *self.extra]
            await self._send(message)

        await app(self.scope, self._receive, send)

    # --- while it lasts ---

    async def _left(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self._ended = not message.get("more_body", False)

    async def until_left(self, stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        """Do what may take long, once the whole body was read. Raises ClientGone or Stopping when that comes first."""
        task = asyncio.ensure_future(work)
        others = {
            asyncio.ensure_future(self._left()): ClientGone(_LEAVING),
            asyncio.ensure_future(stopping.wait()): Stopping(),
        }
        try:
            await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
            raise next(error for other, error in others.items() if other.done())
        finally:
            for each in (task, *others):
                each.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(task, *others, return_exceptions=True)
