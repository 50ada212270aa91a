"""The address of the edge, bound before anything else of it is there: the server's parent holds it over restarts."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from ringfence.config import EdgeSettings
from ringfence.domain.errors import PlatformFault

BESIDE: Final = 1000  # not the next port: that is where a second server is put


def listen(settings: EdgeSettings, api_port: int) -> socket.socket:
    """The socket published ports are served at. Raises PlatformFault when the port that was asked for is taken."""
    if settings.port >= 0:
        return _bound(settings.host, settings.port)
    with contextlib.suppress(PlatformFault):
        return _bound(settings.host, api_port + BESIDE if 0 < api_port <= 65_535 - BESIDE else 0)
    return _bound(settings.host, 0)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except OSError as error:
        raise PlatformFault(
            f"the edge cannot listen at {host} port {port}: {error.strerror or error}",
            code="cannot_listen",
            remediation="choose another port in [edge]",
        ) from None
