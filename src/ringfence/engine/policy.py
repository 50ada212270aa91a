"""What the operator allows, as frozen values; and the counting that holds tenants to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ringfence import wire
from ringfence.domain.egress import DEFAULT_FLOOR, Floor, policy_from, policy_to
from ringfence.domain.errors import BadRequest, OverQuota
from ringfence.domain.gateways import Gateway, agreed
from ringfence.domain.limits import Limits, limits_from

RUN_LABEL: Final = "ringfence.run"  # marks a one-shot run's sandbox at the node, so that an orphan can be told
RESERVED: Final = "ringfence."


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One tenant's own maxima."""

    max_sandboxes: int = 1000
    max_runs: int = 1000
    max_requests: int = 2000
    max_ttl_seconds: float = 86_400.0
    max_paused_bytes: int = 10 * 1024**3
    most: Limits | None = None
    egress_gateway: str = ""  # by which all its sandboxes leave

    def limits(self, wanted: dict[str, object], base: Limits) -> Limits:
        """What a sandbox gets: a template's defaults, never above the tenant's maxima, and what was asked for."""
        if self.most is not None:
            ceiling = self.most
            base = replace(
                base,
                **{name: min(getattr(base, name), getattr(ceiling, name)) for name in Limits.__slots__},
            )
        return limits_from(wanted, base, self.most) if wanted else base


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's choices that the engine enforces."""

    ceiling: Callable[[str], Ceiling] = field(default=lambda _tenant: Ceiling())
    runtimes: frozenset[str] = frozenset()  # empty: every runtime of the node
    wait_seconds: float = 10.0
    collected_bytes: int = 10 * 1024 * 1024
    keep_seconds: float = 30 * 86_400.0
    keep_paused_seconds: float = 30 * 86_400.0
    keep_runs: int = 200_000
    keep_events: int = 100_000
    floor: Floor = DEFAULT_FLOOR  # below every egress policy
    learn: bool = False  # whether a policy may let everything above the floor pass
    gateways: Mapping[str, Gateway] = field(default_factory=dict)  # without their credentials

    def egress(self, wanted: wire.Egress) -> dict[str, Any]:
        """The node's words for an egress policy; none for none asked. Raises BadRequest with the rule's index."""
        return {} if wanted is None else {"egress": policy_to(policy_from(wanted, self.floor, learn=self.learn))}

    def gateway(self, tenant: str, asked: str) -> dict[str, Any]:
        """The node's words for how a sandbox leaves; none for directly. Raises BadRequest for one it may not use."""
        pinned = self.ceiling(tenant).egress_gateway
        if not asked and not pinned:
            return {}
        name = agreed(asked, pinned, "this tenant")
        known = self.gateways.get(name)
        if known is None or (name != pinned and not known.serves(tenant)):
            raise BadRequest(
                f"no egress gateway {name!r:.80} for this tenant",
                code="unknown_gateway",
                remediation="list them with GET /v1/egress/gateways or `ringfence policy gateways`",
            )
        return {"egress_gateway": name}

    def isolation(self, wanted: str) -> str:
        """The runtime asked for. Raises BadRequest when the operator does not offer it."""
        if wanted != "auto" and self.runtimes and wanted not in self.runtimes:
            raise BadRequest(
                f"runtime {wanted!r:.40} is not offered here",
                code="unknown_runtime",
                remediation=f'use "auto" or one of {", ".join(sorted(self.runtimes))}',
            )
        return wanted


class Place:
    """One of a bounded number, held from its making until the `with` it is used in ends."""

    __slots__ = ("_counter", "_tenant")

    def __init__(self, counter: Counter[str], tenant: str, most: int, what: str) -> None:
        if counter[tenant] >= most:
            raise OverQuota(
                f"this tenant has as many {what} as it may",
                remediation="wait for some to end, or have the operator raise the tenant's maximum",
            )
        counter[tenant] += 1
        self._counter = counter
        self._tenant = tenant

    def __enter__(self) -> None:
        """Held already."""

    def __exit__(self, *_: object) -> None:
        self._counter[self._tenant] -= 1
        if not self._counter[self._tenant]:
            del self._counter[self._tenant]


class Admission:
    """Counts what each tenant has running. Exact: one process, one thread, counted before anything is awaited."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._requests: Counter[str] = Counter()
        self._runs: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._sandboxes: dict[str, set[str]] = {}

    def runs(self, tenant: str) -> int:
        """How many runs are under way."""
        return self._runs[tenant]

    def sandboxes(self, tenant: str) -> int:
        """How many sandboxes live or are being made."""
        return len(self._sandboxes.get(tenant, ())) + self._pending[tenant]

    def request(self, tenant: str) -> Place:
        """Hold a place for a request, streams and WebSockets included. Raises OverQuota."""
        return Place(self._requests, tenant, self._policy.ceiling(tenant).max_requests, "requests at once")

    def run(self, tenant: str) -> Place:
        """Hold a place for a run. Raises OverQuota."""
        return Place(self._runs, tenant, self._policy.ceiling(tenant).max_runs, "runs at once")

    def creating(self, tenant: str) -> Place:
        """Hold a place for a sandbox being made; joined() makes it last. Raises OverQuota."""
        living = len(self._sandboxes.get(tenant, ()))
        return Place(self._pending, tenant, self._policy.ceiling(tenant).max_sandboxes - living, "live sandboxes")

    def joined(self, tenant: str, sandbox_id: str) -> None:
        """A sandbox lives."""
        self._sandboxes.setdefault(tenant, set()).add(sandbox_id)

    def left(self, tenant: str, sandbox_id: str) -> None:
        """A sandbox ended; harmless to say twice."""
        mine = self._sandboxes.get(tenant)
        if mine is not None:
            mine.discard(sandbox_id)
            if not mine:
                del self._sandboxes[tenant]
