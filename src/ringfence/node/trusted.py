"""What a living sandbox may reach, and with which secrets, put in force by its runtime. No value is looked at here."""

from __future__ import annotations

from typing import Any

from ringfence.domain.egress import Policy
from ringfence.domain.errors import PlatformFault
from ringfence.domain.sandbox import State
from ringfence.domain.secrets import Trust, changed, held_from
from ringfence.node.live import Live, Table
from ringfence.runtimes.base import Networked


async def put_in_force(live: Live, policy: Policy, trust: Trust | None = None) -> None:
    """Let a sandbox reach what a policy allows, with the secrets it has or with these.

    Raises SandboxRefused and PlatformFault.
    """
    if not isinstance(live.by, Networked):
        raise PlatformFault(f"{live.runtime} has no network", code="no_network")
    if trust is not None:
        await live.by.entrust(live.id, live.spec.tenant, trust)
        live.trust = trust
    await live.by.allow(live.id, policy)
    live.egress = policy


async def change_secret(table: Table, ask: dict[str, Any]) -> None:
    """Let a tenant's living sandboxes have a secret as it is now, under their own placeholders; or not any more.

    What they may reach stays as it is. Raises PlatformFault when that cannot be put in force.
    """
    words = ask["secret"]
    now = held_from(words) if words is not None else None
    for live in table.of(ask["tenant"]):
        trust = changed(live.trust, str(ask["name"]), now) if live.trust is not None else None
        if trust == live.trust:
            continue
        if live.state is State.RUNNING:
            await put_in_force(live, live.egress, trust)
        else:
            live.trust = trust  # one that is being reset hands it on
