"""Published ports: which exist, whose they are, and who may pass. The table is in memory, looked up by one dict.

A port is published only while its sandbox lives. What is kept in the store serves one purpose: that an api which was
restarted knows the ports of the sandboxes that outlived it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec

from ringfence import wire
from ringfence.config import EdgeSettings
from ringfence.domain.errors import Conflict, NotFound, OverQuota
from ringfence.domain.sandbox import State
from ringfence.edge import access
from ringfence.edge.access import Pass
from ringfence.engine.engine import Engine
from ringfence.store.base import PortRow, Store

MOST_PORTS: Final = 64  # published at once by one sandbox
MOST_LINKS: Final = 64  # alive at once on one port
BY_KEY: Final = "key"
IN_PUBLIC: Final = ""
_log: Final = logging.getLogger(__name__)


class Link(msgspec.Struct):
    """A link that lets its bearer in until it expires."""

    expires: int
    once: bool = False
    used: bool = False


class Record(msgspec.Struct):
    """What a published port is, as the store keeps it."""

    public: bool
    wait_seconds: float
    created_at: float
    secret: bytes
    links: dict[str, Link] = {}


class Cuttable(Protocol):
    """Something under way through a published port. `grant` is what let it in."""

    grant: str

    def cut(self) -> None:
        """End it now."""


class Route:
    """One published port."""

    def __init__(self, tenant: str, sandbox: str, port: int, record: Record) -> None:
        self.tenant = tenant
        self.sandbox = sandbox
        self.port = port
        self.label = f"{port}-{sandbox}"
        self.record = record
        self.open: set[Cuttable] = set()
        self.accepted = False  # a connection to it was once taken
        self.gate = asyncio.Lock()  # held by the one who asks whether it accepts yet

    @property
    def public(self) -> bool:
        """Whether anybody may pass."""
        return self.record.public

    def grant_of(self, text: bytes, kind: int, now: float) -> str | None:
        """The link that a token of this kind lets in by; None when it does not."""
        found = access.opened(self.record.secret, self.label, text)
        if found is None or found.kind != kind or found.expires <= now:
            return None
        link = self.record.links.get(found.link)
        if link is None or (kind == access.LINK and link.once and link.used):
            return None
        return found.link

    def cut(self, *grants: str) -> None:
        """End what is under way by these grants; by any, when none is named."""
        for each in [one for one in self.open if not grants or one.grant in grants]:
            each.cut()

    @contextlib.contextmanager
    def holding(self, exchange: Cuttable) -> Iterator[None]:
        """Count an exchange as under way."""
        self.open.add(exchange)
        try:
            yield
        finally:
            self.open.discard(exchange)


class Ports:
    """Every published port of this machine, and the verbs on them. They raise NotFound for another tenant's."""

    def __init__(self, engine: Engine, store: Store, settings: EdgeSettings) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._routes: dict[str, Route] = {}
        self._of: dict[str, dict[int, Route]] = {}
        self._authority = settings.domain
        self.listening = False
        engine.ledger.on_gone = self.gone

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, label: str) -> Route | None:
        """The published port of this label."""
        return self._routes.get(label)

    # --- coming and going ---

    def begin(self, port: int) -> None:
        """The edge listens: read back what an earlier process published, and know one's own address."""
        settings = self._settings
        shown = settings.public_port or (443 if settings.scheme == "https" else port)
        usual = 443 if settings.scheme == "https" else 80
        self._authority = settings.domain if shown == usual else f"{settings.domain}:{shown}"
        self.listening = True
        for row in self._store.ports():
            try:
                record = msgspec.json.decode(row.record, type=Record)
            except msgspec.DecodeError:
                _log.error("the published port %d of %s cannot be read back", row.port, row.sandbox)
                continue
            self._add(Route(row.tenant, row.sandbox, row.port, record))

    def _add(self, route: Route) -> None:
        self._routes[route.label] = route
        self._of.setdefault(route.sandbox, {})[route.port] = route

    def _remove(self, route: Route) -> None:
        self._routes.pop(route.label, None)
        mine = self._of.get(route.sandbox, {})
        mine.pop(route.port, None)
        if not mine:
            self._of.pop(route.sandbox, None)
        self._store.port_removed(route.sandbox, route.port)
        route.cut()

    def gone(self, sandbox_id: str) -> None:
        """A sandbox ended, whichever way: its ports end with it."""
        for route in list(self._of.get(sandbox_id, {}).values()):
            self._remove(route)

    def _save(self, route: Route) -> None:
        record = msgspec.json.encode(route.record)
        self._store.port_saved(PortRow(route.tenant, route.sandbox, route.port, record))

    # --- verbs ---

    async def publish(self, tenant: str, sandbox_id: str, request: wire.PublishRequest) -> wire.PublishedPort:
        """Publish a port, or change how it is; returns once it survives a restart. Raises Conflict, OverQuota."""
        if not self.listening:
            raise Conflict("this server publishes no ports", code="edge_off", remediation="see [edge] in its settings")
        found = await self._engine.sandboxes.get(tenant, sandbox_id)
        if found.state in {State.STOPPED, State.FAILED}:
            raise Conflict("the sandbox has ended", code="sandbox_ended", remediation="create a new sandbox")
        route = self._of.get(sandbox_id, {}).get(request.port)
        if route is None:
            route = self._new(tenant, sandbox_id, request)
        elif route.public and not request.public:
            route.cut(IN_PUBLIC)
        route.record.public, route.record.wait_seconds = request.public, request.wait_seconds
        self._save(route)
        await self._store.flush()
        return self.shown(route)

    def _new(self, tenant: str, sandbox_id: str, request: wire.PublishRequest) -> Route:
        if len(self._of.get(sandbox_id, {})) >= MOST_PORTS:
            raise OverQuota(f"a sandbox publishes at most {MOST_PORTS} ports", remediation="unpublish one first")
        record = Record(request.public, request.wait_seconds, time.time(), secrets.token_bytes(32))
        route = Route(tenant, sandbox_id, request.port, record)
        self._add(route)
        self._tell(route, "port.published", public=request.public)
        return route

    def _tell(self, route: Route, kind: str, **data: Any) -> None:
        self._engine.feed.add(route.tenant, kind, sandbox=route.sandbox, port=route.port, **data)

    async def page(self, tenant: str, sandbox_id: str) -> list[wire.PublishedPort]:
        """The ports a sandbox publishes, by number."""
        await self._engine.sandboxes.get(tenant, sandbox_id)
        return [self.shown(route) for _, route in sorted(self._of.get(sandbox_id, {}).items())]

    async def unpublish(self, tenant: str, sandbox_id: str, port: int) -> None:
        """Publish it no longer; what is under way through it is cut."""
        route = self._mine(tenant, sandbox_id, port)
        self._remove(route)
        self._tell(route, "port.unpublished")
        await self._store.flush()

    async def link(self, tenant: str, sandbox_id: str, port: int, request: wire.LinkRequest) -> wire.PortLink:
        """A link that lets its bearer in, without a key, until it expires."""
        route = self._mine(tenant, sandbox_id, port)
        links, now = route.record.links, time.time()
        for old in [name for name, link in links.items() if link.expires <= now]:
            del links[old]
        if len(links) >= MOST_LINKS:
            raise OverQuota(f"a port has at most {MOST_LINKS} links", remediation="revoke one first")
        name, expires = secrets.token_hex(8), int(now + request.ttl_seconds)
        links[name] = Link(expires, request.once)
        self._save(route)
        self._tell(route, "port.link_created", link=name)
        await self._store.flush()
        token = access.signed(route.record.secret, route.label, Pass(access.LINK, name, expires))
        url = f"{self.shown(route).url}/?{wire.ACCESS_PARAMETER}={token}"
        return wire.PortLink(id=name, expires_at=expires, once=request.once, url=url, token=token)

    async def revoke(self, tenant: str, sandbox_id: str, port: int, link: str | None) -> None:
        """End a link, or every link, with the cookies made from it and what is under way by them."""
        route = self._mine(tenant, sandbox_id, port)
        names = list(route.record.links) if link is None else [link]
        if any(name not in route.record.links for name in names):
            raise NotFound("no such link", remediation="see the port's links")
        for name in names:
            del route.record.links[name]
        self._save(route)
        if names:
            route.cut(*names)
        await self._store.flush()

    async def enter(self, route: Route, name: str) -> str:
        """Use a link that grant_of() just named: the cookie's value. A link that is good once is used up first."""
        link = route.record.links[name]
        link.used = True
        if link.once:
            self._save(route)
            await self._store.flush()
        return access.signed(route.record.secret, route.label, Pass(access.SESSION, name, link.expires))

    def _mine(self, tenant: str, sandbox_id: str, port: int) -> Route:
        route = self._of.get(sandbox_id, {}).get(port)
        if route is None or route.tenant != tenant:
            raise NotFound("this sandbox publishes no such port", remediation="publish it first")
        return route

    def shown(self, route: Route) -> wire.PublishedPort:
        """As its owner sees it."""
        now = time.time()
        return wire.PublishedPort(
            port=route.port,
            url=f"{self._settings.scheme}://{route.label}.{self._authority}",
            path=f"/p/{route.sandbox}/{route.port}/",
            public=route.public,
            wait_seconds=route.record.wait_seconds,
            created_at=route.record.created_at,
            links=[
                wire.PortLink(id=name, expires_at=link.expires, once=link.once, used=link.used)
                for name, link in route.record.links.items()
                if link.expires > now
            ],
        )
