"""What every request passes before routing: the Host list, a clock on its body, and refused WebSockets as answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from ringfence.api.auth import REFUSAL
from ringfence.api.errors import MisdirectedRequest, SlowBody, error_body, headers_of, status_of
from ringfence.domain.errors import Forbidden, NotFound, OverQuota, Refused, RingfenceError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
UPLOAD_SECONDS: Final = 3600.0
LONG_IDLE: Final = 120.0  # a stream of E2B's says every 50 seconds that it is there
MOST_HELD: Final = 256 * 1024 * 1024  # bytes of JSON bodies that one tenant's requests may hold at once
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_name(value: bytes) -> str:
    """A Host header without its port, in lower case."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0].removesuffix(".")


def _only(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    found = [value for name, value in headers if name == wanted]
    return found[0] if len(found) == 1 else None


def _has(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bool:
    return any(name == wanted for name, _ in headers)


class Face(Protocol):
    """Another protocol, served on the same socket."""

    def named(self, host: str) -> bool:
        """Whether a host name is its own."""

    def wants(self, scope: Scope) -> bool:
        """Whether a request to a name of the server's is for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""


class Front:
    """The outermost ASGI application."""

    def __init__(self, app: App, hosts: list[str], body_seconds: float, face: Face | None = None) -> None:
        self._app = app
        self._face = face
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}
        self._body_seconds = body_seconds
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        host = _only(scope["headers"], b"host")
        if host is None or host_name(host) not in self._hosts:
            raise MisdirectedRequest(
                "this server does not answer to that Host",
                remediation="the operator lists further names in allowed_hosts",
            )

    def _face_of(self, scope: Scope) -> Face | None:
        """The other face, where a request is for it: by its host, or by what it says at a host of ours.

        Raises MisdirectedRequest for a host of neither.
        """
        face = self._face
        host = _only(scope["headers"], b"host")
        if face is not None and host is not None and face.named(host_name(host)):
            return face
        self._check_host(scope)
        return face if face is not None and face.wants(scope) else None

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            face = self._face_of(scope)
            if face is not None:
                await self._served(face, scope, receive, send)
                return
        except RingfenceError as error:
            await refuse(send, error)
            return
        headers = scope["headers"]
        if not _has(headers, b"content-length") and not _has(headers, b"transfer-encoding"):
            await self._app(scope, receive, send)
            return
        raw = scope["method"] == "PUT" or scope["path"].endswith("/input")
        body = Body(scope, receive, self._body_seconds, None if raw else self._held)
        try:
            await self._app(scope, body, send)
        finally:
            body.forget()

    async def _served(self, face: Face, scope: Scope, receive: Receive, send: Send) -> None:
        """The other face's requests, their bodies timed and counted as ours are; some come for as long as one likes."""
        path: str = scope["path"]
        passed_on = path == "/files" or path.endswith("/StreamInput") or scope["method"] == "PUT"
        body = Body(scope, receive, max(self._body_seconds, LONG_IDLE), None if passed_on else self._held)
        try:
            await face(scope, body, send)
        finally:
            body.forget()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_host(scope)
            origin = _only(scope["headers"], b"origin")
            if _has(scope["headers"], b"origin") and not _same_origin(origin, _only(scope["headers"], b"host")):
                raise Forbidden("a page of another origin may not connect", code="wrong_origin")
        except RingfenceError as error:
            await receive()
            await refuse(send, error, websocket=True)
            return
        await self._app(scope, receive, Handshake(scope, send))


def _same_origin(origin: bytes | None, host: bytes | None) -> bool:
    if origin is None or host is None:
        return False
    return origin.lower() in {b"http://" + host.lower(), b"https://" + host.lower()}


async def refuse(send: Send, error: RingfenceError, *, websocket: bool = False) -> None:
    """Answer a request, or a handshake, with an error."""
    body = error_body(error)
    kind = "websocket.http.response" if websocket else "http.response"
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(error)}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": status_of(error), "headers": raw})
    await send({"type": f"{kind}.body", "body": body})


class Body:
    """A receive that gives a body only so long to arrive, and a tenant's bodies held at once only so much room.

    After the body's end, waiting for a disconnect is not timed. `held` is None for a body that is passed on in pieces.
    """

    __slots__ = ("_deadline", "_done", "_held", "_idle", "_late", "_receive", "_scope", "_size", "_tenant")

    def __init__(self, scope: Scope, receive: Receive, seconds: float, held: Counter[str] | None) -> None:
        self._scope = scope
        self._receive = receive
        self._idle = seconds
        self._held = held
        self._deadline = time.monotonic() + (UPLOAD_SECONDS if held is None else seconds)
        self._done = False
        self._late = False
        self._size = 0
        self._tenant = ""

    async def __call__(self) -> Message:
        """See ASGI."""
        if self._done:
            return await self._receive()
        task = asyncio.current_task()
        seconds = min(self._idle, self._deadline - time.monotonic())
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._too_late, task)
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._late or task is None:
                raise
            task.uncancel()
            raise SlowBody("the request's body did not arrive in time", remediation="send it at once") from None
        finally:
            timer.cancel()
        self._done = not message.get("more_body", False)
        if self._held is not None:
            self._hold(len(message.get("body", b"")), self._held)
        return message

    def _hold(self, size: int, held: Counter[str]) -> None:
        if not self._size:
            caller = self._scope.get("user")
            self._tenant = caller.tenant if caller is not None else ""
        self._size += size
        held[self._tenant] += size
        if held[self._tenant] > MOST_HELD:
            raise OverQuota("this tenant's requests hold too much memory at once", remediation="send fewer at once")

    def forget(self) -> None:
        """The request is over."""
        if self._held is not None and self._size:
            self._held[self._tenant] -= self._size
            if not self._held[self._tenant]:
                del self._held[self._tenant]

    def _too_late(self, task: asyncio.Task[Any] | None) -> None:
        self._late = True
        if task is not None:
            task.cancel()


class Handshake:
    """A send that turns a close before acceptance into an answer with a status and a body."""

    __slots__ = ("_accepted", "_scope", "_send")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._accepted = False

    async def __call__(self, message: Message) -> None:
        """See ASGI."""
        if self._accepted or message["type"] != "websocket.close":
            self._accepted = self._accepted or message["type"] == "websocket.accept"
            await self._send(message)
            return
        self._accepted = True
        await refuse(self._send, self._scope["state"].get(REFUSAL) or self._unexplained(), websocket=True)

    def _unexplained(self) -> RingfenceError:
        """The framework closed it: there is no such route, or its parameters are none."""
        if self._scope.get("route_handler") is None:
            return NotFound("no such route", remediation="see /docs for the routes there are")
        return Refused("the connection was refused", remediation="see /docs for what this route takes")
