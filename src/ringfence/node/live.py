"""One live sandbox as the node knows it, and the table of all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ringfence.domain.egress import NOTHING, Policy, policy_to
from ringfence.domain.errors import Conflict, NotFound
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.domain.sandbox import State
from ringfence.domain.secrets import Trust
from ringfence.node.link import GuestLink
from ringfence.runtimes.base import Runtime, Started, StartSpec


@dataclass(eq=False)
class Live:
    """A started sandbox: first warm and nobody's, then its tenant's until it ends."""

    spec: StartSpec
    started: Started
    link: GuestLink
    by: Runtime
    state: State = State.STARTING
    labels: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    created_at: float = 0.0
    expires_at: float = 0.0  # for people to read
    deadline: float = 0.0
    last_active: float = field(default_factory=time.monotonic)
    warned: bool = False
    doomed: tuple[How, str] | None = None  # why the node is ending it, once it is
    tells: bool = False  # its end is told as a stop, once nothing of it is left
    programs: int = 0  # program streams open now
    egress: Policy = NOTHING  # what it may reach now
    trust: Trust | None = None  # its secrets
    furnishing: bytes = b""  # what its agent is told before anything runs in it
    ttl: float = 0.0  # seconds it was last given to live
    on_timeout: str = "stop"  # what becomes of it when its time is over
    wake: bool = False  # whether using it while it is paused resumes it: its owner's wish, kept for the api
    expiring: float = 0.0  # its time is over and the api was asked to pause it: within this moment
    held: object | None = None  # which connection is pausing it: nothing else comes to it meanwhile
    spent: bool = False  # a lone run's sandbox has had its one order
    building: bool = False  # for a build of its tenant's: no sandbox that anybody lists
    begins: bytes = b""  # the agent's words for the program it begins with, unread here

    @property
    def runtime(self) -> str:
        """What isolates it."""
        return self.by.name

    @property
    def limits_by(self) -> str:
        """What enforces its limits."""
        return self.by.capabilities().limits_by

    @property
    def id(self) -> str:
        """Its id, which every kernel object of it carries."""
        return self.spec.id

    def claim(self, labels: dict[str, str], limits: Limits, ttl: float, created_at: float | None = None) -> None:
        """It becomes its tenant's, for good: it is never handed to another or put back."""
        self.state = State.RUNNING
        self.labels = labels
        self.limits = limits
        self.created_at = time.time() if created_at is None else created_at
        self.live_for(ttl)
        self.touch()

    def succeed(self, old: Live) -> None:
        """Take the place of one that was reset: everything its owner gave it, and nothing that was in it."""
        self.claim(old.labels, old.limits, 0.0)
        self.created_at, self.expires_at, self.deadline = old.created_at, old.expires_at, old.deadline
        self.begins, self.furnishing = old.begins, old.furnishing
        self.ttl, self.expiring, self.on_timeout, self.wake = old.ttl, old.expiring, old.on_timeout, old.wake

    def live_for(self, seconds: float) -> None:
        """A new end, counted from now; kept on a clock that nobody can set."""
        self.ttl, self.expiring = seconds, 0.0
        self.deadline = time.monotonic() + seconds
        self.expires_at = time.time() + seconds

    def touch(self) -> None:
        """Somebody used it just now."""
        self.last_active = time.monotonic()
        self.warned = False

    def describe(self) -> dict[str, Any]:
        """What its owner may see."""
        limits = {name: getattr(self.limits, name) for name in Limits.__slots__}
        return {
            "id": self.id,
            "tenant": self.spec.tenant,
            "template": self.spec.template.name,
            "template_digest": self.spec.template_digest,
            "runtime": self.runtime,
            "state": str(self.state),
            "labels": self.labels,
            "limits": limits,
            "egress": policy_to(self.egress),
            "egress_gateway": self.egress.gateway,
            "secrets": [held.name for held in self.trust.held] if self.trust is not None else [],
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "ttl_seconds": self.ttl,
            "on_timeout": self.on_timeout,
            "wake": self.wake,
            "expiring": self.expiring > 0,
            "layers": list(self.started.layers),
            "limits_by": self.limits_by,
            "idle_seconds": max(0.0, time.monotonic() - self.last_active),
        }


class Table:
    """Every claimed sandbox by id; a foreign id and an unknown one are the same answer."""

    def __init__(self) -> None:
        self._rows: dict[str, Live] = {}

    def add(self, live: Live) -> None:
        """It is its tenant's now."""
        self._rows[live.id] = live

    def drop(self, live: Live) -> None:
        """It is gone; harmless when it was already, or when another has its id by now."""
        if self._rows.get(live.id) is live:
            del self._rows[live.id]

    def get(self, tenant: str, sandbox_id: str, *, held: bool = False) -> Live:
        """The tenant's own live sandbox. Raises NotFound, and Conflict for one being paused unless `held`."""
        live = self._rows.get(sandbox_id)
        if live is None or live.spec.tenant != tenant or live.state is not State.RUNNING:
            raise NotFound("no such sandbox", code="sandbox_not_found")
        if live.held is not None and not held:
            raise Conflict("the sandbox is being paused", code="sandbox_paused", remediation="resume it first")
        return live

    def find(self, sandbox_id: str) -> Live | None:
        """Whoever's it is; for what happened to it, never for an asker."""
        return self._rows.get(sandbox_id)

    def of(self, tenant: str | None) -> list[Live]:
        """Every one of a tenant's, or everyone's."""
        return [live for live in self._rows.values() if tenant is None or live.spec.tenant == tenant]

    def ids(self) -> set[str]:
        """All ids."""
        return set(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
