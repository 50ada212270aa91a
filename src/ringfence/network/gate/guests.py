"""The sandboxes a gate knows: what each may reach, what was resolved for it, and what it has open."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Protocol

from ringfence.domain.egress import NOTHING, Asker, Mode, Policy, Rule
from ringfence.domain.egress import Protocol as Way
from ringfence.domain.gateways import Gateway
from ringfence.network.gate.opening import Entrusted

MOST_NAMES: Final = 1024  # remembered for one sandbox; the longest unasked is forgotten
MOST_FLOWS: Final = 256
MOST_QUESTIONS: Final = 64  # of one sandbox under way at once
STALE_SECONDS: Final = 300.0  # how long beyond its time an address may still be connected to, where it alone counts
EVENTS_PER_SECOND: Final = 10.0
EVENTS_BURST: Final = 200.0
STUDY_PER_SECOND: Final = 50.0  # the same, while a policy is learnt or rehearsed: what is not told is not learnt
STUDY_BURST: Final = 2000.0
# What names without a rule resolve to in a rehearsal: of the sandboxes' own range, but of none of them.
PLACEHOLDERS: Final = IPv4Network("198.19.0.0/16")


class Cuttable(Protocol):
    """A connection under way."""

    def still_allowed(self) -> bool:
        """Whether the sandbox's policy, as it is now, would allow it."""
        ...

    def cut(self, reason: str) -> None:
        """End it at once."""
        ...


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a name was resolved to, for one sandbox."""

    addresses: tuple[IPv4Address, ...]
    until: float


class Pins:
    """Which addresses were given for which name. Only these may be connected to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._fresh: OrderedDict[str, Pinned] = OrderedDict()
        self._given: dict[str, dict[IPv4Address, float]] = {}

    def pin(self, name: str, addresses: tuple[IPv4Address, ...], ttl: float) -> None:
        """Remember an answer."""
        until = self._clock() + ttl
        self._fresh[name] = Pinned(addresses, until)
        self._fresh.move_to_end(name)
        given = self._given.setdefault(name, {})
        given |= dict.fromkeys(addresses, until)
        while len(given) > MOST_FLOWS:
            del given[next(iter(given))]
        while len(self._fresh) > MOST_NAMES:
            del self._given[self._fresh.popitem(last=False)[0]]

    def fresh(self, name: str) -> Pinned | None:
        """The answer for a name while it is still valid."""
        pinned = self._fresh.get(name)
        return pinned if pinned is not None and pinned.until > self._clock() else None

    def was_given(self, name: str, address: IPv4Address) -> bool:
        """Whether the sandbox has ever been told this address for this name."""
        return address in self._given.get(name, ())

    def given(self, name: str) -> IPv4Address | None:
        """An address that was given for a name, if any was."""
        return next(iter(self._given.get(name, ())), None)

    def names_of(self, address: IPv4Address) -> list[str]:
        """The names for which this address was given, and not too long ago."""
        oldest = self._clock() - STALE_SECONDS
        return [name for name, given in self._given.items() if given.get(address, oldest) > oldest]

    def keep(self, allowed: Callable[[str], bool]) -> None:
        """Forget every name that is not allowed any more."""
        for name in [name for name in self._fresh if not allowed(name)]:
            del self._fresh[name], self._given[name]


class Pace:
    """A bucket of tokens: how many events a sandbox may cause, and how many were swallowed since the last."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()
        self.swallowed = 0

    def take(self) -> bool:
        """Whether there is one more; counts it otherwise."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            self.swallowed += 1
            return False
        self._tokens -= 1
        return True


def pace_of(policy: Policy) -> Pace:
    """How many events a sandbox with this policy may cause."""
    studies = policy.mode in {Mode.LEARN, Mode.REHEARSE}
    return Pace(STUDY_PER_SECOND, STUDY_BURST) if studies else Pace(EVENTS_PER_SECOND, EVENTS_BURST)


@dataclass(eq=False)
class Guest:
    """One sandbox."""

    id: str
    address: IPv4Address
    asker: Asker
    gateway: Gateway | None = None  # by which its connections leave
    entrusted: Entrusted | None = None  # its secrets, if it has any
    pins: Pins = field(default_factory=Pins)
    pace: Pace = field(init=False)
    flows: set[Cuttable] = field(default_factory=set)
    questions: int = 0
    bytes: int = 0
    pretended: int = 0  # names that were given an address that nobody has

    def __post_init__(self) -> None:
        self.pace = pace_of(self.asker.policy)

    @property
    def spent(self) -> bool:
        """Whether it has sent and received as much as it may."""
        most = self.asker.policy.max_bytes
        return bool(most) and self.bytes >= most

    def by_pin(self, address: IPv4Address, port: int) -> tuple[str, Rule] | None:
        """The name and rule by which an address may be connected to although nothing more is known of it."""
        for name in self.pins.names_of(address):
            rule = self.asker.by_name(name, port, Way.TCP)
            if rule is not None:
                return name, rule
        return None

    def pretend(self, name: str, ttl: float) -> Pinned:
        """Pin a name to an address that nobody has: a connection to it comes here, and goes nowhere."""
        known = self.pins.given(name)
        if known is None:
            self.pretended = self.pretended % (PLACEHOLDERS.num_addresses - 2) + 1
            known = PLACEHOLDERS.network_address + self.pretended
        self.pins.pin(name, (known,), ttl)
        return Pinned((known,), 0)

    def adopt(self, policy: Policy, entrusted: Entrusted | None) -> None:
        """Take a changed policy: what it does not allow any more ends now."""
        if policy.mode is not self.asker.policy.mode:
            swallowed, self.pace = self.pace.swallowed, pace_of(policy)
            self.pace.swallowed = swallowed
            if self.asker.rehearses:
                self.pins = Pins()  # what it was told was not so
        self.asker = Asker.of(policy)
        self.entrusted = entrusted
        self.pins.keep(self.asker.resolves)
        for flow in list(self.flows):
            if not flow.still_allowed():
                flow.cut("the policy was changed")

    def leave(self) -> None:
        """It is gone: so is everything it had open, and whoever still asks in its name is told no."""
        self.asker = Asker.of(NOTHING)
        for flow in list(self.flows):
            flow.cut("the sandbox has ended")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one connection or question came to: an event."""

    verdict: str  # allowed, denied, failed (allowed, but it did not work) or cut (allowed, and then not any more)
    protocol: str
    name: str = ""
    address: str = ""
    port: int = 0
    rule: str = ""
    reason: str = ""
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    method: str = ""  # of a plain request
    path: str = ""
    secrets: str = ""  # whose values were sent along, by name
    misdirected: str = ""  # the secret whose placeholder was sent where it does not belong

    def words(self, guest: Guest) -> dict[str, Any]:
        """For the node."""
        own = {name: getattr(self, name) for name in Seen.__slots__}
        swallowed, guest.pace.swallowed = guest.pace.swallowed, 0
        return {"event": own | {"sandbox": guest.id, "swallowed": swallowed}}


Tell = Callable[[Guest, Seen], None]
