"""uvicorn's HTTP and WebSocket protocols with a clock: slow headers, stalled readers and endless leftovers are dropped.

uvicorn bounds neither the time nor the size of a request's head, and waits for ever on a client that does not read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MOST_HEAD_BYTES: Final = 64 * 1024
DRAIN_SECONDS: Final = 5.0  # how long the rest of a refused body is read away, so that the answer is seen
BAD_REQUEST: Final = (
    b'{"error":{"code":"bad_http","cause":"not a valid HTTP request","remediation":"check the client"}}'
)


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long each phase of a connection may take, and how many connections there may be."""

    header_seconds: float = 10.0
    stall_seconds: float = 30.0
    max_connections: int = 4096


class _Transport(Protocol):
    def abort(self) -> None: ...


class _Stall:
    """Aborts a connection whose peer has not read for too long. Shared by both protocols."""

    __slots__ = ("_handle", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self, transport: _Transport) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, transport.abort)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class TimedHttp(HttpToolsProtocol):
    """The HTTP protocol with clocks; uvicorn makes one per connection from the class alone."""

    clocks: ClassVar[Clocks] = Clocks()
    _stall: _Stall
    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _complete = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit it, within the number of connections there may be."""
        super().connection_made(transport)
        self._stall = _Stall(self.clocks.stall_seconds)
        if len(self.connections) > self.clocks.max_connections:
            transport.abort()
            return
        self._expect_head()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        if self._head is None:
            self._head = self.loop.call_later(self.clocks.header_seconds, self.transport.abort)

    def _head_done(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def data_received(self, data: bytes) -> None:
        """Time and count a request's head."""
        if self._complete:  # the first bytes of the next request
            self._complete = False
            self._expect_head()
        if self._head is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head is not None and self._head_bytes > MOST_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_done()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Answered before its body came: read a little of it away, so that the answer is seen, then hang up."""
        super().on_response_complete()
        if not self._complete and not self.transport.is_closing():
            self._head = self._head or self.loop.call_later(DRAIN_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._stall.start(self.transport)

    def resume_writing(self) -> None:
        """It caught up."""
        super().resume_writing()
        self._stall.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        self._head_done()
        self._stall.stop()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """From here on the other protocol's clocks run."""
        self._head_done()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Our error shape; nothing at all while another answer is under way."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        length = b"content-length: %d\r\n\r\n" % len(BAD_REQUEST)
        self.transport.write(head + length + BAD_REQUEST)
        self.transport.close()


class TimedSocket(WebSocketsSansIOProtocol):
    """The WebSocket protocol with a clock on stalled readers."""

    clocks: ClassVar[Clocks] = Clocks()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall = _Stall(self.clocks.stall_seconds)

    async def send(self, message: Any) -> None:
        """uvicorn would log a refused handshake as one that was never finished."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._stall.start(self.transport)

    def resume_writing(self) -> None:
        """It caught up."""
        super().resume_writing()
        self._stall.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stall.stop()
        super().connection_lost(exc)


def http_protocol(clocks: Clocks) -> type[TimedHttp]:
    """The HTTP protocol with these clocks."""
    return type("Http", (TimedHttp,), {"clocks": clocks})


def websocket_protocol(clocks: Clocks) -> type[TimedSocket]:
    """The WebSocket protocol with these clocks."""
    return type("Socket", (TimedSocket,), {"clocks": clocks})
