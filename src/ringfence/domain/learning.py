"""From what a program did to the least policy that allows it, with the evidence for each rule.

Least means: every connection seen is allowed, nothing that was not seen is allowed beyond what a rule cannot tell
apart (TLS is not opened, so a rule for it is a whole host), and no rule could be left out. Wider rules only on request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.bundles import BUNDLES
from ringfence.domain.egress import (
    METHODS,
    MOST_PATH,
    MOST_PATHS,
    MOST_PORTS,
    MOST_RULES,
    Mode,
    Policy,
    Protocol,
    Rule,
    bundle,
    path_fits,
    policy_to,
)

SHOWN_EVENTS: Final = 20  # evidence of one destination
ALIKE: Final = 2  # names below one parent, or paths below one folder, before a wider rule is proposed
# Second labels under which strangers register: a wildcard below one of them would be everybody's.
_REGISTRIES: Final = frozenset({"co", "com", "net", "org", "gov", "edu", "ac", "or", "ne", "go"})


@dataclass(frozen=True, slots=True)
class Sight:
    """One connection or question that was told of."""

    event: int
    verdict: str
    protocol: str
    name: str
    address: str
    port: int
    rule: str = ""
    reason: str = ""
    method: str = ""
    path: str = ""
    sent: int = 0
    received: int = 0
    swallowed: int = 0

    @property
    def wanted(self) -> bool:
        """Whether a policy can allow it: it was allowed, or a rehearsal says by which rule it would have been."""
        return self.protocol in set(Protocol) and (self.verdict in {"allowed", "failed", "cut"} or bool(self.rule))

    @property
    def by_name(self) -> bool:
        """Whether it is known by its name. Where it was allowed or rehearsed by address alone, its name is a guess."""
        return bool(self.name) and not self.rule.startswith(f"{self.address}/")


def sight_from(event: int, kind: str, data: Mapping[str, Any]) -> Sight | None:
    """What an event says of a connection; None for events of another kind."""
    if not kind.startswith("egress."):
        return None
    texts = ("protocol", "name", "address", "rule", "reason", "method", "path")
    known: dict[str, Any] = {name: str(data.get(name, "")) for name in texts}
    known |= {name: int(data.get(name, 0)) for name in ("port", "sent", "received", "swallowed")}
    return Sight(event, kind.removeprefix("egress."), **known)


@dataclass(slots=True)
class Seen:
    """One destination, and all that went there."""

    place: str  # a name, or an address where no name is known
    named: bool
    protocol: Protocol
    port: int
    requests: set[tuple[str, str]] = field(default_factory=set)  # method and path of plain HTTP
    times: int = 0
    denied: int = 0
    sent: int = 0
    received: int = 0
    events: list[int] = field(default_factory=list)
    by: str = ""  # the bundle or the rule that is proposed for it

    def add(self, sight: Sight) -> None:
        """One more connection."""
        self.times += 1
        self.denied += sight.verdict == "denied"
        self.sent += sight.sent
        self.received += sight.received
        if len(self.events) < SHOWN_EVENTS:
            self.events.append(sight.event)
        if sight.method and self.protocol is Protocol.HTTP:
            self.requests.add((sight.method, sight.path))


@dataclass(frozen=True, slots=True)
class Refused:
    """What no policy here can allow, and why."""

    place: str
    protocol: str
    port: int
    reason: str
    event: int


@dataclass(frozen=True, slots=True)
class Learnt:
    """A proposal with its evidence."""

    seen: tuple[Seen, ...]
    refused: tuple[Refused, ...]
    rules: tuple[Rule, ...]
    bundles: tuple[str, ...]
    notes: tuple[str, ...]
    unrecorded: int = 0

    def policy(self) -> dict[str, Any]:
        """The proposal as the table that policy_from() reads."""
        table: dict[str, Any] = {"bundles": list(self.bundles)} if self.bundles else {}
        return {**table, "allow": policy_to(Policy(Mode.ALLOW, self.rules))["allow"]}


def learn(sights: Iterable[Sight], *, generalise: bool = False) -> Learnt:
    """The least policy for all that was seen; with `generalise`, wildcards where several names or paths are alike."""
    sights = list(sights)
    seen = _gathered(sight for sight in sights if sight.wanted)
    notes = [*_only_asked(sights), *_unsayable(seen)]
    bundles, rules = _bundled(_rules(seen), notes)
    if generalise:
        rules = _generalised(rules, notes)
    if len(rules) > MOST_RULES:
        notes.append(f"these are more than the {MOST_RULES} rules there may be: generalise, or split the program")
    rules = tuple(_with_evidence(rule, seen) for rule in rules)
    unrecorded = sum(sight.swallowed for sight in sights)
    if unrecorded:
        notes.append(f"{unrecorded} connections were too many to be told of: the proposal may lack some, run it again")
    for each in seen:
        each.by = _by(each, bundles, rules)
    return Learnt(tuple(seen), tuple(_refused(sights)), rules, bundles, tuple(notes), unrecorded)


# -- gathering --------------------------------------------------------------------------------------------------------


def _gathered(sights: Iterable[Sight]) -> list[Seen]:
    found: dict[tuple[str, str, int], Seen] = {}
    for sight in sights:
        protocol = Protocol(sight.protocol) if sight.by_name else Protocol.TCP
        place = sight.name if sight.by_name else sight.address
        key = (place, protocol, sight.port)
        found.setdefault(key, Seen(place, sight.by_name, protocol, sight.port)).add(sight)
    return sorted(found.values(), key=lambda seen: (not seen.named, seen.place, seen.protocol, seen.port))


def _refused(sights: list[Sight]) -> Iterator[Refused]:
    said = set()
    for sight in sights:
        place = sight.name or sight.address
        key = (place, sight.protocol, sight.port, sight.reason)
        if sight.verdict == "denied" and not sight.wanted and not _asked_only(sight) and key not in said:
            said.add(key)
            yield Refused(*key, sight.event)


def _asked_only(sight: Sight) -> bool:
    """A question for a name in a rehearsal: answered, though its event says denied."""
    return sight.protocol == "dns" and not sight.address and sight.reason == "no rule names it"


def _only_asked(sights: list[Sight]) -> list[str]:
    reached = {sight.name for sight in sights if sight.wanted}
    asked = {s.name for s in sights if s.protocol == "dns" and (s.verdict == "allowed" or _asked_only(s))}
    if not asked - reached:
        return []
    return [f"resolved and never connected to, so without a rule: {', '.join(sorted(asked - reached))}"]


# -- rules ------------------------------------------------------------------------------------------------------------


def _rules(seen: list[Seen]) -> list[Rule]:
    ports: defaultdict[tuple[str, bool, Protocol], set[int]] = defaultdict(set)
    requests: defaultdict[tuple[str, int], set[tuple[str, str]]] = defaultdict(set)
    for each in seen:
        if each.protocol is Protocol.HTTP:
            requests[each.place, each.port] |= each.requests
        else:
            ports[each.place, each.named, each.protocol].add(each.port)
    found = [rule for (place, port), wanted in requests.items() for rule in _http_rules(place, port, wanted)]
    for (place, named, protocol), numbers in ports.items():
        domain, cidr = (place, "") if named else ("", f"{place}/32")
        found += [Rule(domain, cidr, some, protocol) for some in _pieces(sorted(numbers), MOST_PORTS)]
    return sorted(found, key=lambda rule: (not rule.domain, rule.domain or rule.cidr, rule.protocol, rule.ports))


def _pieces(values: list[Any], most: int) -> Iterator[tuple[Any, ...]]:
    for at in range(0, len(values), most):
        yield tuple(values[at : at + most])


def _sayable(path: str) -> bool:
    """Whether a rule can allow this path and no other: a `*` in it would mean more than itself."""
    return len(path) <= MOST_PATH and path_fits((path,), path)


def _http_rules(place: str, port: int, requests: set[tuple[str, str]]) -> Iterator[Rule]:
    """Paths that were asked by the same methods go into one rule; a path no rule can say takes its method whole."""
    methods = {method for method, _ in requests}
    if not methods <= set(METHODS):
        yield Rule(place, "", (port,), Protocol.HTTP)
        return
    whole = {method for method, path in requests if not _sayable(path)}
    if whole:
        yield Rule(place, "", (port,), Protocol.HTTP, _ordered(whole))
    by_path: defaultdict[str, set[str]] = defaultdict(set)
    for method, path in requests:
        if method not in whole:
            by_path[path].add(method)
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, some in sorted(by_path.items()):
        alike[_ordered(some)].append(path)
    for some_methods, paths in sorted(alike.items()):
        for some_paths in _pieces(paths, MOST_PATHS):
            yield Rule(place, "", (port,), Protocol.HTTP, some_methods, some_paths)


def _ordered(methods: set[str]) -> tuple[str, ...]:
    return tuple(method for method in METHODS if method in methods)


def _unsayable(seen: list[Seen]) -> list[str]:
    found = []
    for each in seen:
        place = f"http://{each.place}:{each.port}"
        odd = sorted({method for method, _ in each.requests} - set(METHODS))
        if odd:
            found.append(f"{place}: no rule can name {', '.join(odd)}, so every method and path is proposed")
        whole = sorted({method for method, path in each.requests if not _sayable(path)} - set(odd))
        found += [f"{method} {place}: a path was asked that no rule can name: all are proposed" for method in whole]
    return found


# -- bundles, wider rules, evidence -----------------------------------------------------------------------------------


def _bundled(rules: list[Rule], notes: list[str]) -> tuple[tuple[str, ...], tuple[Rule, ...]]:
    """Bundles of which every line was seen stand for their lines; of others that cover a rule is only told."""
    taken: list[str] = []
    covered: set[tuple[str, int, Protocol]] = set()
    have = {(rule.domain, port, rule.protocol) for rule in rules for port in rule.ports}
    for name in BUNDLES:
        lines = {(line.domain, port, line.protocol) for line in bundle(name) for port in line.ports}
        # Requests that a narrower rule can tell apart are not widened to a bundle that cannot.
        plain = {key for key in lines & have if key[2] is not Protocol.HTTP}
        if lines and lines == plain:
            taken.append(name)
            covered |= lines
            notes.append(f"the bundle {name} covers exactly {', '.join(sorted({domain for domain, _, _ in lines}))}")
        elif lines & have:
            more = ", ".join(sorted({domain for domain, _, _ in lines - have})) or "every method and path"
            notes.append(f"the bundle {name} would cover some of this, and also allow {more}: not proposed")
    return tuple(taken), tuple(rest for rule in rules for rest in _without(rule, covered))


def _without(rule: Rule, covered: set[tuple[str, int, Protocol]]) -> Iterator[Rule]:
    ports = tuple(port for port in rule.ports if (rule.domain, port, rule.protocol) not in covered)
    if ports:
        yield Rule(rule.domain, rule.cidr, ports, rule.protocol, rule.methods, rule.paths)


def _generalised(rules: tuple[Rule, ...], notes: list[str]) -> tuple[Rule, ...]:
    """Several names below one parent become a wildcard, several paths below one folder a prefix. Each is said."""
    rules = tuple(_with_prefixes(rule, notes) for rule in rules)
    alike: defaultdict[tuple[str, tuple[Any, ...]], list[Rule]] = defaultdict(list)
    for rule in rules:
        parent = rule.domain.partition(".")[2]
        key = (rule.ports, rule.protocol, rule.methods, rule.paths)
        alike[_parent(parent), key if _parent(parent) else (rule,)].append(rule)
    found = []
    for (parent, _), some in alike.items():
        if not parent or len({rule.domain for rule in some}) < ALIKE:
            found += some
            continue
        names = ", ".join(sorted(rule.domain for rule in some))
        notes.append(f"wider than what was seen: *.{parent} stands for {names}")
        first = some[0]
        found.append(Rule(f"*.{parent}", "", first.ports, first.protocol, first.methods, first.paths))
    return tuple(dict.fromkeys(found))


def _parent(name: str) -> str:
    """The parent, where a wildcard below it could be one owner's; else nothing."""
    labels = name.split(".")
    shared = len(labels) == 2 and (labels[0] in _REGISTRIES or len(labels[0]) < 2)
    return name if len(labels) >= 2 and not shared else ""


