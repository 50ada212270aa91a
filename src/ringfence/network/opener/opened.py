"""One opened connection: request by request, each read whole before any of it is believed, each answered in turn.

What is sent on is written anew from what was read, so the host reads what was judged. The host is the one that the
gate chose and the certificate proves; a request that names another is refused.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ringfence.domain.names import BadName, heard_name
from ringfence.domain.secrets import PORT, Held
from ringfence.edge import body, parse
from ringfence.network.finder import Cover, Finder
from ringfence.network.opener.inject import Injected, Injector, Refused, forms_of, in_bodies
from ringfence.network.opener.link import Broken, Link, dialled, served

MOST_BODY: Final = 1024 * 1024  # in which a value can be put; a longer one passes as it comes, and is only watched
_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"trailer"})
_FRAMES: Final = frozenset({b"content-length", b"transfer-encoding"})
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Failed(Exception):
    """Allowed, but it did not work; its text says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the gate handed over: who, to which host, by which sockets."""

    flow: int
    sandbox: str
    host: str
    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        """Let go of both."""
        self.client.close()
        self.server.close()


class Opened:
    """One connection."""

    def __init__(
        self,
        order: Order,
        held: Callable[[], tuple[Held, ...]],
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """`held` gives the sandbox's secrets as they are now; `contexts` are ours as a server and ours as a client."""
        self._order = order
        self._held = held
        self._inward, self._onward = contexts
        self._tell = tell
        self._client: Link | None = None
        self._server: Link | None = None
        self._cover = Cover(())
        self._answering = False  # part of an answer has been passed on

    async def serve(self) -> None:
        """To its end, and say what came of it."""
        word: dict[str, Any] = {}
        try:
            await self._serve()
        except Refused as error:
            word = {"verdict": "denied", "reason": str(error), "misdirected": error.misdirected}
            await self._say(error.status, "denied", str(error))
        except parse.Malformed as error:
            word = {"verdict": "denied", "reason": f"not a plain request: {error.cause}"}
            await self._say(error.status, "denied", word["reason"])
        except (Failed, Broken, OSError, TimeoutError) as error:
            word = {"verdict": "failed", "reason": _words(error)}
            await self._say(502, "failed", word["reason"])
        finally:
            self._tell({"flow": self._order.flow, "end": True, **word})
            for link in (self._server, self._client):
                if link is not None:
                    link.abort()
            self._order.close()

    async def _serve(self) -> None:
        try:
            self._client = await served(self._order.client, self._inward)
        except OSError as error:
            raise Failed(f"the client does not accept our certificate, or speaks no TLS: {_words(error)}") from None
        while await self._exchange(self._client):
            pass
        if self._server is not None:
            self._server.abort()
        await self._client.close()

    # -- one request ----------------------------------------------------------------------------------------

    async def _exchange(self, client: Link) -> bool:
        """Whether another may follow."""
        try:
            head = await client.head()
        except Broken:
            return False
        if head is None:
            return False
        request = parse.request_of(head)
        self._check(request)
        held = self._held()
        injector = Injector(held, self._order.host)
        injected = injector.head(request)
        self._cover.add(forms_of(each.value for each in held if each.bound_to(self._order.host)))
        self._cover.add(injected.shown)
        server = self._server = self._server or await self._greeted()
        self._answering = False
        up = asyncio.ensure_future(self._up(client, server, request, injected, injector, held))
        down = asyncio.ensure_future(self._down(client, server, request))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                return await down and request.keeps
            down.result()
            return False  # answered before it was heard to its end: what else comes belongs to nothing
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    def _check(self, request: parse.Request) -> None:
        name, colon, port = request.host.partition(b":")
        try:
            host = heard_name(name)
        except BadName as error:
            raise Refused(f"its Host {error}") from None
        if host != self._order.host or (colon and port != str(PORT).encode()):
            raise Refused(f"its Host is {host:.80}, but the connection is for {self._order.host}")
        if parse.all_of(request.fields, b"upgrade"):
            raise Refused("it asks to become another protocol, in which secrets could not be seen")

    async def _greeted(self) -> Link:
        try:
            return await dialled(self._order.server, self._onward, self._order.host)
        except ssl.SSLCertVerificationError as error:
            raise Failed(f"the certificate of {self._order.host} is not accepted: {error.verify_message}") from None
        except OSError as error:
            raise Failed(f"{self._order.host}: {_words(error)}") from None

    # -- what goes up ---------------------------------------------------------------------------------------

    async def _up(
        self,
        client: Link,
        server: Link,
        request: parse.Request,
        injected: Injected,
        injector: Injector,
        held: tuple[Held, ...],
    ) -> None:
        if request.framing.kind == "none":
            await self._sent(server, request, injected, b"", injector)
            return
        if request.minor and b"100-continue" in parse.tokens(request.fields, b"expect"):
            await client.send(CONTINUE)
        pieces, first, whole = client.pieces(request.framing), bytearray(), False
        if in_bodies(held, self._order.host):
            async for piece in pieces:
                first += piece
                if len(first) > MOST_BODY:
                    break
            else:
                whole = True
        if whole:
            kind = b",".join(parse.all_of(request.fields, b"content-type"))
            data = injector.body(bytes(first), kind)
            await self._sent(server, request, injected, b"content-length: %d\r\n" % len(data), injector)
            await server.send(data)
            return
        chunked = request.framing.kind == "chunked"
        finder = Finder({each.placeholder.encode(): each.name for each in held})
        _watched(finder, bytes(first))
        framing = b"transfer-encoding: chunked\r\n" if chunked else b"content-length: %d\r\n" % request.framing.length
        await self._sent(server, request, injected, framing, injector)
        await server.send(body.chunk(bytes(first)) if chunked and first else bytes(first))
        async for piece in pieces:
            _watched(finder, piece)
            await server.send(body.chunk(piece) if chunked else piece)
        await server.send(body.LAST_CHUNK if chunked else b"")

    async def _sent(
        self, server: Link, request: parse.Request, injected: Injected, framing: bytes, injector: Injector
    ) -> None:
        """The head, and with it the word that these secrets were used."""
        if injector.used:
            self._tell({"flow": self._order.flow, "secrets": list(injector.used)})
        lines = [name + b": " + value + b"\r\n" for name, value in injected.fields]
        lines.append(b"connection: keep-alive\r\n" if request.keeps else b"connection: close\r\n")
        first = request.method + b" " + injected.target + b" HTTP/1.%d\r\n" % request.minor
        await server.send(first + b"".join(lines) + framing + b"\r\n")

    # -- what comes down ------------------------------------------------------------------------------------

    async def _down(self, client: Link, server: Link, request: parse.Request) -> bool:
        """Pass the answer on, values covered; whether its server keeps the connection."""
        answer = await self._head_down(client, server, request)
        while answer.status < 200:
            answer = await self._head_down(client, server, request)
        chunked = answer.framing.kind == "chunked"
        async for piece in server.pieces(answer.framing):
            out = self._cover.feed(piece)
            await client.send(body.chunk(out) if chunked and out else out)
        rest = self._cover.rest()
        await client.send(body.chunk(rest) if chunked and rest else rest)
        await client.send(body.LAST_CHUNK if chunked else b"")
        closes = b"close" in parse.tokens(answer.fields, b"connection") or not answer.minor
        return not closes and answer.framing.kind != "close"

    async def _head_down(self, client: Link, server: Link, request: parse.Request) -> parse.Answer:
        try:
            head = await server.head()
            if head is None:
                raise Failed("the server hung up without an answer")
            answer = parse.answer_of(head, request.method)
        except parse.Malformed as error:
            raise Failed(f"the server's answer cannot be read: {error.cause}") from None
        if answer.status == 101:
            raise Failed("the server wants to become another protocol")
        lines = [raw + b": " + value + b"\r\n" for name, raw, value in answer.fields if name not in _HOP]
        closes = b"close" in parse.tokens(answer.fields, b"connection") or answer.framing.kind == "close"
        if answer.status >= 200:
            lines.append(b"connection: close\r\n" if closes or not request.keeps else b"connection: keep-alive\r\n")
        text = b"HTTP/1.%d %d%b\r\n" % (answer.minor, answer.status, answer.reason[-1024:] and b" " + _reason(head))
        self._answering = True
        await client.send(self._cover.feed(text + b"".join(lines)) + self._cover.rest() + b"\r\n")
        return answer

    # -- ends -----------------------------------------------------------------------------------------------

    async def _say(self, status: int, how: str, reason: str) -> None:
        """Tell the client in HTTP what came of it, where that can still be heard. The gate hears it out."""
        client = self._client
        if client is None or self._answering:
            return
        text = f"ringfence: {how}: {reason}\n".encode("utf-8", "replace")
        head = f"HTTP/1.1 {status} {'Forbidden' if status == 403 else 'Refused'}\r\nX-Ringfence: {how}\r\n"
        head += f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        with suppress(OSError, Broken):
            await client.send(head.encode() + text)
            await client.close()


def _reason(head: bytes) -> bytes:
    """The words behind a status, which mean nothing."""
    return head.partition(b"\r\n")[0][13:][:200]


def _watched(finder: Finder, data: bytes) -> None:
    """Refuse a placeholder in a body that is not written anew: it would reach the host as it is."""
    secret = finder.feed(data)
    if secret:
        why = f"the placeholder of secret {secret} stands in a body where it is not, or cannot be, replaced"
        raise Refused(why, secret)


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
