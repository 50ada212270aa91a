"""One request through one tunnel: bytes both ways as fast as the slower end takes them, until the answer is whole.

An answer that breaks off is passed on as broken: a client must be able to tell half a page from a page.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

from ringfence.config import EdgeSettings
from ringfence.edge import crossing
from ringfence.edge.body import LAST_CHUNK, Body, body_of, chunk
from ringfence.edge.crossing import Forwarding
from ringfence.edge.parse import END, NO_BODY, Answer, Malformed, Request, answer_of, bare, only, tokens
from ringfence.edge.peer import Gone, Peer
from ringfence.edge.routes import Route
from ringfence.edge.upstream import BadUpstream, SlowUpstream, Upstream, reach
from ringfence.engine.engine import Engine

T = TypeVar("T")
MOST_INTERIM: Final = 8  # answers of the kind 1xx before the real one
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Cut(Exception):
    """The answer cannot be finished: its connection is broken off."""


def _accept_of(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


class Exchange:
    """A request being answered by the program behind a published port."""

    def __init__(
        self, engine: Engine, settings: EdgeSettings, peer: Peer, request: Request, route: Route, grant: str
    ) -> None:
        self.grant = grant
        self.started = False  # something of the answer was sent
        self.keeps = False  # when all is done, the connection can carry another request
        self._engine = engine
        self._settings = settings
        self._peer = peer
        self._request = request
        self._route = route
        self._body: Body = body_of(request.framing)
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._cut: asyncio.Future[None] = self._loop.create_future()
        self._websocket = False  # the answer was 101: bytes both ways, and each end closes its own

    def cut(self) -> None:
        """What let it in is no more, or what it leads to."""
        if not self._cut.done():
            self._cut.set_result(None)

    async def run(self, target: bytes, forwarding: Forwarding, key: bytes | None) -> None:
        """Until the answer is whole. Raises RingfenceError while nothing was sent, Cut and Gone after."""
        head = crossing.inward(self._request, target, forwarding, key=key)
        async with AsyncExitStack() as stack:
            with self._route.holding(self):
                reaching = asyncio.create_task(reach(self._engine, self._route, stack))
                await self._watched(reaching, self._settings.total_seconds)
                upstream = reaching.result()
                await upstream.send(head)
                falling = asyncio.create_task(self._fall(upstream, key, shared=forwarding.shared))
                rising = asyncio.create_task(self._rise(upstream))
                await self._watched(falling, self._settings.total_seconds, rising)
                self.keeps = self.keeps and rising.done() and self._body.done

    # --- watching over it ---

    async def _watched(self, main: asyncio.Task[T], seconds: float, beside: asyncio.Task[None] | None = None) -> None:
        """Wait for `main` while both ends are there and bytes move. Whoever raises is heard; nothing is left over."""
        leaving = asyncio.create_task(self._left())
        waiting: set[asyncio.Future[None]] = {leaving, self._cut} | ({beside} if beside is not None else set())
        deadline = self._loop.time() + seconds
        try:
            while not main.done():
                left = min(deadline, self._moved + self._settings.idle_seconds) - self._loop.time()
                both: list[asyncio.Future[Any]] = [main, *waiting]
                await asyncio.wait(both, timeout=max(0.0, left), return_when="FIRST_COMPLETED")
                if main.done():
                    break
                waiting -= self._heard(waiting, leaving)
                self._in_time(deadline)
        finally:
            tasks = [task for task in (main, beside, leaving) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not main.cancelled() and (error := main.exception()) is not None:
            raise error

    def _heard(self, waiting: set[asyncio.Future[None]], leaving: asyncio.Task[None]) -> set[asyncio.Future[None]]:
        """Those that are done; raises what they mean."""
        done = {future for future in waiting if future.done()}
        if self._cut in done:
            if self.started:
                raise Cut
            raise BadUpstream("the port is not published any more, or its sandbox ended", code="cut")
        if leaving in done:
            raise Gone
        for future in done:
            if (error := future.exception()) is not None:
                raise error
        return done

    def _in_time(self, deadline: float) -> None:
        now = self._loop.time()
        quiet = now - self._moved
        if quiet < self._settings.idle_seconds and now < deadline:
            return
        if self.started:
            raise Cut
        if not self._body.done and quiet >= self._settings.idle_seconds:
            raise SlowUpstream("neither the client nor the program sent anything", code="idle")
        raise SlowUpstream(
            f"the program on port {self._route.port} took the request and did not answer within "
            f"{min(self._settings.idle_seconds, self._settings.total_seconds):g} s"
        )

    async def _left(self) -> None:
        """Return when the client is gone. On a WebSocket, its end is for the program to hear, not for us."""
        await self._peer.left()
        if self._websocket:
            await self._peer.lost.wait()

    # --- client to sandbox ---

    async def _rise(self, upstream: Upstream) -> None:
        """The request's body. What the program does not take is not read."""
        chunked = self._request.framing.kind == "chunked"
        if self._request.framing != NO_BODY and (self._request.only(b"expect") or b"").lower() == b"100-continue":
            await self._peer.write(CONTINUE)
        while not self._body.done:
            piece = self._body.take(self._peer.buffer)
            if not piece:
                if not self._body.done and not await self._peer.more():
                    raise Gone
                continue
            self._moved = self._loop.time()
            if not await upstream.send(chunk(piece) if chunked else piece):
                return
        if chunked:
            await upstream.send(LAST_CHUNK)

    # --- sandbox to client ---

    async def _fall(self, upstream: Upstream, key: bytes | None, *, shared: bool) -> None:
        answer = await self._answer(upstream, key)
        if answer.status == 101:
            await self._upgraded(upstream, answer)
            return
        await self._send_head(answer, shared=shared)
        await self._send_body(upstream, answer)

    async def _answer(self, upstream: Upstream, key: bytes | None) -> Answer:
        """The program's answer, without what it said in between."""
        for _ in range(MOST_INTERIM):
            data = await self._head(upstream)
            try:
                answer = answer_of(data, self._request.method)
            except Malformed as error:
                raise BadUpstream(f"the program on port {self._route.port}: {error.cause}") from None
            if answer.status == 101:
                self._check_upgrade(answer, key)
            if answer.status >= 200 or answer.status == 101:
                return answer
        raise BadUpstream(f"the program on port {self._route.port} never came to its answer")

    async def _head(self, upstream: Upstream) -> bytes:
        buffer, most = upstream.buffer, self._settings.header_bytes
        while (end := buffer.find(END, 0, most)) < 0:
            if len(buffer) >= most or bare(buffer):
                raise BadUpstream(f"the head of the answer of port {self._route.port} is too long or malformed")
            if not await upstream.more():
                raise await upstream.fault() or BadUpstream(
                    f"the program on port {self._route.port} closed the connection without an answer",
                    remediation="look at its logs: `ringfence sandbox logs`",
                )
            self._moved = self._loop.time()
        data = bytes(buffer[:end])
        del buffer[: end + len(END)]
        return data

    def _check_upgrade(self, answer: Answer, key: bytes | None) -> None:
        """A change of protocol that was not asked for, or is not the WebSocket asked for, is none."""
        good = key is not None and only(answer.fields, b"sec-websocket-accept") == _accept_of(key)
        if not good or tokens(answer.fields, b"upgrade") != {b"websocket"}:
            raise BadUpstream(f"the program on port {self._route.port} changed to a protocol that was not asked for")

    async def _send_head(self, answer: Answer, *, shared: bool) -> None:
        lines = crossing.outward(answer, shared_origin=shared)
        kind = answer.framing.kind
        if kind == "length":
            lines.append(b"Content-Length: %d" % answer.framing.length)
        elif kind != "none" and self._request.minor == 1:
            lines.append(b"Transfer-Encoding: chunked")
        elif kind == "none":
            lines += _length_alone(answer)
        self.keeps = self._request.keeps and (kind != "none" or self._request.minor == 1)
        self.keeps = self.keeps and self._body.done
        lines.append(b"Connection: keep-alive" if self.keeps else b"Connection: close")
        first = b"HTTP/1.1 %d %b" % (answer.status, answer.reason)
        self.started = True
        await self._peer.write(b"\r\n".join([first, *lines]) + END)

    async def _send_body(self, upstream: Upstream, answer: Answer) -> None:
        """Each piece as it comes; nothing is gathered, so an event is seen when it is sent."""
        body = body_of(answer.framing)
        chunked = self._request.minor == 1 and answer.framing.kind in {"chunked", "close"}
        while not body.done:
            try:
                piece = body.take(upstream.buffer)
            except Malformed:
                raise Cut from None
            if piece:
                await self._peer.write(chunk(piece) if chunked else piece)
                self._moved = self._loop.time()
            elif not body.done and not await upstream.more():
                if answer.framing.kind == "close" and upstream.ended:
                    break
                raise Cut
        if chunked:
            await self._peer.write(LAST_CHUNK)

    # --- WebSocket ---

    async def _upgraded(self, upstream: Upstream, answer: Answer) -> None:
        lines = crossing.outward(answer, shared_origin=False)
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
        self.started, self._websocket = True, True
        await self._peer.write(b"\r\n".join([b"HTTP/1.1 101 Switching Protocols", *lines]) + END)
        rising = asyncio.create_task(self._messages(upstream))
        try:
            await self._frames(upstream)
        finally:
            rising.cancel()
            await asyncio.gather(rising, return_exceptions=True)

    async def _messages(self, upstream: Upstream) -> None:
        while True:
            if self._peer.buffer:
                piece = bytes(self._peer.buffer)
                self._peer.buffer.clear()
                self._moved = self._loop.time()
                if not await upstream.send(piece):
                    return
            elif not await self._peer.more():
                upstream.eof()
                return

    async def _frames(self, upstream: Upstream) -> None:
        while True:
            if upstream.buffer:
                piece = bytes(upstream.buffer)
                upstream.buffer.clear()
                await self._peer.write(piece)
                self._moved = self._loop.time()
            elif not await upstream.more():
                if upstream.ended:
                    return
                raise Cut


def _length_alone(answer: Answer) -> list[bytes]:
    """A length that describes a body which is not sent: of an answer to HEAD, or of a 304."""
    length = only(answer.fields, b"content-length")
    if answer.status in {204, 101} or length is None or not length.isdigit():
        return []
    return [b"Content-Length: " + length]
