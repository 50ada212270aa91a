"""Gateways: the fixed places from which sandboxes' connections leave, for those who must know whence they come.

Defined by the operator alone. A connection that should leave by a gateway leaves by it or not at all.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Final

from ringfence.domain import names
from ringfence.domain.errors import BadRequest

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
MOST_SECRET: Final = 255  # bytes of a user's name or a password: one length byte each in SOCKS5
_FIELDS: Final = frozenset({"kind", "address", "port", "username", "password", "tenants"})


class Kind(enum.StrEnum):
    """How a gateway is used."""

    SOURCE = "source"  # one of this host's own addresses, from which connections are made
    HTTP = "http"  # a proxy that takes CONNECT
    SOCKS5 = "socks5"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway. What it is sent is always an address that was judged here, never a name."""

    name: str
    kind: Kind
    address: IPv4Address
    port: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tenants: frozenset[str] = frozenset()  # who may ask for it; empty: everybody

    @property
    def place(self) -> str:
        """Where it is, for people; never its credentials."""
        return f"{self.address}:{self.port}" if self.port else str(self.address)

    def serves(self, tenant: str) -> bool:
        """Whether a tenant may use it."""
        return not self.tenants or tenant in self.tenants


def gateway_name(value: object, where: str) -> str:
    """The name of a gateway, or nothing. Raises BadRequest, saying where it was read."""
    if value == "" or (isinstance(value, str) and NAME.fullmatch(value)):
        return str(value)
    raise BadRequest(
        f"{where}: a gateway's name is lower-case letters, digits and dashes, not {value!r:.80}", code="bad_gateway"
    )


def _bad(name: str, why: str) -> BadRequest:
    return BadRequest(f"egress gateway {name!r:.80} {why}", code="bad_gateway")


def _secret(name: str, table: dict[str, Any], what: str) -> str:
    value = table.get(what, "")
    if not isinstance(value, str) or len(value.encode()) > MOST_SECRET or not value.isprintable():
        raise _bad(name, f"has a {what} that is no plain text of at most {MOST_SECRET} bytes")
    return value


def _port(name: str, kind: Kind, value: object) -> int:
    proxy = kind is not Kind.SOURCE
    if isinstance(value, bool) or not isinstance(value, int) or not proxy <= value <= (65_535 if proxy else 0):
        raise _bad(name, "is a proxy and needs a port from 1 to 65535" if proxy else "is an address and has no port")
    return value


def gateway_from(name: str, table: Any) -> Gateway:
    """Check one gateway's settings. Raises BadRequest, which never repeats a password."""
    if not NAME.fullmatch(name):
        raise _bad(name, "has a name of other than lower-case letters, digits and dashes")
    if not isinstance(table, dict) or set(table) - _FIELDS:
        raise _bad(name, f"is no table of {', '.join(sorted(_FIELDS))}")
    if table.get("kind") not in list(Kind):
        raise _bad(name, f"has a kind that is none of {', '.join(Kind)}")
    kind, tenants = Kind(table["kind"]), table.get("tenants", [])
    try:
        address = names.address(str(table.get("address", "")))
    except names.BadName as error:
        raise _bad(name, f"has an address that {error}") from None
    if not isinstance(tenants, list) or not all(isinstance(tenant, str) for tenant in tenants):
        raise _bad(name, "has tenants that are no list of names")
    username, password = _secret(name, table, "username"), _secret(name, table, "password")
    if (username or password) and (kind is Kind.SOURCE or not username or ":" in username):
        raise _bad(name, "has credentials that cannot be used: a proxy's, with a username without a colon")
    return Gateway(name, kind, address, _port(name, kind, table.get("port", 0)), username, password, frozenset(tenants))


def gateway_to(gateway: Gateway) -> dict[str, Any]:
    """The table that gateway_from() reads back, its credentials included: for the process that connects, alone."""
    table = {name: getattr(gateway, name) for name in ("port", "username", "password")}
    fixed = {"kind": str(gateway.kind), "address": str(gateway.address), "tenants": sorted(gateway.tenants)}
    return {**table, **fixed}


def agreed(asked: str, pinned: str, by: str) -> str:
    """The gateway by which a sandbox leaves. Raises BadRequest when it asks for another than it must use."""
    if asked and pinned and asked != pinned:
        raise BadRequest(
            f"{by} must leave by the egress gateway {pinned}, not by {asked:.80}",
            code="gateway_pinned",
            remediation="leave egress_gateway out",
        )
    return pinned or asked
