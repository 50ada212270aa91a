"""What is published: one port with its links, or every port of a sandbox at once; and what is under way through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

import msgspec

from ringfence.domain.errors import RingfenceError
from ringfence.edge import access, gateway

BY_KEY: Final = "key"
BY_TOKEN: Final = "token"  # noqa: S105 - the name of a grant
IN_PUBLIC: Final = ""
WHOLE: Final = 0  # the port under which a sandbox-wide publication is kept
MOST_IDLE: Final = 256  # ports of one sandbox-wide publication that are remembered while nothing goes through them


class Link(msgspec.Struct):
    """A link that lets its bearer in until it expires."""

    expires: int
    once: bool = False
    used: bool = False


class Record(msgspec.Struct):
    """What a published port is, as the store keeps it. `token` is the digest of a sandbox-wide publication's."""

    public: bool
    wait_seconds: float
    created_at: float
    secret: bytes
    links: dict[str, Link] = {}
    token: bytes = b""


class Cuttable(Protocol):
    """Something under way through a published port. `grant` is what let it in."""

    grant: str

    def cut(self) -> None:
        """End it now."""


class Route:
    """One published port."""

    whole: ClassVar[bool] = False  # published with every other port of its sandbox

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

    def told(self, error: RingfenceError) -> RingfenceError:
        """What a client is told of an error on the way to this port."""
        return error

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


class AnyRoute(Route):
    """One port of a sandbox that publishes all of them."""

    whole: ClassVar[bool] = True

    def told(self, error: RingfenceError) -> RingfenceError:
        """In the words that E2B's clients look for."""
        return gateway.told(error, self.sandbox, self.port)


class Whole:
    """A sandbox that publishes every port. Its routes are made when they are asked for, and forgotten when idle."""

    def __init__(self, tenant: str, sandbox: str, record: Record) -> None:
        self.tenant = tenant
        self.sandbox = sandbox
        self.record = record
        self._routes: dict[int, AnyRoute] = {}

    def route(self, port: int) -> AnyRoute:
        """The route of one port; the same one for all who use it at once."""
        route = self._routes.get(port)
        if route is None:
            if len(self._routes) >= MOST_IDLE:
                self._routes = {number: busy for number, busy in self._routes.items() if busy.open}
            route = self._routes[port] = AnyRoute(self.tenant, self.sandbox, port, self.record)
        return route

    def again(self) -> None:
        """Nothing listens any more, and everything may again."""
        for route in self._routes.values():
            route.accepted = False

    def cut(self, *grants: str) -> None:
        """End what is under way by these grants; by any, when none is named."""
        for route in self._routes.values():
            route.cut(*grants)
