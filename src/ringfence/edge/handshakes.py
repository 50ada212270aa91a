"""Connections on which TLS is not agreed yet: bounded in number and time, and the slow ones make room for others.

A stranger who opens thousands and says nothing holds at most so many, and not against anybody: an honest handshake is
over in a fraction of a second, so whoever has been at it longest is let go when another knocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from ringfence.edge.peer import Peer
from ringfence.edge.tls import Secure

SHUTDOWN_SECONDS: Final = 2.0  # for the client's own goodbye
PAUSE_SECONDS: Final = 0.5  # when the machine has no descriptor left
_log: Final = logging.getLogger(__name__)


class Handshakes:
    """Accepts connections and turns them into peers behind TLS.

    It accepts by itself: the loop's own server would begin any number of handshakes, and tells of one when it is over.
    """

    def __init__(self, secure: Secure, most: int, seconds: float, stall: float, serve: Callable[[Peer], None]) -> None:
        self._secure = secure
        self._most = most
        self._seconds = seconds
        self._stall = stall
        self._serve = serve
        self._under_way: dict[asyncio.Task[None], None] = {}  # the oldest first

    @contextlib.asynccontextmanager
    async def accepting(self, listener: socket.socket) -> AsyncIterator[None]:
        """Accept until left; then let go of every handshake that is not over."""
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener))
        try:
            yield
        finally:
            tasks = [accepting, *self._under_way]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionError:  # it left before we came
                continue
            except OSError as error:
                _log.error("edge: no connection can be accepted: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if len(self._under_way) >= self._most:
                oldest = next(iter(self._under_way))
                del self._under_way[oldest]
                oldest.cancel()
            task = loop.create_task(self._agree(connection))
            self._under_way[task] = None
            task.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _agree(self, connection: socket.socket) -> None:
        """Whatever goes wrong is the client's affair, and told by TLS itself where it can be."""
        peer = Peer(self._stall)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._seconds):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: peer, connection, ssl=self._secure.context,
                    ssl_handshake_timeout=self._seconds, ssl_shutdown_timeout=SHUTDOWN_SECONDS,
                )  # fmt: skip
            self._serve(peer)
