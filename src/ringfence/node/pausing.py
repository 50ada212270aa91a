"""A sandbox held still while its files leave it, and one that gets them back under the same id."""

from __future__ import annotations

import time
from typing import Any, Final

from ringfence.domain.errors import BadRequest, Conflict, NotFound
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.domain.sandbox import ID
from ringfence.domain.secrets import trust_from, with_hosts
from ringfence.node.beginning import begin
from ringfence.node.egress import check_network
from ringfence.node.isolation import AUTO
from ringfence.node.live import Live
from ringfence.node.relay import Outlet, Relay
from ringfence.node.supervisor import Supervisor
from ringfence.runtimes.base import StartSpec
from ringfence.templates.catalog import Built

PAUSED: Final = "its sandbox was paused: files are kept, programs end"


def hold(node: Supervisor, live: Live, holder: object, payload: bytes, outlet: Outlet, *, expired: bool) -> Relay:
    """Keep everybody but `holder` from a sandbox, end what is under way in it, and open one stream into it."""
    if expired and not live.expiring:
        raise Conflict("the sandbox's time is not over any more", code="not_expired")
    for relay in node.relays_of(live):
        relay.condemn(How.STOPPED, PAUSED)
    live.held = holder
    return node.open(live, payload, outlet, program=False)


def let_go(node: Supervisor, live: Live, reason: str) -> None:
    """It goes on; its programs have ended."""
    live.held = None
    live.touch()
    node.emit("sandbox.pause_failed", live, reason=reason, programs="ended", files="unchanged")


def left(node: Supervisor, holder: object) -> None:
    """An api is gone: what it was pausing goes on."""
    for live in node.table.of(None):
        if live.held is holder:
            let_go(node, live, "the server went away meanwhile")


async def restored(
    node: Supervisor, ask: dict[str, Any], limits: Limits, ttl: float, begins: bytes
) -> tuple[Live, dict[str, float]]:
    """A sandbox that was paused, by its own id and with nothing in it yet. Raises Conflict when it cannot be had."""
    name, begun = str(ask["id"]), time.monotonic()
    if not ID.fullmatch(name) or name[0] != "s":
        raise BadRequest("not a sandbox's id", code="bad_id")
    if node.knows(name):
        raise Conflict("the sandbox is there already", code="sandbox_busy", remediation="try again shortly")
    built, trust = _same(node, ask), trust_from(ask)
    trusted = built.trusted_root
    policy = with_hosts(node.policy(ask), trust)
    runtime = node.isolation.choose(str(ask.get("isolation", AUTO)), built.template, trusted=trusted is not None)
    if policy.networked:
        check_network(runtime)
    words = ask["tenant"], built.template, built.root, built.digest, limits, False, False, policy.networked
    live = await node.made_now(runtime, StartSpec(name, *words, trusted_root=trusted, python=built.python))
    live.begins = begins
    await node.give(live, ask, limits, ttl, policy, trust)
    return live, {"queue": 0.0, "claim": (time.monotonic() - begun) * 1e3}


def _same(node: Supervisor, ask: dict[str, Any]) -> Built:
    """The template as it was. Raises Conflict when it was rebuilt or removed since."""
    try:
        built = node.built(ask["template"], tenant=ask["tenant"], fresh=True)
    except NotFound:
        built = None
    if built is None or built.digest != ask["template_digest"]:
        raise Conflict(
            f"template {ask['template']} is not any more what it was when the sandbox was made",
            code="template_gone",
            remediation="build the template it was made from again, or stop the sandbox",
        )
    return built


async def awake(node: Supervisor, live: Live, ttl: float) -> None:
    """Its files are back: its time begins, and what it begins with runs. That this cannot start is told, no more."""
    live.live_for(ttl)
    live.touch()
    if await begin(live):
        node.emit("sandbox.start_failed", live, reason="the program it begins with could not be started again")
