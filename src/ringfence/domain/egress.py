"""What a sandbox may reach: a policy as data, the operator's floor below every policy, and the one place that checks.

The default is no network at all. A policy lists what is allowed; what is not listed is denied, so an empty list
denies everything. The floor is denied whatever a policy says.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from ringfence.domain import names
from ringfence.domain.bundles import BUNDLES
from ringfence.domain.errors import BadRequest

MOST_RULES: Final = 1000
MOST_PORTS: Final = 32
MOST_PATHS: Final = 16
MOST_PATH: Final = 256
MOST_BYTES: Final = 1 << 50
REASON: Final = 200
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$&'()+,;=:@/-]*\*?")
_RULE_FIELDS: Final = frozenset({"domain", "cidr", "ports", "protocol", "methods", "paths", "reason"})
_POLICY_FIELDS: Final = frozenset({"mode", "allow", "bundles", "max_bytes"})


class Protocol(enum.StrEnum):
    """How it is known where a connection goes."""

    TLS = "tls"  # by the name in its first message
    HTTP = "http"  # by the Host of its one request
    TCP = "tcp"  # by its address, which the sandbox's resolver gave for the name, or which lies in a network


class Mode(enum.StrEnum):
    """Whether there is a network at all, and what becomes of a connection that no rule allows."""

    NONE = "none"
    ALLOW = "allow"  # it is denied
    LEARN = "learn"  # it is allowed and told of, above the floor; only where the operator lets tenants learn
    REHEARSE = "rehearse"  # it is denied and told of; names get addresses that nobody has, so nothing leaves


LEARNED: Final = "learning: no rule for it yet"


_DEFAULT_PORTS: Final = {Protocol.TLS: (443,), Protocol.HTTP: (80,), Protocol.TCP: ()}


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is allowed. Exactly one of `domain` and `cidr` is set."""

    domain: str = ""
    cidr: str = ""
    ports: tuple[int, ...] = (443,)
    protocol: Protocol = Protocol.TLS
    methods: tuple[str, ...] = ()  # of plain HTTP; empty: all
    paths: tuple[str, ...] = ()  # of plain HTTP, exact or up to a `*` at the end; empty: all
    reason: str = ""

    @property
    def text(self) -> str:
        """The rule in one short line, for events."""
        extra = "".join(f" {','.join(words)}" for words in (self.methods, self.paths) if words)
        return f"{self.domain or self.cidr}:{','.join(map(str, self.ports))}/{self.protocol}{extra}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What one sandbox may reach."""

    mode: Mode = Mode.NONE
    rules: tuple[Rule, ...] = ()
    max_bytes: int = 0  # sent and received together over its life; 0: not bounded
    gateway: str = ""  # by which of the operator's gateways it leaves; no part of what a tenant writes

    @property
    def networked(self) -> bool:
        """Whether the sandbox needs an interface."""
        return self.mode is not Mode.NONE


NOTHING: Final = Policy()


def _networks(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in texts)


# What is never a destination: private, link-local, metadata, shared, benchmark, documentation, multicast, reserved.
CLOSED: Final = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers, and Alibaba's metadata at 100.100.100.200
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's host, in the middle of public addresses
    "169.254.0.0/16",  # metadata almost everywhere
    "172.16.0.0/12",
    "192.0.0.0/24",  # Oracle's metadata at 192.0.0.192
    "192.0.2.0/24",
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "198.18.0.0/15",  # the sandboxes themselves
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
# Names that mean this machine or this network to somebody, whatever they resolve to.
CLOSED_NAMES: Final = ("localhost", "local", "internal", "arpa", "onion", "localdomain", "lan")


@dataclass(frozen=True, slots=True)
class Floor:
    """What the operator denies to everyone. A tenant's policy cannot move it; `opened` is the operator's own hole."""

    closed: tuple[IPv4Network, ...] = CLOSED
    opened: tuple[IPv4Network, ...] = ()
    names: tuple[str, ...] = CLOSED_NAMES

    def permits(self, address: IPv4Address) -> bool:
        """Whether an address may be a destination at all."""
        if any(address in network for network in self.opened):
            return True
        return not any(address in network for network in self.closed)

    def permits_name(self, name: str) -> bool:
        """Whether a name may be asked for at all."""
        return not any(name == closed or name.endswith("." + closed) for closed in self.names)

    def swallows(self, network: IPv4Network) -> bool:
        """Whether all of a network is below the floor, so that a rule for it could never do anything."""
        if any(network.subnet_of(opened) or opened.subnet_of(network) for opened in self.opened):
            return False
        return any(network.subnet_of(closed) for closed in self.closed)