def _with_prefixes(rule: Rule, notes: list[str]) -> Rule:
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for path in rule.paths:
        folders[path.rpartition("/")[0]].append(path)
    paths: list[str] = []
    for folder, some in folders.items():
        if len(some) < ALIKE:
            paths += some
            continue
        notes.append(f"wider than what was seen: {rule.domain}{folder}/* stands for {len(some)} paths")
        paths.append(f"{folder}/*")
    return Rule(rule.domain, rule.cidr, rule.ports, rule.protocol, rule.methods, tuple(paths))


def _with_evidence(rule: Rule, seen: list[Seen]) -> Rule:
    """The rule with what it was learnt from as its reason."""
    from_ = [each for each in seen if _covers(rule, each)]
    events = [event for each in from_ for event in each.events][:6]
    times, count = sum(each.times for each in from_), sum(each.sent + each.received for each in from_)
    why = f"seen {times} times, {count} bytes; events {' '.join(map(str, events))}"
    return Rule(rule.domain, rule.cidr, rule.ports, rule.protocol, rule.methods, rule.paths, why)


def _covers(rule: Rule, seen: Seen) -> bool:
    """Whether a rule is for a destination, or for a part of the requests that were made there."""
    if rule.protocol is not seen.protocol or seen.port not in rule.ports:
        return False
    below = rule.domain.startswith("*.") and seen.place.endswith(rule.domain[1:])
    if not below and (rule.domain or rule.cidr.removesuffix("/32")) != seen.place:
        return False
    fits = {(m, p) for m, p in seen.requests if (not rule.methods or m in rule.methods)}
    return not seen.requests or any(not rule.paths or path_fits(rule.paths, path) for _, path in fits)


def _by(seen: Seen, bundles: tuple[str, ...], rules: tuple[Rule, ...]) -> str:
    for name in bundles:
        if any(_covers(line, seen) for line in bundle(name)):
            return f"bundle {name}"
    found = [str(index) for index, rule in enumerate(rules) if _covers(rule, seen)]
    return f"rule {', '.join(found)}"
