"""Who is asking. Every route declares how it authenticates; the server does not start if one forgot."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from litestar import Litestar
from litestar.handlers import BaseRouteHandler
from litestar.routes import ASGIRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from ringfence.domain.errors import PlatformFault, RingfenceError, Unauthenticated
from ringfence.store.base import Store, digest_of

AUTH: Final = "auth"
KEY: Final[dict[str, Any]] = {AUTH: "key"}  # a valid key of any tenant
OPEN: Final[dict[str, Any]] = {AUTH: "open"}  # nobody's data
LONGEST: Final = 256
REFUSAL: Final = "refusal"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it was."""

    tenant: str
    key: str


def presented(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key in the raw headers. Two different places or two headers are no key at all."""
    found: list[bytes] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            found.append(token.strip() if scheme.lower() == b"bearer" else b"")
        elif name == b"x-api-key":
            found.append(value.strip())
    if len(found) != 1 or not 1 <= len(found[0]) <= LONGEST:
        return None
    return found[0].decode("latin-1")


def caller_of(store: Store, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """Who holds this key. One read by the key's digest: no time depends on how much of a guess was right."""
    return key_caller(store, presented(headers))


def key_caller(store: Store, key: str | None) -> Caller:
    """Who holds this key. Raises Unauthenticated."""
    if key is None or len(key) > LONGEST:
        raise Unauthenticated(
            "no key, or more than one", remediation="send one as `Authorization: Bearer rf_...` or X-API-Key"
        )
    found = store.key(digest_of(key))
    if found is None or not found.valid(time.time()):
        raise Unauthenticated(
            "this key is unknown, expired or revoked", remediation="make one with `ringfence keys create`"
        )
    return Caller(found.tenant, found.id)


class Authenticated:
    """Middleware behind routing and before any body: a route that declares nothing is treated as one that needs a key.

    A guard would do the same, but Litestar copies the route's handler for each guarded request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["route_handler"].opt.get(AUTH) == "open":
            await self._app(scope, receive, send)
            return
        state = scope["litestar_app"].state
        try:
            caller = scope["user"] = caller_of(state.store, scope["headers"])
            place = state.engine.admission.request(caller.tenant)
        except RingfenceError as error:
            scope["state"][REFUSAL] = error
            raise
        with place:
            await self._app(scope, receive, send)


def check_declared(app: Litestar) -> None:
    """Refuse to start with a route that does not say how it authenticates."""
    for route in app.routes:
        handlers = [route.route_handler] if isinstance(route, ASGIRoute) else _handlers(route)
        for handler in handlers:
            if handler.opt.get(AUTH) not in {"key", "open"} and not _generated(handler):
                raise PlatformFault(f"route {route.path} declares no authentication", code="undeclared_auth")


def _handlers(route: Any) -> list[BaseRouteHandler]:
    return list(getattr(route, "route_handlers", None) or [route.route_handler])


def _generated(handler: BaseRouteHandler) -> bool:
    """Litestar answers OPTIONS by itself on every path; a key is asked for there too."""
    return getattr(handler, "http_methods", None) == {"OPTIONS"}