DEFAULT_FLOOR: Final = Floor()
# For policies that are judged again where they are used: what the operator opened may stand in a template.
NO_FLOOR: Final = Floor(closed=(), names=())


def floor_from(deny: list[str], permit: list[str]) -> Floor:
    """The operator's floor: the default, more networks closed, a few opened. Raises BadRequest."""

    def read(texts: list[str]) -> tuple[IPv4Network, ...]:
        try:
            return tuple(names.network(text) for text in texts)
        except names.BadName as error:
            raise BadRequest(f"egress floor: a network {error}", code="bad_floor") from None

    return Floor(closed=(*CLOSED, *read(deny)), opened=read(permit))


# -- reading a policy -----------------------------------------------------------------------------------------------


class _Bad(Exception):
    """What is wrong with one rule."""


def _bad(cause: str, remediation: str = "") -> BadRequest:
    return BadRequest(f"egress: {cause}", code="bad_egress", remediation=remediation)


def _ports(values: object, protocol: Protocol) -> tuple[int, ...]:
    if values is None and _DEFAULT_PORTS[protocol]:
        return _DEFAULT_PORTS[protocol]
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_PORTS:
        raise _Bad(f"needs a list of 1 to {MOST_PORTS} ports")
    for port in values:
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise _Bad("has a port that is no whole number from 1 to 65535")
    return tuple(sorted(set(values)))


def _protocol(value: object, *, by_address: bool) -> Protocol:
    if value is None:
        return Protocol.TCP if by_address else Protocol.TLS
    known = [str(each) for each in Protocol]
    if not isinstance(value, str) or value not in known:
        raise _Bad(f"has a protocol that is none of {', '.join(known)}")
    if by_address and value != Protocol.TCP:
        raise _Bad("is for addresses, where the only protocol is tcp")
    return Protocol(value)


