"""E2B's network options as an egress policy of ours.

E2B opens the internet unless told otherwise. We do not: a sandbox reaches what its options name and what the operator's
`[e2b.internet]` allows, by default nothing. What a policy cannot say (everything, all but some) is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from ringfence import wire
from ringfence.api.compat.e2b.shapes import Network
from ringfence.config import E2bSettings
from ringfence.domain.errors import BadRequest

EVERYWHERE: Final = "0.0.0.0/0"


def _refused(cause: str, hint: str = "") -> BadRequest:
    return BadRequest(cause, code="unsupported_network", remediation=hint)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _allowed(names: Sequence[str], settings: E2bSettings) -> list[str | dict[str, Any]]:
    """Rules for an allow list: names by TLS and by plain HTTP, addresses at the operator's ports."""
    rules: list[str | dict[str, Any]] = []
    for name in names:
        if _is_address(name):
            network = str(ipaddress.ip_network(name, strict=False))
            rules.append({"cidr": network, "ports": sorted(set(settings.out_ports))})
        else:
            rules += [name, {"domain": name, "protocol": "http"}]
    return rules


def egress(
    network: Network | None, asked: bool | None, settings: E2bSettings, *, always_said: bool = False
) -> wire.Egress:
    """The policy that these options mean. Raises BadRequest for what cannot be honoured.

    `always_said`: the clients of the first create route say true whatever their user wanted, so that says nothing.
    """
    allow, deny = (network.allow_out or [], network.deny_out or []) if network is not None else ([], [])
    if asked and not settings.internet and not always_said:
        raise _refused(
            "allow_internet_access: this server gives sandboxes no internet access",
            "leave it out, or name what is needed in network.allow_out; the operator decides by [e2b.internet]",
        )
    if EVERYWHERE in allow:
        raise _refused(f"network.allow_out: {EVERYWHERE} is not offered by this server", "name what is needed")
    closed = asked is False or EVERYWHERE in deny or not settings.internet
    if not closed and deny:
        raise _refused(
            "network.deny_out: all but some addresses cannot be said here",
            f"deny {EVERYWHERE} and name what is needed in network.allow_out",
        )
    if not closed:
        return {**settings.internet, "allow": [*settings.internet.get("allow", []), *_allowed(allow, settings)]}
    # With an empty list there is a network that reaches nothing, yet: an update may name what it shall reach.
    return None if network is None else _allowed(allow, settings)


def told(network: Network | None) -> dict[str, Any]:
    """The options as they are told back."""
    if network is None:
        return {}
    fields = {
        "allowOut": network.allow_out,
        "denyOut": network.deny_out,
        "allowPublicTraffic": network.allow_public_traffic,
    }
    return {name: value for name, value in fields.items() if value is not None}
