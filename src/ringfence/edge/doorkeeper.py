"""Who may pass through a published port, and by what. What may not be seen and what is not there are one answer."""

from __future__ import annotations

import time
from typing import Final

from ringfence import wire
from ringfence.config import EdgeSettings
from ringfence.domain.errors import Forbidden, NotFound
from ringfence.edge import access, crossing
from ringfence.edge.parse import Request, all_of
from ringfence.edge.ports import BY_KEY, IN_PUBLIC, Route
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

    def grant(self, request: Request, route: Route, *, shared: bool) -> str:
        """What lets this request in. Raises NotFound when nothing does, Forbidden for a page of another origin."""
        shown = all_of(request.fields, crossing.ACCESS)
        if shown:
            found = self._by_header(shown, route)
        elif shared and not self._browsers_on_paths:
            found = None  # every path is one origin: a page of one sandbox would speak for its reader to all the others
        elif route.public:
            found = IN_PUBLIC
        else:
            found = None if shared else self._by_cookie(request, route)
        if found is None:
            raise nothing_here()
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