def _methods(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or any(value not in METHODS for value in values):
        raise _Bad(f"has methods that are not all of {', '.join(METHODS)}")
    return tuple(dict.fromkeys(values))


def _paths(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > MOST_PATHS:
        raise _Bad(f"has no list of at most {MOST_PATHS} paths")
    for value in values:
        if not isinstance(value, str) or len(value) > MOST_PATH or not _PATH.fullmatch(value) or not plain_path(value):
            raise _Bad("has a path that is not plain: begin with /, no dots alone, a * only at the end")
    return tuple(dict.fromkeys(values))


def plain_path(path: str) -> bool:
    """Whether a path means the same to everybody: nothing to resolve, to merge or to decode."""
    return path.startswith("/") and not {"", ".", ".."} & set(path[1:].split("/")[:-1]) and path[-3:] != "/.."


def _place(table: dict[str, Any], floor: Floor) -> tuple[str, str]:
    """(domain, cidr) of a rule, one of them empty."""
    domain, cidr = table.get("domain"), table.get("cidr")
    text = domain if cidr is None else cidr
    if (domain is None) == (cidr is None) or not isinstance(text, str):
        raise _Bad("needs a text, either domain or cidr")
    try:
        if cidr is None:
            wanted = names.pattern(text)
            if not floor.permits_name(wanted.removeprefix("*.")):
                raise _Bad(f"names {wanted:.80}, which is below the operator's floor")
            return wanted, ""
        network = names.network(text)
    except names.BadName as error:
        raise _Bad(f"{'domain' if cidr is None else 'cidr'} {text!r:.80} {error}") from None
    if floor.swallows(network):
        raise _Bad(f"is for {network}, which is below the operator's floor")
    return "", str(network)


def _rule(value: object, floor: Floor) -> Rule:
    table: Any = {"domain": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise _Bad("is neither a name nor a table")
    unknown = set(table) - _RULE_FIELDS
    if unknown:
        raise _Bad(
            f"has unknown fields {sorted(map(str, unknown))!s:.200}; known are {', '.join(sorted(_RULE_FIELDS))}"
        )
    domain, cidr = _place(table, floor)
    protocol = _protocol(table.get("protocol"), by_address=bool(cidr))
    methods, paths = _methods(table.get("methods", [])), _paths(table.get("paths", []))
    if (methods or paths) and protocol is not Protocol.HTTP:
        raise _Bad("has methods or paths, which can be seen in plain HTTP alone")
    reason = table.get("reason", "")
    if not isinstance(reason, str) or len(reason) > REASON or not reason.isprintable():
        raise _Bad(f"has a reason that is no line of at most {REASON} characters")
    return Rule(domain, cidr, _ports(table.get("ports"), protocol), protocol, methods, paths, reason)


def bundle(name: object) -> tuple[Rule, ...]:
    """The rules of a named bundle. Raises BadRequest for a name that is none."""
    lines = BUNDLES.get(name) if isinstance(name, str) else None
    if lines is None:
        raise _bad(f"no bundle {name!r:.60}", f"known are {', '.join(sorted(BUNDLES))}")
    return tuple(
        Rule(domain=domain, ports=ports, protocol=Protocol(protocol), reason=f"{name}: {why}")
        for domain, ports, protocol, why in lines
    )


def _rules(values: object, floor: Floor) -> list[Rule]:
    if not isinstance(values, list):
        raise _bad("allow must be a list of names and tables")
    if len(values) > MOST_RULES:
        raise _bad(f"{len(values)} rules are more than the {MOST_RULES} there may be; rule {MOST_RULES} is too many")
    found = []
    for index, value in enumerate(values):
        try:
            found.append(_rule(value, floor))
        except _Bad as error:
            raise _bad(f"rule {index} {error}", "a rule is a name, or a table with domain or cidr and ports") from None
    return found


def refusals(value: object, floor: Floor = DEFAULT_FLOOR) -> list[tuple[int, str]]:
    """Every rule that policy_from() would refuse, by its index, with the reason; it names the first alone."""
    values = value.get("allow") if isinstance(value, dict) else value
    found = []
    for index, each in enumerate(values[:MOST_RULES] if isinstance(values, list) else ()):
        try:
            _rule(each, floor)
        except _Bad as error:
            found.append((index, str(error)))
    return found


def _max_bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_BYTES:
        raise _bad(f"max_bytes is no whole number from 0 (not bounded) to {MOST_BYTES}")
    return value


def _mode(table: dict[str, Any], *, learn: bool) -> Mode:
    known = [str(each) for each in Mode]
    word = table.get("mode", "allow")
    if word not in known:
        raise _bad(f"mode must be one of {', '.join(known)}")
    mode = Mode(word)
    if mode is Mode.LEARN and not learn:
        raise _bad(
            'mode "learn" lets everything above the floor pass, which the operator has not allowed here',
            'use mode "rehearse", which denies and tells as much; or have [egress] learn = true set',
        )
    return mode


def policy_from(value: object, floor: Floor = DEFAULT_FLOOR, *, learn: bool = False) -> Policy:
    """Check what was asked for: "none", a list of rules, or a table. Raises BadRequest with the rule's index.

    Nothing is repaired: what is not spelt right is refused, and what is not listed is denied. `learn` says whether
    the operator lets policies be learnt by letting everything pass.
    """
    if value is None or value == "none":
        return NOTHING
    table: Any = {"allow": value} if isinstance(value, list) else value
    if not isinstance(table, dict) or set(table) - _POLICY_FIELDS:
        raise _bad('must be "none", a list of rules, or a table', f"use {', '.join(sorted(_POLICY_FIELDS))}")
    mode = _mode(table, learn=learn)
    if mode is Mode.NONE:
        if table.get("allow") or table.get("bundles"):
            raise _bad('mode "none" and rules contradict each other')
        return NOTHING
    bundles = table.get("bundles", [])
    if not isinstance(bundles, list) or len(bundles) > len(BUNDLES):
        raise _bad(f"bundles must be a list of at most {len(BUNDLES)} names")
    rules = _rules(table.get("allow", []), floor)
    rules += [rule for name in bundles for rule in bundle(name)]
    if len(rules) > MOST_RULES:
        raise _bad(f"with its bundles it has more than {MOST_RULES} rules")
    return Policy(mode, tuple(dict.fromkeys(rules)), _max_bytes(table.get("max_bytes", 0)))


def policy_to(policy: Policy) -> dict[str, Any]:
    """The plain table that policy_from() reads back to an equal policy, but for its gateway; bundles are spelt out."""
    if not policy.networked:
        return {"mode": "none"}
    rules = []
    for rule in policy.rules:
        place = {"domain": rule.domain} if rule.domain else {"cidr": rule.cidr}
        words = {"methods": list(rule.methods), "paths": list(rule.paths), "reason": rule.reason}
        fixed = {"ports": list(rule.ports), "protocol": str(rule.protocol)}
        rules.append({**place, **fixed, **{name: value for name, value in words.items() if value}})
    return {"mode": str(policy.mode), "allow": rules, "max_bytes": policy.max_bytes}


# -- asking a policy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asker:
    """A policy made quick to ask: each question looks at the rules that could answer it, in their order."""

    policy: Policy
    _exact: dict[str, list[Rule]] = field(default_factory=dict)
    _below: dict[str, list[Rule]] = field(default_factory=dict)
    _networks: list[tuple[IPv4Network, Rule]] = field(default_factory=list)

    @classmethod
    def of(cls, policy: Policy) -> Asker:
        """Index a policy's rules."""
        asker = cls(policy)
        for rule in policy.rules:
            if rule.cidr:
                asker._networks.append((IPv4Network(rule.cidr), rule))
            elif rule.domain.startswith("*."):
                asker._below.setdefault(rule.domain[2:], []).append(rule)
            else:
                asker._exact.setdefault(rule.domain, []).append(rule)
        return asker

    @property
    def learns(self) -> bool:
        """Whether what no rule allows is allowed all the same, and told of."""
        return self.policy.mode is Mode.LEARN

    @property
    def rehearses(self) -> bool:
        """Whether what no rule allows is told of in full before it is denied."""
        return self.policy.mode is Mode.REHEARSE

    def resolves(self, name: str) -> bool:
        """Whether a name is answered at all; while rehearsing, one without a rule gets an address that nobody has."""
        return self.learns or self.rehearses or bool(self.named(name))

    def named(self, name: str) -> list[Rule]:
        """Every rule that covers a name."""
        found = list(self._exact.get(name, ()))
        while "." in name:
            name = name.partition(".")[2]
            found += self._below.get(name, ())
        return found

    def by_name(self, name: str, port: int, protocol: Protocol) -> Rule | None:
        """The rule by which a connection to a name is allowed."""
        found = next((r for r in self.named(name) if port in r.ports and r.protocol is protocol), None)
        if found is None and self.learns and protocol is not Protocol.TCP:
            return Rule(name, ports=(port,), protocol=protocol, reason=LEARNED)
        return found

    def by_request(self, name: str, port: int, method: str, path: str) -> Rule | None:
        """The rule by which a plain HTTP request is allowed. `path` comes without its query."""
        for rule in self.named(name):
            if (
                port in rule.ports
                and rule.protocol is Protocol.HTTP
                and (not rule.methods or method in rule.methods)
                and (not rule.paths or path_fits(rule.paths, path))
            ):
                return rule
        return Rule(name, ports=(port,), protocol=Protocol.HTTP, reason=LEARNED) if self.learns else None

    def by_address(self, address: IPv4Address, port: int) -> Rule | None:
        """The rule by which a connection to an address is allowed, whatever its name."""
        return next((rule for network, rule in self._networks if port in rule.ports and address in network), None)

    def otherwise(self, name: str, address: IPv4Address, port: int) -> Rule | None:
        """While learning: the rule by which a connection is allowed that says nothing of where it wants to go."""
        if not self.learns:
            return None
        rule = self.by_name(name, port, Protocol.TCP) if name else self.by_address(address, port)
        cidr = "" if name else f"{address}/32"
        return rule or Rule(name, cidr, (port,), Protocol.TCP, reason=LEARNED)

    def reads(self, port: int) -> frozenset[Protocol]:
        """Which protocols at a port are told apart by their first bytes."""
        if self.learns:
            return frozenset({Protocol.TLS, Protocol.HTTP})
        found = {r.protocol for r in self.policy.rules if port in r.ports and r.protocol is not Protocol.TCP}
        return frozenset(found)


def path_fits(paths: tuple[str, ...], path: str) -> bool:
    """Whether a rule about these paths is for a path."""
    # A path that somebody could read as another one fits no rule about paths.
    if not plain_path(path) or not _PATH.fullmatch(path) or "*" in path:
        return False
    return any(path.startswith(each[:-1]) if each.endswith("*") else path == each for each in paths)
