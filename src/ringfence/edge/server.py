"""The edge put together: a listening socket, what is behind it, and how many connections it holds at most."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from typing import Final, Protocol

from ringfence.config import EdgeSettings
from ringfence.domain.errors import PlatformFault, RingfenceError
from ringfence.edge.answers import refusal
from ringfence.edge.connection import Accepted, Api, Connection, Site, TooMany
from ringfence.edge.doorkeeper import Doorkeeper
from ringfence.edge.handshakes import Handshakes
from ringfence.edge.hosts import Names
from ringfence.edge.peer import Gone, Peer
from ringfence.edge.ports import Ports
from ringfence.edge.tls import Pair, Secure
from ringfence.engine.engine import Engine
from ringfence.store.base import Store

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_log: Final = logging.getLogger(__name__)


class Pairs(Protocol):
    """Where certificates come from."""

    def pair(self) -> Pair | None:
        """The next one; None when there will be no more."""

    def fileno(self) -> int | None:
        """What to wait on for the next; None when there is one for good."""


class Edge:
    """Published ports, served. Made with the engine; serves inside serving()."""

    def __init__(self, engine: Engine, store: Store, settings: EdgeSettings) -> None:
        self.settings = settings
        self.ports = Ports(engine, store, settings)
        self._engine = engine
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(
        self, listener: socket.socket | None, *, api: Api | None = None, certificates: Pairs | None = None
    ) -> AsyncIterator[None]:
        """Accept connections until left, then break off what is under way. Without a listener, nothing is published.

        With `certificates` they are TLS, and each newer pair is shown from then on.
        """
        if listener is None:
            yield
            return
        port = listener.getsockname()[1]
        self.ports.begin(port)
        site = self._site(port, api)
        async with self._plain(site, listener) if certificates is None else self._tls(site, listener, certificates):
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _plain(self, site: Site, listener: socket.socket) -> AsyncIterator[None]:
        stall = self.settings.stall_seconds
        server = await asyncio.get_running_loop().create_server(
            lambda: Accepted(stall, lambda peer: self._accepted(site, peer)), sock=listener, backlog=4096
        )
        try:
            yield
        finally:
            server.close()

    @contextlib.asynccontextmanager
    async def _tls(self, site: Site, listener: socket.socket, certificates: Pairs) -> AsyncIterator[None]:
        pair, settings, loop = certificates.pair(), self.settings, asyncio.get_running_loop()
        if pair is None:
            raise PlatformFault("no certificate was handed over", code="no_certificate")
        secure = Secure(pair)
        handshakes = Handshakes(
            secure, settings.max_handshakes, settings.header_seconds, settings.stall_seconds,
            lambda peer: self._accepted(site, peer),
        )  # fmt: skip
        source = certificates.fileno()
        if source is not None:
            loop.add_reader(source, lambda: _renew(secure, certificates, loop, source))
        try:
            async with handshakes.accepting(listener):
                yield
        finally:
            if source is not None:
                loop.remove_reader(source)

    def _site(self, port: int, api: Api | None) -> Site:
        settings = self.settings
        ports = frozenset({port, settings.public_port} - {0})
        shared = LOOPBACK | {settings.domain} | {name.lower() for name in settings.path_hosts}
        return Site(
            engine=self._engine,
            settings=settings,
            ports=self.ports,
            names=Names(settings.domain, ports, frozenset(shared), serve_api=settings.serve_api),
            doorkeeper=Doorkeeper(self._store, settings),
            trusted=tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies),
            api=api,
        )

    def _accepted(self, site: Site, peer: Peer) -> None:
        work = Connection(site, peer).run() if len(self._tasks) < self.settings.max_connections else _turn_away(peer)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _renew(secure: Secure, certificates: Pairs, loop: asyncio.AbstractEventLoop, source: int) -> None:
    """A newer pair is there, or nobody who could send one."""
    try:
        pair = certificates.pair()
        if pair is None:
            loop.remove_reader(source)
        else:
            secure.replace(pair)
    except RingfenceError as error:
        _log.error("edge: %s; the old certificate stays", error.cause)


async def _turn_away(peer: Peer) -> None:
    error = TooMany("this edge has as many connections as it may", remediation="try again shortly")
    with contextlib.suppress(Gone):
        await peer.write(refusal(error, None, keeps=False))
    peer.close()
