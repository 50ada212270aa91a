"""What a client of the tests trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

from ringfence.client._sync.tls import TurnsContext


def trusting(authority: Path) -> TurnsContext:
    """A client's context that trusts this authority alone, for a connection that two threads use."""
    context = TurnsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    return context
