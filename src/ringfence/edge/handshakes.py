"""Connections on which TLS is not agreed yet: bounded in number and time, and the slow ones make room for others.

A stranger who opens thousands and says nothing holds at most so many, and not against anybody: an honest handshake is
over in a fraction of a second, so whoever has been at it longest is let go when another knocks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, cast

from ringfence.edge.peer import Peer
from ringfence.edge.tls import Secure

SHUTDOWN_SECONDS: Final = 2.0  # for the client's own goodbye


class Handshakes:
    """Turns accepted connections into peers behind TLS."""

    def __init__(self, secure: Secure, most: int, seconds: float, stall: float, serve: Callable[[Peer], None]) -> None:
        self._secure = secure
        self._most = most
        self._seconds = seconds
        self._stall = stall
        self._serve = serve
        self._under_way: dict[asyncio.Task[None], asyncio.Transport] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._under_way)

    def protocol(self) -> asyncio.Protocol:
        """For one accepted connection."""
        return _Knock(self._begin)

    def _begin(self, transport: asyncio.Transport) -> None:
        transport.pause_reading()  # nothing is read before TLS reads it
        if len(self._under_way) >= self._most:
            oldest = next(iter(self._under_way))
            self._under_way.pop(oldest).abort()
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._agree(transport))
        self._under_way[task] = transport
        task.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _agree(self, transport: asyncio.Transport) -> None:
        """Whatever goes wrong is the client's affair, and told by TLS itself where it can be."""
        peer = Peer(self._stall)
        agreed: asyncio.Transport | None = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._seconds):
                agreed = await asyncio.get_running_loop().start_tls(
                    transport, peer, self._secure.context, server_side=True,
                    ssl_handshake_timeout=self._seconds, ssl_shutdown_timeout=SHUTDOWN_SECONDS,
                )  # fmt: skip
        if agreed is None or agreed.is_closing() or peer.lost.is_set():
            transport.abort()
            return
        peer.connection_made(agreed)
        self._serve(peer)

    async def close(self) -> None:
        """Let all of them go."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Knock(asyncio.Protocol):
    """A connection just accepted."""

    def __init__(self, begin: Callable[[asyncio.Transport], None]) -> None:
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._begin(cast("asyncio.Transport", transport))
