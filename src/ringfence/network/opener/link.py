"""One side of an opened connection: heads and bodies cut off the front of what comes, every wait with a deadline."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from ringfence.edge import body, parse

MOST_HEAD: Final = 64 * 1024
PIECE: Final = 64 * 1024
HANDSHAKE_SECONDS: Final = 15.0
IDLE_SECONDS: Final = 600.0  # without a byte, in a body or before the next request
SEND_SECONDS: Final = 120.0  # for the other side to take what it was sent
CLOSE_SECONDS: Final = 2.0


class Broken(Exception):
    """The connection ended in the middle of something."""


class Link:
    """A TLS connection, already greeted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    async def _more(self, seconds: float) -> bool:
        """Read on; False at the end of all."""
        try:
            async with asyncio.timeout(seconds):
                data = await self._reader.read(PIECE)
        except TimeoutError:
            raise Broken(f"nothing came for {seconds:g} s") from None
        self._buffer += data
        return bool(data)

    async def head(self, seconds: float = IDLE_SECONDS) -> bytes | None:
        """The next head, without the empty line that ends it; None where there is no next one.

        Raises Malformed and Broken.
        """
        while (end := self._buffer.find(parse.END, 0, MOST_HEAD)) < 0:
            if len(self._buffer) >= MOST_HEAD:
                raise parse.HeadTooLarge("its head is too long")
            if not await self._more(seconds):
                if self._buffer:
                    raise Broken("it ended within a head")
                return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(parse.END)]
        return head

    async def pieces(self, framing: parse.Framing) -> AsyncIterator[bytes]:
        """A body, piece by piece, without what frames it. Raises Malformed and Broken."""
        reading = body.body_of(framing)
        while not reading.done:
            piece = reading.take(self._buffer)
            if piece:
                yield piece
            elif not reading.done and not await self._more(IDLE_SECONDS):
                if framing.kind == "close":
                    return
                raise Broken("it ended within a body")

    async def send(self, data: bytes) -> None:
        """Give it to the other side, which may take its time, but not for ever. Raises OSError and Broken."""
        if data:
            self._writer.write(data)
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._writer.drain()
            except TimeoutError:
                raise Broken("the other side does not read") from None

    def abort(self) -> None:
        """End it now."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Say goodbye and end it."""
        self._writer.close()
        with suppress(OSError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        self._writer.transport.abort()


async def served(connection: socket.socket, context: ssl.SSLContext) -> Link:
    """Greet a client in a server's place. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=PIECE)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS
    )
    return Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def dialled(connection: socket.socket, context: ssl.SSLContext, host: str) -> Link:
    """Greet a server, which must prove to be this host. Raises OSError."""
    reader, writer = await asyncio.open_connection(
        sock=connection, ssl=context, server_hostname=host, ssl_handshake_timeout=HANDSHAKE_SECONDS, limit=PIECE
    )
    return Link(reader, writer)
