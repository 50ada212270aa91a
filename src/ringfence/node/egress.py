"""What a sandbox may reach, checked again on this side of the socket, and whether a runtime can hold it to that."""

from __future__ import annotations

import dataclasses
from typing import Any

from ringfence.domain.egress import Floor, Policy, policy_from, policy_to
from ringfence.domain.errors import BadRequest
from ringfence.domain.gateways import agreed
from ringfence.domain.template import Template
from ringfence.runtimes.base import Networked, Runtime


def policy_of(
    ask: dict[str, Any], template: Template, floor: Floor, gateways: frozenset[str], *, learn: bool
) -> Policy:
    """What was asked for, else what the template says; both by the floor of this node. Raises BadRequest.

    The gateway is decided for a policy that allows nothing as well: the hosts of secrets may be added to it.
    """
    if "egress" in ask:
        policy = policy_from(ask["egress"], floor, learn=learn)
    elif template.egress.networked:
        policy = policy_from(policy_to(template.egress), floor)
    else:
        policy = template.egress
    gateway = agreed(str(ask.get("egress_gateway", "")), template.egress_gateway, template.name)
    if gateway and gateway not in gateways:
        raise BadRequest(f"no egress gateway {gateway!r:.80} here", code="unknown_gateway")
    return dataclasses.replace(policy, gateway=gateway) if gateway != policy.gateway else policy


def check_network(runtime: Runtime) -> None:
    """Refuse what cannot be enforced, with the reason. Never a network without its policy."""
    why = runtime.capabilities().offline if isinstance(runtime, Networked) else "it has no network for sandboxes yet"
    if why:
        raise BadRequest(
            f"{runtime.name} cannot enforce an egress policy here: {why}",
            code="egress_unsupported",
            remediation='leave egress out, or use "none"; see `ringfence doctor`',
        )
