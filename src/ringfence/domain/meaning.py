"""What an egress policy means, in words, for whoever has to approve one."""

from __future__ import annotations

from typing import Final

from ringfence.domain.egress import Mode, Policy, Protocol, Rule

MEANS: Final = {
    Mode.NONE: "no network at all: no interface but the loopback, no resolver",
    Mode.ALLOW: "only what is listed; everything else is refused at once, in words, and told of",
    Mode.LEARN: "everything above the operator's floor, each connection told of: to learn a policy by, not to keep",
    Mode.REHEARSE: "only what is listed; everything else is refused and told of in full: to learn a policy by",
}


def meaning(policy: Policy) -> list[str]:
    """One line for the whole, then one for each rule in its order."""
    lines = [MEANS[policy.mode]]
    if policy.networked and not policy.rules and policy.mode is Mode.ALLOW:
        lines = ["a network on which nothing can be reached: no rule allows anything"]
    if policy.max_bytes:
        lines.append(f"at most {policy.max_bytes} bytes, sent and received together, over the sandbox's life")
    return lines + [_rule(rule) for rule in policy.rules]


def _rule(rule: Rule) -> str:
    ports = f"port{'s' if len(rule.ports) > 1 else ''} {', '.join(map(str, rule.ports))}"
    return f"{_what(rule)} to {_place(rule)} at {ports}{_requests(rule)}" + (f" ({rule.reason})" if rule.reason else "")


def _what(rule: Rule) -> str:
    return {Protocol.TLS: "TLS", Protocol.HTTP: "plain HTTP", Protocol.TCP: "anything over TCP"}[rule.protocol]


def _place(rule: Rule) -> str:
    if rule.cidr:
        one = rule.cidr.endswith("/32")
        return rule.cidr.removesuffix("/32") if one else f"every address of {rule.cidr} above the floor"
    if rule.domain.startswith("*."):
        return f"every name below {rule.domain[2:]} but not itself (whose name servers hear each name)"
    return rule.domain


def _requests(rule: Rule) -> str:
    methods = f", {' and '.join(rule.methods)} only" if rule.methods else ""
    return methods + (f", of {' '.join(rule.paths)} only" if rule.paths else "")
