"""Who may pass through a published port, and by what. What may not be seen and what is not there are one answer."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Final

from ringfence import wire
from ringfence.config import EdgeSettings
from ringfence.domain.errors import Forbidden, NotFound
from ringfence.edge import access, crossing
from ringfence.edge.gateway import TokenRefused
from ringfence.edge.hosts import Place
from ringfence.edge.parse import Request, all_of
from ringfence.edge.routes import BY_KEY, BY_TOKEN, IN_PUBLIC, Route
from ringfence.store.base import Store, digest_of

_PARAMETER: Final = wire.ACCESS_PARAMETER.encode() + b"="
_OWN: Final = frozenset({b"same-origin", b"none"})


def nothing_here() -> NotFound:
    """The one answer for a port that is not published, is another's, or needs what was not shown."""
    return NotFound(
        "nothing is published here, or not for you",
        code="not_published",
        remediation="ask its owner for a link, or send X-Ringfence-Access",
    )


def without_token(target: bytes) -> tuple[bytes, bytes | None]:
    """A target without the link token in its query, and the token."""
    path, mark, query = target.partition(b"?")
    parts = query.split(b"&") if mark else []
    found = [part for part in parts if part.startswith(_PARAMETER)]
    if not found:
        return target, None
    rest = b"&".join(part for part in parts if part not in found)
    return path + (b"?" + rest if rest else b""), found[0][len(_PARAMETER) :] if len(found) == 1 else b""


class Doorkeeper:
    """Decides, for one request to one route, what lets it in."""

    def __init__(self, store: Store, settings: EdgeSettings) -> None:
        self._store = store
        self._browsers_on_paths = settings.path_browsers

    def grant(self, request: Request, route: Route, place: Place) -> str:
        """What lets this request in. Raises NotFound or TokenRefused for nothing, Forbidden for another's page."""
        shown, tokens = all_of(request.fields, crossing.ACCESS), all_of(request.fields, crossing.TRAFFIC)
        if shown:
            found = self._by_header(shown, route)
        elif tokens and route.record.token:
            found = _by_token(tokens, route)
        elif place.prefix and not self._browsers_on_paths:
            found = None  # every path is one origin: a page of one sandbox would speak for its reader to all the others
        elif route.public:
            found = IN_PUBLIC
        else:
            found = None if place.shared or route.whole else self._by_cookie(request, route)
        if found is None:
            raise _token_refused(route) if route.whole and not route.public else nothing_here()
        return found

    def _by_header(self, shown: list[bytes], route: Route) -> str | None:
        if len(shown) != 1 or len(shown[0]) > 256:
            return None
        if shown[0].startswith(access.PREFIX.encode()):
            link = route.grant_of(shown[0], access.LINK, time.time())
            return link if link is not None and not route.record.links[link].once else None
        key = self._store.key(digest_of(shown[0].decode("latin-1")))
        return BY_KEY if key is not None and key.valid(time.time()) and key.tenant == route.tenant else None

    def _by_cookie(self, request: Request, route: Route) -> str | None:
        value = crossing.access_cookie(request.fields)
        link = route.grant_of(value, access.SESSION, time.time()) if value is not None else None
        if link is not None and not _asked_by_its_own_page(request):
            raise Forbidden("a page of another origin may not use this cookie", code="wrong_origin")
        return link


def _by_token(shown: list[bytes], route: Route) -> str | None:
    good = len(shown) == 1 and hmac.compare_digest(hashlib.sha256(shown[0]).digest(), route.record.token)
    return BY_TOKEN if good else None


def _token_refused(route: Route) -> TokenRefused:
    return TokenRefused(
        "The ports of this sandbox need a traffic access token",
        route.sandbox,
        remediation="send it as E2B-Traffic-Access-Token",
    )


def _asked_by_its_own_page(request: Request) -> bool:
    """Siblings are one site to a browser, so SameSite does not hold them apart: where a request comes from does.

    Another page may only lead its reader here. It may not post, connect a WebSocket, or fetch what it could not read.
    """
    origins = all_of(request.fields, b"origin")
    own = {b"http://" + request.host, b"https://" + request.host}
    if origins and (len(origins) != 1 or origins[0] not in own):
        return False
    site = request.only(b"sec-fetch-site")
    if site is None:  # no browser of today, or an insecure page, where browsers do not say
        return b"upgrade" not in {field.name for field in request.fields} or bool(origins)
    if site in _OWN:
        return True
    leads = request.only(b"sec-fetch-mode") == b"navigate" and request.only(b"sec-fetch-dest") == b"document"
    return leads and request.method in {b"GET", b"HEAD"}
