"""Egress policies as such: what one means, what a program's own would be, which bundles and gateways there are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from ringfence import wire, wire_egress
from ringfence.domain import learning
from ringfence.domain.bundles import BUNDLES
from ringfence.domain.egress import bundle, policy_from, policy_to, refusals
from ringfence.domain.errors import BadRequest, NotFound, RingfenceError
from ringfence.domain.meaning import meaning
from ringfence.engine import checks
from ringfence.engine.answers import SandboxEnd
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.policy import Policy
from ringfence.engine.runs import Runs
from ringfence.engine.sandboxes import Sandboxes
from ringfence.store.base import Store

MOST_SUBJECTS: Final = 50  # runs and sandboxes that one proposal is made from
MOST_EVENTS: Final = 20_000  # of one of them
GONE_SECONDS: Final = 30.0  # within which a run's sandbox is gone, and all it did told of
SETTLE_SECONDS: Final = 0.1  # between the node's word and the store


def checked(egress: wire.Egress, policy: Policy) -> wire_egress.EgressChecked:
    """What a policy means here, or what is wrong with it: every refused rule, not the first alone."""
    refused = [wire_egress.EgressRefusal(index=index, reason=why) for index, why in refusals(egress, policy.floor)]
    try:
        found = policy_from(egress, policy.floor, learn=policy.learn)
    except BadRequest as error:
        cause = wire.ErrorBody(code=error.code, cause=error.cause, remediation=error.remediation)
        return wire_egress.EgressChecked(ok=False, refused=refused, error=cause)
    return wire_egress.EgressChecked(ok=True, policy=policy_to(found), meaning=meaning(found))


def bundles() -> list[wire_egress.EgressBundle]:
    """Every bundle with its rules and why each is in it."""
    return [
        wire_egress.EgressBundle(
            name=name,
            rules=[
                wire_egress.EgressRule(
                    domain=rule.domain,
                    ports=list(rule.ports),
                    protocol=str(rule.protocol),
                    reason=rule.reason.removeprefix(f"{name}: "),
                )
                for rule in bundle(name)
            ],
        )
        for name in BUNDLES
    ]


def answer_of(learnt: learning.Learnt) -> wire_egress.EgressLearned:
    """A proposal as it crosses HTTP."""
    seen = [
        wire_egress.EgressSeen(
            place=each.place,
            protocol=str(each.protocol),
            port=each.port,
            requests=[f"{method} {path}" for method, path in sorted(each.requests)],
            times=each.times,
            denied=each.denied,
            sent=each.sent,
            received=each.received,
            events=each.events,
            by=each.by,
        )
        for each in learnt.seen
    ]
    refused = [
        wire_egress.EgressRefused(place=r.place, protocol=r.protocol, port=r.port, reason=r.reason, event=r.event)
        for r in learnt.refused
    ]
    return wire_egress.EgressLearned(
        policy=learnt.policy(),
        bundles=list(learnt.bundles),
        seen=seen,
        refused=refused,
        notes=list(learnt.notes),
        unrecorded=learnt.unrecorded,
    )


class Egress:
    """A tenant's questions about egress."""

    def __init__(self, node: NodeClient, store: Store, policy: Policy, sandboxes: Sandboxes, runs: Runs) -> None:
        self._node = node
        self._store = store
        self._policy = policy
        self._sandboxes = sandboxes
        self._runs = runs

    def check(self, egress: wire.Egress) -> wire_egress.EgressChecked:
        """What a policy means here; never an error, for what is wrong with it is the answer."""
        return checked(egress, self._policy)

    def gateways(self, tenant: str) -> list[wire_egress.EgressGateway]:
        """The gateways by which this tenant may leave; nothing of their credentials."""
        pinned = self._policy.ceiling(tenant).egress_gateway
        return [
            wire_egress.EgressGateway(name=name, kind=str(each.kind), address=each.place, pinned=name == pinned)
            for name, each in sorted(self._policy.gateways.items())
            if name == pinned or (not pinned and each.serves(tenant))
        ]

    async def report(self, tenant: str, seconds: float, step: float) -> wire_egress.EgressReport:
        """What this tenant's connections came to, by destination and step of time."""
        await self._store.flush()
        since = time.time() - seconds
        sums = self._store.egress_sums(tenant, since, step, MOST_EVENTS)
        return wire_egress.EgressReport(since=since, step=step, most=MOST_EVENTS, sums=sums)

    async def learned(self, tenant: str, request: wire_egress.EgressLearnRequest) -> wire_egress.EgressLearned:
        """The least policy for what some runs and sandboxes did. Raises NotFound for one that is not the tenant's."""
        if not 1 <= len(request.ids) <= MOST_SUBJECTS:
            raise BadRequest(f"ids must name 1 to {MOST_SUBJECTS} runs or sandboxes", code="bad_ids")
        sandboxes = [await self._sandbox_of(tenant, subject) for subject in dict.fromkeys(request.ids)]
        await asyncio.sleep(SETTLE_SECONDS)
        await self._store.flush()
        sights = []
        for sandbox in filter(None, sandboxes):
            events = self._store.events_about(tenant, sandbox, MOST_EVENTS)
            found = (learning.sight_from(event.id, event.type, event.data) for event in events)
            sights += [sight for sight in found if sight is not None]
        return answer_of(learning.learn(sights, generalise=request.generalise))

    async def _sandbox_of(self, tenant: str, subject: str) -> str | None:
        """The sandbox of a run, once it is gone and has told everything; a sandbox as it is."""
        if subject.startswith("s"):
            return (await self._sandboxes.get(tenant, checks.identifier(subject, "s"))).id
        run = await self._runs.get(tenant, subject)
        if run.sandbox is not None:
            with contextlib.suppress(TimeoutError, RingfenceError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._gone(tenant, run.sandbox)
        return run.sandbox

    async def _gone(self, tenant: str, sandbox: str) -> None:
        while True:
            try:
                await self._node.call({"verb": "get", "tenant": tenant, "sandbox": sandbox}, SandboxEnd)
            except NotFound:
                return
            await asyncio.sleep(0.02)
