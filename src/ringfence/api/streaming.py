"""Answers that are written while something runs, and what happens when their reader leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response

from ringfence import wire
from ringfence.api.errors import ClientGone, ours
from ringfence.domain.errors import Overloaded
from ringfence.engine.link import Reader
from ringfence.engine.output import Texts
from ringfence.engine.runs import CLIENT_GONE
from ringfence.guest import frames

T = TypeVar("T")
HEARTBEAT_SECONDS: Final = 15.0
_encode: Final = msgspec.json.Encoder().encode
Receive = Callable[[], Awaitable[Any]]


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    task.cancel(CLIENT_GONE)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; cancelled, with CLIENT_GONE for a reason, when the client leaves before it is there."""
    task = asyncio.current_task()
    if task is None:
        return await work
    watcher = asyncio.get_running_loop().create_task(_cancel_when_gone(receive, task))
    try:
        return await work
    except asyncio.CancelledError as error:
        task.uncancel()
        if error.args[:1] == (CLIENT_GONE,):
            raise ClientGone("the client disconnected") from None
        raise Overloaded("the server is stopping", code="api_stopping", remediation="try again") from None
    finally:
        watcher.cancel()


class Encoded(Response[Any]):
    """An answer whose body is bytes already; nothing of it is looked at again."""

    def __init__(self, body: bytes, status: int = 200) -> None:  # the base would prepare what is not used here
        self._body = body
        self._status = status

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """See litestar.Response."""
        return self._respond

    async def _respond(self, _: Any, __: Any, send: Any) -> None:
        length = str(len(self._body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class Sink:
    """Where a stream is written; the answer's head goes out with the first piece."""

    def __init__(self, send: Callable[[Any], Awaitable[None]], head: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._head = head
        self.started = False

    async def start(self) -> None:
        """Send the head now."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._head})

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client reads slowly."""
        if not self.started:
            await self.start()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def line(self, line: wire.Line) -> None:
        """Send one NDJSON line."""
        await self.write(_encode(line) + b"\n")

    async def event(self, data: Any, *, name: str | None = None, cursor: int | None = None) -> None:
        """Send one server-sent event."""
        head = (f"id: {cursor}\n" if cursor is not None else "") + (f"event: {name}\n" if name else "")
        await self.write(head.encode() + b"data: " + _encode(data) + b"\n\n")

    async def end(self) -> None:
        """No more."""
        await self.start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


Write = Callable[[Sink], Coroutine[Any, Any, None]]
LastWord = Callable[[Sink, wire.ErrorBody], Coroutine[Any, Any, None]]


class Streamed(Response[Any]):
    """A response that a coroutine writes. Raised before the first piece, an error is an ordinary error answer.

    After it, `last` says the error in the stream's own way; without one the stream is cut, which a client can tell.
    """

    def __init__(
        self, write: Write, media_type: str, headers: dict[str, str] | None = None, last: LastWord | None = None
    ) -> None:
        super().__init__(content=None, media_type=media_type)
        self._write = write
        self._last = last
        fixed = {"content-type": media_type, "cache-control": "no-store", "x-content-type-options": "nosniff"}
        self._head = [(name.encode(), value.encode()) for name, value in {**fixed, **(headers or {})}.items()]

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """See litestar.Response."""
        return self._respond

    async def _respond(self, _: Any, receive: Receive, send: Any) -> None:
        sink = Sink(send, self._head)
        try:
            await while_connected(receive, self._write(sink))
        except ClientGone:
            return
        except Exception as error:
            if not sink.started:
                raise
            known = ours(error)
            if self._last is None:
                return
            body = wire.ErrorBody(code=known.code, cause=known.cause, remediation=known.remediation)
            await self._last(sink, body)
        await sink.end()


def ndjson(write: Write) -> Streamed:
    """An NDJSON answer whose last line may be an error."""

    async def last(sink: Sink, error: wire.ErrorBody) -> None:
        await sink.line(wire.Line(error=error))

    return Streamed(write, wire.NDJSON, last=last)


def events(stopping: asyncio.Event, write: Write) -> Streamed:
    """A server-sent events answer, whose last event may be an error. It ends when the server stops."""

    async def last(sink: Sink, error: wire.ErrorBody) -> None:
        await sink.event(wire.ErrorAnswer(error=error), name="error")

    return Streamed(lambda sink: _until(stopping, write(sink)), "text/event-stream", last=last)


async def _until(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do endless work until the server stops."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        stop.cancel()
        task.cancel()
        await asyncio.wait({task})


async def copy_output(reader: Reader, sink: Sink, on_control: Callable[[bytes], wire.Line | None]) -> None:
    """Every frame of a program as a line, in order, until its stream ends."""
    texts = {frames.STDOUT: Texts("stdout"), frames.STDERR: Texts("stderr")}
    while (item := await reader.next()) is not None:
        kind, data = item
        line = texts[kind].feed(data) if kind in texts else on_control(data) if kind == frames.CONTROL else None
        if line is not None:
            await sink.line(line)
    for rest in texts.values():
        line = rest.feed(b"", final=True)
        if line is not None:
            await sink.line(line)


async def with_heartbeat(reader: Reader, sink: Sink) -> tuple[int, bytes] | None:
    """The next frame of a quiet stream; a comment goes out while none comes, so that both sides know it lives."""
    while True:
        began = time.monotonic()
        await reader.first(HEARTBEAT_SECONDS)
        if not reader.empty or reader.ended.done():
            return await reader.next()
        if time.monotonic() - began >= HEARTBEAT_SECONDS:
            await sink.write(b": alive\n\n")


async def body_chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """A raw body, piece by piece. Raises ClientGone when it breaks off, so half a body is never taken for a whole."""
    receive: Receive = request.receive
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the body broke off")
        if message["body"]:
            yield message["body"]
        if not message.get("more_body"):
            return
