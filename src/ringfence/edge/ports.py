"""Published ports: which exist, whose they are, and who may pass. The table is in memory, looked up by one dict.

A port is published only while its sandbox lives. What is kept in the store serves one purpose: that an api which was
restarted knows the ports of the sandboxes that outlived it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.config import EdgeSettings
from ringfence.domain.errors import BadRequest, Conflict, NotFound, OverQuota
from ringfence.domain.sandbox import State
from ringfence.edge import access, gateway
from ringfence.edge.access import Pass
from ringfence.edge.hosts import API_PORTS, Place
from ringfence.edge.routes import BY_TOKEN, IN_PUBLIC, WHOLE, Link, Record, Route, Whole
from ringfence.engine.engine import Engine
from ringfence.store.base import PortRow, Store

MOST_PORTS: Final = 64  # published at once by one sandbox
MOST_LINKS: Final = 64  # alive at once on one port
MOST_ENDED: Final = 16_384  # sandboxes with every port published whose end is remembered, to be told
ENDED: Final = b""  # the record, in the store, of every port of a sandbox that ended
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,256}")
_log: Final = logging.getLogger(__name__)


class Ports:
    """Every published port of this machine, and the verbs on them. They raise NotFound for another tenant's."""

    def __init__(self, engine: Engine, store: Store, settings: EdgeSettings) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._routes: dict[str, Route] = {}
        self._of: dict[str, dict[int, Route]] = {}
        self._whole: dict[str, Whole] = {}
        self._ended: dict[str, None] = {}
        self._authority = settings.domain
        self.listening = False
        engine.ledger.on_gone.append(self.gone)
        engine.ledger.on_reset = self.again

    @property
    def authority(self) -> str:
        """The domain of published ports, with its port where that is not the usual one."""
        return self._authority

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, place: Place) -> Route | None:
        """The published port that is meant. Raises SandboxNotFound when its sandbox published all, and ended."""
        route = self._routes.get(place.label)
        if route is not None:
            return route
        whole = self._whole.get(place.sandbox)
        if whole is not None:
            return whole.route(place.port)
        if place.sandbox in self._ended:
            raise gateway.not_found(place.sandbox)
        return None

    # --- coming and going ---

    def begin(self, port: int) -> None:
        """The edge listens: read back what an earlier process published, and know one's own address."""
        settings = self._settings
        shown = settings.public_port or (443 if settings.behind_https else port)
        usual = 443 if settings.shown_scheme == "https" else 80
        self._authority = settings.domain if shown == usual else f"{settings.domain}:{shown}"
        self.listening = True
        self._ended = dict.fromkeys(self._store.ports_ended(MOST_ENDED))
        for row in self._store.ports():
            if row.record == ENDED:  # the record of its sandbox's end was lost with a process, and will come again
                self._ended[row.sandbox] = None
                continue
            try:
                record = msgspec.json.decode(row.record, type=Record)
            except msgspec.DecodeError:
                _log.error("the published port %d of %s cannot be read back", row.port, row.sandbox)
                continue
            if row.port == WHOLE:
                self._whole[row.sandbox] = Whole(row.tenant, row.sandbox, record)
            else:
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
        whole = self._no_longer_whole(sandbox_id)
        if whole is not None:
            self._store.port_saved(PortRow(whole.tenant, sandbox_id, WHOLE, ENDED))
            self._ended[sandbox_id] = None
            while len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def again(self, sandbox_id: str) -> None:
        """A sandbox was reset: its servers start from nothing, so that requests wait for them as for new ones."""
        for route in self._of.get(sandbox_id, {}).values():
            route.accepted = False
        if sandbox_id in self._whole:
            self._whole[sandbox_id].again()

    def _no_longer_whole(self, sandbox_id: str) -> Whole | None:
        whole = self._whole.pop(sandbox_id, None)
        if whole is not None:
            whole.cut()
        return whole

    def _save(self, published: Route | Whole) -> None:
        record = msgspec.json.encode(published.record)
        port = published.port if isinstance(published, Route) else WHOLE
        self._store.port_saved(PortRow(published.tenant, published.sandbox, port, record))

    # --- verbs ---

    async def publish(self, tenant: str, sandbox_id: str, request: wire.PublishRequest) -> wire.PublishedPort:
        """Publish a port, or change how it is; returns once it survives a restart. Raises Conflict, OverQuota."""
        if request.port in API_PORTS and self._settings.serve_api:
            raise Conflict(f"port {request.port} is the API's own here", code="port_reserved")
        await self._check_living(tenant, sandbox_id)
        route = self._of.get(sandbox_id, {}).get(request.port)
        if route is None:
            route = self._new(tenant, sandbox_id, request)
        elif route.public and not request.public:
            route.cut(IN_PUBLIC)
        route.record.public, route.record.wait_seconds = request.public, request.wait_seconds
        self._save(route)
        await self._store.flush()
        return self.shown(route)

    async def _check_living(self, tenant: str, sandbox_id: str) -> None:
        if not self.listening:
            raise Conflict("this server publishes no ports", code="edge_off", remediation="see [edge] in its settings")
        found = await self._engine.sandboxes.get(tenant, sandbox_id)
        if found.state in {State.STOPPED, State.FAILED}:
            raise Conflict("the sandbox has ended", code="sandbox_ended", remediation="create a new sandbox")

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

    async def publish_all(
        self, tenant: str, sandbox_id: str, token: str | None, wait_seconds: float = 0.0
    ) -> wire.PublishedAll:
        """Publish every port of a sandbox: for everybody, or for who sends `token` as E2B-Traffic-Access-Token.

        Repeating it changes how. Returns once it survives a restart. Raises BadRequest for a token that is none, and
        Conflict.
        """
        if token is not None and not _TOKEN.fullmatch(token):
            raise BadRequest("a token is 16 to 256 printable characters without spaces", code="bad_token")
        await self._check_living(tenant, sandbox_id)
        digest = b"" if token is None else hashlib.sha256(token.encode()).digest()
        whole = self._whole.get(sandbox_id)
        if whole is None:
            record = Record(token is None, wait_seconds, time.time(), b"", token=digest)
            whole = self._whole[sandbox_id] = Whole(tenant, sandbox_id, record)
        elif whole.record.token != digest:
            whole.cut(IN_PUBLIC, BY_TOKEN)
        whole.record.public, whole.record.wait_seconds, whole.record.token = token is None, wait_seconds, digest
        self._save(whole)
        self._engine.feed.add(tenant, "port.published", sandbox=sandbox_id, port="any", public=token is None)
        await self._store.flush()
        return self.shown_whole(whole, token)

    async def unpublish_all(self, tenant: str, sandbox_id: str) -> None:
        """Publish every port no longer; ports published one by one stay."""
        whole = self._whole.get(sandbox_id)
        if whole is None or whole.tenant != tenant:
            raise NotFound("this sandbox does not publish every port", remediation="publish them first")
        self._no_longer_whole(sandbox_id)
        self._store.port_removed(sandbox_id, WHOLE)
        self._engine.feed.add(tenant, "port.unpublished", sandbox=sandbox_id, port="any")
        await self._store.flush()

    async def page(self, tenant: str, sandbox_id: str) -> wire.PublishedPortList:
        """The ports a sandbox publishes, by number, and whether it publishes them all."""
        await self._engine.sandboxes.get(tenant, sandbox_id)
        whole = self._whole.get(sandbox_id)
        ports = [self.shown(route) for _, route in sorted(self._of.get(sandbox_id, {}).items())]
        return wire.PublishedPortList(ports=ports, any=None if whole is None else self.shown_whole(whole))

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
            url=f"{self._settings.shown_scheme}://{route.label}.{self._authority}",
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

    def shown_whole(self, whole: Whole, token: str | None = None) -> wire.PublishedAll:
        """As its owner sees it; the token only when it was just given."""
        host = f"{{port}}-{whole.sandbox}.{self._authority}"
        return wire.PublishedAll(
            url=f"{self._settings.shown_scheme}://{host}",
            host=host,
            public=whole.record.public,
            token=token,
            wait_seconds=whole.record.wait_seconds,
            created_at=whole.record.created_at,
        )
