"""What the sync and the async WebSocket share: where to connect, and what a close code means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlencode

from websockets.frames import Close

from ringfence.client.calls import ROOT, Pairs
from ringfence.client.errors import Unreachable, error_from
from ringfence.client.settings import Target
from ringfence.domain.errors import RingfenceError

MOST: Final = 1024 * 1024  # a terminal's or a tunnel's message is at most a few frames
STATUS: Final = {4400: 400, 4401: 401, 4403: 403, 4404: 404, 4409: 409, 4429: 429, 1008: 403, 1009: 413, 1011: 500}


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A WebSocket's address, its headers and whether the environment's proxy may be used."""

    url: str
    headers: dict[str, str]
    proxy: Literal[True] | None

    @classmethod
    def at(cls, target: Target, path: str, params: Pairs = ()) -> LinkSpec:
        """The link to a path of the server these settings name."""
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        url = f"{target.websocket_url}{ROOT}{path}{'?' + urlencode(params) if params else ''}"
        return cls(url, headers, None if target.loopback else True)


def closed(close: Close | None, spec: LinkSpec) -> RingfenceError:
    """The error behind a connection that did not end in order."""
    if close is None or close.code not in STATUS:
        hint = "try again; if it keeps happening look at `ringfence status`"
        return Unreachable(f"lost the connection to {spec.url}", remediation=hint)
    error: dict[str, Any] = {"code": close.reason or "closed", "cause": close.reason or f"closed with {close.code}"}
    return error_from(STATUS[close.code], error)
