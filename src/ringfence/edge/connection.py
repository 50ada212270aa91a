"""One client connection: requests read one after the other, each led to its place or told why not."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ringfence.config import EdgeSettings
from ringfence.domain.errors import NotFound, Overloaded, PlatformFault, Refused, RingfenceError
from ringfence.edge import access, answers
from ringfence.edge.crossing import Forwarding
from ringfence.edge.doorkeeper import Doorkeeper, nothing_here, without_token
from ringfence.edge.exchange import Cut, Exchange
from ringfence.edge.hosts import Names, Place, WrongHost, is_address
from ringfence.edge.parse import END, HeadTooLarge, Malformed, Request, all_of, bare, request_of, websocket_key
from ringfence.edge.peer import Gone, Peer
from ringfence.edge.ports import Ports
from ringfence.edge.routes import Route
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Place as Held

KEEP_ALIVE_SECONDS: Final = 15.0
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 1024 * 1024
_ENDED: Final = frozenset({"sandbox_ended", NotFound.default_code})  # an agent's own "not found" has another code
_log: Final = logging.getLogger(__name__)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Who serves a connection for the API: by the Host it is bound to, and whether it ends with its first request.
Api = Callable[[bytes, bool], asyncio.Protocol | None]


@dataclass(frozen=True)
class Site:
    """What every connection shares."""

    engine: Engine
    settings: EdgeSettings
    ports: Ports
    names: Names
    doorkeeper: Doorkeeper
    trusted: tuple[Network, ...]
    api: Api | None = None
    of_sandbox: Counter[str] = field(default_factory=Counter)
    of_tenant: Counter[str] = field(default_factory=Counter)

    def trusts(self, address: str) -> bool:
        """Whether this address is one of the configured proxies."""
        if not self.trusted:
            return False
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.trusted)


class Misnamed(WrongHost):
    """A TLS connection that was made for one name, and a request on it for another."""


class BadExpectation(Refused):
    """An Expect header that nobody here can fulfil."""

    status = 417
    default_code = "bad_expectation"


class SlowHead(Malformed):
    """The head of a request came too slowly."""

    status = 408
    default_code = "head_timeout"


class Connection:
    """Serves a peer until it leaves, errs, or is done."""

    def __init__(self, site: Site, peer: Peer) -> None:
        self._site = site
        self._peer = peer
        self._given = False  # to the api, with all that follows

    async def run(self) -> None:
        """Requests, one after the other."""
        wait = self._site.settings.header_seconds
        try:
            while await self._next(wait):
                wait = KEEP_ALIVE_SECONDS
            if self._given:
                return
            await self._linger()
            self._peer.close()
        except (Gone, Cut):
            self._peer.abort()
        except asyncio.CancelledError:  # the server stops: what is not whole must not look so
            self._peer.abort()
            raise

    async def _next(self, wait: float) -> bool:
        """One request; whether another may follow on this connection."""
        request: Request | None = None
        try:
            data = await self._head(wait)
            if data is None:
                return False
            request = request_of(data)
            return await self._serve(request, data)
        except RingfenceError as error:
            return await self._refuse(error, request)
        except (Gone, Cut):
            raise
        except Exception:  # noqa: BLE001 - a bug of ours costs this connection and is told as a reference
            reference = secrets.token_hex(6)
            _log.exception("edge: internal error %s", reference)
            return await self._refuse(PlatformFault(f"an internal error; reference {reference}"), None)

    async def _refuse(self, error: RingfenceError, request: Request | None) -> bool:
        """Tell it. What a body might hold is not read, so only a request without one keeps its connection."""
        keeps = request is not None and request.keeps and request.framing.kind == "none"
        keeps = keeps and not isinstance(error, Malformed)
        await self._peer.write(answers.refusal(error, request, keeps=keeps))
        return keeps

    async def _head(self, wait: float) -> bytes | None:
        """A request's head without its last empty line; None when the client left without one."""
        try:
            async with asyncio.timeout(wait) as clock:
                return await self._read_head(clock)
        except TimeoutError:
            if not self._peer.buffer:
                return None
            raise SlowHead("the request's head did not arrive in time") from None

    async def _read_head(self, clock: asyncio.Timeout) -> bytes | None:
        buffer, most, seen = self._peer.buffer, self._site.settings.header_bytes, 0
        while (end := buffer.find(END, max(0, seen - 3))) < 0 or end > most:
            if len(buffer) > most:
                raise HeadTooLarge(f"more than {most} bytes of headers")
            if bare(buffer, max(0, seen - 1)):
                raise Malformed("a line ends in a bare CR or LF", code="bare_line_end")
            first, seen = not buffer, len(buffer)
            if not await self._peer.more():
                return None
            if first:  # it was idle until now; its head has this long to arrive, however it is dripped
                clock.reschedule(asyncio.get_running_loop().time() + self._site.settings.header_seconds)
        data = bytes(buffer[:end])
        del buffer[: end + len(END)]
        return data

    # --- one request ---

    async def _serve(self, request: Request, data: bytes) -> bool:
        site = self._site
        self._check_asked(request)
        place = site.names.place(request)
        if place is not None and place.api:
            self._give(request, data)
            return False
        route = site.ports.find(place) if place is not None else None
        if place is None or route is None:
            raise nothing_here()
        target, token = without_token(place.target)
        if token is not None and not place.shared and not route.whole and request.method in {b"GET", b"HEAD"}:
            return await self._enter(request, route, target, token)
        grant = site.doorkeeper.grant(request, route, place)
        expect = all_of(request.fields, b"expect")
        if expect and [value.lower() for value in expect] != [b"100-continue"]:
            raise BadExpectation("the only expectation met here is 100-continue")
        with self._held(route):
            return await self._pass(request, route, grant, place._replace(target=target))

    def _check_asked(self, request: Request) -> None:
        """One TLS connection, one name: what was agreed for one says nothing for another. A proxy of ours may mix."""
        if not self._peer.secure or self._site.trusts(self._peer.address):
            return
        name, asked = self._site.names.name(request.host), self._peer.asked
        good = is_address(name) if asked is None else name == asked.lower().encode()
        if not good:
            raise Misnamed(
                "this connection was made for another name",
                remediation="ask on a connection of its own, with the same name in TLS and in Host",
            )

    def _give(self, request: Request, data: bytes) -> None:
        """The api answers from here on. Of a proxy's connection it gets one request: the next may be for anybody."""
        site = self._site
        protocol = site.api(request.host, site.trusts(self._peer.address)) if site.api is not None else None
        if protocol is None:
            raise Overloaded("the API does not answer at the moment", remediation="try again shortly")
        self._given = True
        self._peer.give(protocol, data + END)

    def _held(self, route: Route) -> _Both:
        site, settings = self._site, self._site.settings
        tenant = Held(site.of_tenant, route.tenant, settings.connections_per_tenant, "requests to its ports at once")
        try:
            sandbox = Held(site.of_sandbox, route.sandbox, settings.connections_per_sandbox, "requests to one sandbox")
        except RingfenceError:
            tenant.__exit__()
            raise
        return _Both(tenant, sandbox)

    async def _enter(self, request: Request, route: Route, target: bytes, token: bytes) -> bool:
        """A link is followed. Only GET uses up one that is good once: what only looks does not."""
        link = route.grant_of(token, access.LINK, time.time())
        if link is None or request.method != b"GET":
            raise nothing_here()
        seconds = route.record.links[link].expires - int(time.time())
        value = await self._site.ports.enter(route, link)
        keeps = request.keeps and request.framing.kind == "none"
        # A Location that begins with // would name another host.
        await self._peer.write(answers.entered(b"/" + target.lstrip(b"/\\"), value, seconds, keeps=keeps))
        return keeps

    async def _pass(self, request: Request, route: Route, grant: str, place: Place) -> bool:
        site, key = self._site, websocket_key(request)
        exchange = Exchange(site.engine, site.settings, self._peer, request, route, grant)
        try:
            await exchange.run(place.target, self._forwarding(request, route, place), key)
        except RingfenceError as error:
            if exchange.started:
                raise Cut from None
            if error.code in _ENDED:
                site.ports.gone(route.sandbox)
            raise route.told(error) from None
        return exchange.keeps

    def _forwarding(self, request: Request, route: Route, place: Place) -> Forwarding:
        """Who asked, as far as it is known: a proxy's word counts only when that proxy is configured."""
        client, scheme = self._peer.address, "https" if self._peer.secure else "http"
        if self._site.trusts(client):
            said = b",".join(all_of(request.fields, b"x-forwarded-for")).decode("latin-1").split(",")
            client = self._asker([address.strip() for address in said if address.strip()], client)
            proto = request.only(b"x-forwarded-proto")
            scheme = proto.decode() if proto in {b"http", b"https"} else scheme
        inside = b"localhost:%d" % route.port if place.shared else request.host
        return Forwarding(client, scheme, request.host, inside, place.prefix, place.shared)

    def _asker(self, chain: list[str], nearest: str) -> str:
        """The last address that no trusted proxy has, read from the nearest end; a lie further out is never reached."""
        for address in reversed(chain):
            try:
                nearest = str(ipaddress.ip_address(address))
            except ValueError:
                return nearest
            if not self._site.trusts(nearest):
                return nearest
        return nearest

    async def _linger(self) -> None:
        """Read a little of what is still coming, so that the answer is seen before the connection closes."""
        taken = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                if not self._peer.eof and self._peer.finish():
                    while taken < LINGER_BYTES:
                        taken += len(self._peer.buffer)
                        self._peer.buffer.clear()
                        if not await self._peer.more():
                            return
        except TimeoutError:
            return


class _Both:
    """Two places, given back together."""

    def __init__(self, *held: Held) -> None:
        self._held = held

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        for each in self._held:
            each.__exit__()


class TooMany(Overloaded):
    """As many connections as there may be."""


Serve = Callable[[Peer], None]


class Accepted(Peer):
    """A peer that begins to be served as soon as it is connected."""

    def __init__(self, stall_seconds: float, serve: Serve) -> None:
        super().__init__(stall_seconds)
        self._serve = serve

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._serve(self)
