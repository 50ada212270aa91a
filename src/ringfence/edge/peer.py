"""The client's end of a connection: bounded both ways, and never waited for without a deadline."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, cast

ENOUGH: Final = 64 * 1024  # bytes read ahead; past them the client waits
HELD: Final = 64 * 1024  # bytes written ahead; past them the sandbox waits
_RESET: Final = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The client left, or stopped reading: nobody is told."""


class Peer(asyncio.Protocol):
    """One connection's bytes."""

    def __init__(self, stall_seconds: float) -> None:
        self.buffer = bytearray()
        self.eof = False
        self.address = ""
        self.secure = False  # TLS, and `asked` is the name it was made for
        self.asked: str | None = None
        self._stall = stall_seconds
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._arrived: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._left = asyncio.Event()
        self.lost = asyncio.Event()

    # --- from the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HELD)
        address = transport.get_extra_info("peername")
        self.address = address[0] if isinstance(address, tuple) else ""
        tls = transport.get_extra_info("ssl_object")
        self.secure = tls is not None
        self.asked = getattr(tls, "asked", None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.buffer += data
        if len(self.buffer) >= ENOUGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The client sends no more; what it is owed is still sent, but for TLS, which has no half."""
        self.eof = True
        self._left.set()
        self._wake()
        return not self.secure

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self.eof = True
        self._left.set()
        self.lost.set()
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    # --- for the exchange ---

    async def more(self) -> bool:
        """Wait for bytes beyond those in the buffer; False when none will come."""
        if self.eof:
            return False
        if self._paused and self._transport is not None and len(self.buffer) < ENOUGH:
            self._paused = False
            self._transport.resume_reading()
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None
        return not self.eof or bool(self.buffer)

    async def left(self) -> None:
        """Return when the client sends no more."""
        await self._left.wait()

    async def write(self, data: bytes) -> None:
        """Send; waits while the client reads slowly. Raises Gone."""
        if self._transport is None:
            raise Gone
        self._transport.write(data)
        if self._writable.is_set():
            return
        try:
            async with asyncio.timeout(self._stall):
                await self._writable.wait()
        except TimeoutError:
            self.abort()
            raise Gone from None

    def give(self, protocol: asyncio.Protocol, first: bytes) -> None:
        """Let another protocol have the connection, from these bytes on. Raises Gone."""
        transport, self._transport = self._transport, None
        if transport is None:
            raise Gone
        if self.eof:
            transport.abort()
            raise Gone
        data = first + bytes(self.buffer)
        self.buffer.clear()
        transport.set_write_buffer_limits()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._paused and not transport.is_closing():
            transport.resume_reading()
        protocol.data_received(data)

    def finish(self) -> bool:
        """Say that no more follows, behind what was written; False when the connection is gone."""
        if self._transport is None or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def close(self) -> None:
        """Hang up behind what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Break the connection so that the client can tell: a reset, not an end."""
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()
