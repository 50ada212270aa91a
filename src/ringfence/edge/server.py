"""The edge put together: a listening socket, what is behind it, and how many connections it holds at most."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Final

from ringfence.config import EdgeSettings
from ringfence.edge.answers import refusal
from ringfence.edge.connection import Accepted, Connection, Site, TooMany
from ringfence.edge.doorkeeper import Doorkeeper
from ringfence.edge.hosts import Names
from ringfence.edge.peer import Gone, Peer
from ringfence.edge.ports import Ports
from ringfence.engine.engine import Engine
from ringfence.store.base import Store

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Edge:
    """Published ports, served. Made with the engine; serves inside serving()."""

    def __init__(self, engine: Engine, store: Store, settings: EdgeSettings) -> None:
        self.settings = settings
        self.ports = Ports(engine, store, settings)
        self._engine = engine
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket | None) -> AsyncIterator[None]:
        """Accept connections until left, then break off what is under way. Without a listener, nothing is published."""
        if listener is None:
            yield
            return
        port = listener.getsockname()[1]
        self.ports.begin(port)
        site = self._site(port)
        stall = self.settings.stall_seconds
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Accepted(stall, lambda peer: self._accepted(site, peer)), sock=listener, backlog=4096
        )
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _site(self, port: int) -> Site:
        settings = self.settings
        ports = frozenset({port, settings.public_port} - {0})
        shared = LOOPBACK | {settings.domain} | {name.lower() for name in settings.path_hosts}
        return Site(
            engine=self._engine,
            settings=settings,
            ports=self.ports,
            names=Names(settings.domain, ports, frozenset(shared)),
            doorkeeper=Doorkeeper(self._store, settings),
            trusted=tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies),
        )

    def _accepted(self, site: Site, peer: Peer) -> None:
        work = Connection(site, peer).run() if len(self._tasks) < self.settings.max_connections else _turn_away(peer)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _turn_away(peer: Peer) -> None:
    error = TooMany("this edge has as many connections as it may", remediation="try again shortly")
    with contextlib.suppress(Gone):
        await peer.write(refusal(error, None, keeps=False))
    peer.close()
