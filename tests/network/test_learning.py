"""From what was seen to a policy: all of it is allowed, nothing else, and no rule could be left out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.domain.egress import Asker, Policy, Protocol, policy_from
from ringfence.domain.learning import Learnt, Sight, learn, sight_from

NAMES = ["a.example.com", "b.example.com", "example.org", "c.co.uk", "pypi.org", "files.pythonhosted.org"]
PATHS = ["/", "/a", "/a/b", "/a/c", "/x%20y", "/star*", "/a/../b", "/" + "l" * 300]
ADDRESS = "45.33.1.10"


def seen(name: str = "", port: int = 443, protocol: str = "tls", **more: object) -> Sight:
    """A connection that was let through while learning."""
    place = name or f"{ADDRESS}/32"
    known: dict[str, object] = {"rule": f"{place}:{port}/{protocol}", "sent": 10, "received": 90, **more}
    return Sight(7, str(known.pop("verdict", "allowed")), protocol, name, ADDRESS, port, **known)  # type: ignore[arg-type]


def allows(policy: Policy, sight: Sight) -> bool:
    """Whether the gate would let it through by this policy."""
    asker = Asker.of(policy)
    if not sight.name:
        return asker.by_address(IPv4Address(sight.address), sight.port) is not None
    if sight.protocol == "http":
        return asker.by_request(sight.name, sight.port, sight.method, sight.path) is not None
    return asker.by_name(sight.name, sight.port, Protocol(sight.protocol)) is not None


def proposed(learnt: Learnt) -> Policy:
    """The proposal, read as anybody's policy is."""
    return policy_from(learnt.policy())


TLS = st.builds(seen, st.sampled_from(NAMES), st.sampled_from([443, 8443, 6443]))
HTTP = st.builds(
    seen,
    st.sampled_from(NAMES),
    st.sampled_from([80, 8080]),
    st.just("http"),
    method=st.sampled_from(["GET", "POST", "HEAD", "PURGE"]),
    path=st.sampled_from(PATHS),
)
TCP = st.builds(seen, st.sampled_from(["", *NAMES]), st.integers(1, 200), st.just("tcp"))


@given(st.lists(st.one_of(TLS, HTTP, TCP), max_size=60), st.booleans())
def test_everything_seen_is_allowed(sights: list[Sight], generalise: bool) -> None:
    """Whatever was seen, in whichever order, and by bundles, prefixes and wildcards too."""
    policy = proposed(learn(sights, generalise=generalise))
    assert [sight for sight in sights if not allows(policy, sight)] == []


@given(st.lists(st.one_of(TLS, HTTP, TCP), max_size=30))
def test_no_rule_could_be_left_out(sights: list[Sight]) -> None:
    """Without any one of them, something that was seen is not allowed."""
    policy = proposed(learn(sights))
    for rule in policy.rules:
        less = replace(policy, rules=tuple(each for each in policy.rules if each is not rule))
        assert any(not allows(less, sight) for sight in sights), rule


@given(st.lists(st.one_of(TLS, HTTP, TCP), max_size=20), st.one_of(TLS, HTTP, TCP))
def test_nothing_else_is_allowed(sights: list[Sight], other: Sight) -> None:
    """But for paths and methods that no rule can tell apart, which is said."""
    learnt = learn(sights)
    keys = {(s.name, s.port, s.protocol) for s in sights}
    if (other.name, other.port, other.protocol) not in keys:
        assert not allows(proposed(learnt), other)
    elif other.protocol == "http" and allows(proposed(learnt), other):
        same = [s for s in sights if (s.name, s.port, s.protocol) == (other.name, other.port, "http")]
        assert (other.method, other.path) in {(s.method, s.path) for s in same} or learnt.notes


def test_a_bundle_of_which_all_was_seen_stands_for_its_lines() -> None:
    """It is said which; a part of one is not widened to the whole, and that is said too."""
    both = learn([seen("pypi.org"), seen("files.pythonhosted.org"), seen("a.example.com")])
    assert both.bundles == ("pypi",)
    assert [rule.domain for rule in both.rules] == ["a.example.com"]
    assert [each.by for each in both.seen] == ["rule 0", "bundle pypi", "bundle pypi"]
    assert "the bundle pypi covers exactly files.pythonhosted.org, pypi.org" in both.notes
    part = learn([seen("pypi.org")])
    assert part.bundles == ()
    assert [rule.domain for rule in part.rules] == ["pypi.org"]
    assert "also allow files.pythonhosted.org: not proposed" in part.notes[0]


def test_wildcards_are_never_proposed_silently() -> None:
    """Only on request, and then each is named as wider; never for a name under which strangers register."""
    sights = [seen("a.example.com"), seen("b.example.com"), seen("one.co.uk"), seen("two.co.uk")]
    assert not [rule for rule in learn(sights).rules if "*" in rule.domain]
    wide = learn(sights, generalise=True)
    assert [rule.domain for rule in wide.rules] == ["*.example.com", "one.co.uk", "two.co.uk"]
    assert "wider than what was seen: *.example.com stands for a.example.com, b.example.com" in wide.notes


def test_a_name_is_preferred_to_an_address() -> None:
    """An address stands alone only where no name is known."""
    learnt = learn([seen("a.example.com", 22, "tcp"), seen("", 5000, "tcp")])
    assert [(rule.domain, rule.cidr) for rule in learnt.rules] == [("a.example.com", ""), ("", f"{ADDRESS}/32")]


def test_a_claimed_name_is_no_evidence() -> None:
    """A rehearsal's client that says a name it was never given an address for gets a rule for the address."""
    sight = seen("liar.example.com", 443, "tls", rule=f"{ADDRESS}/32:443/tcp", verdict="denied")
    assert [rule.cidr for rule in learn([sight]).rules] == [f"{ADDRESS}/32"]


def test_each_rule_has_its_evidence() -> None:
    """How often, how many bytes, which events; and what no policy allows is listed with its reason instead."""
    floor = seen("", 80, "tcp", verdict="denied", rule="", reason="169.254.169.254 is private")
    learnt = learn([replace(seen("a.example.com"), event=11), replace(seen("a.example.com"), event=12), floor, floor])
    assert learnt.rules[0].reason == "seen 2 times, 200 bytes; events 11 12"
    assert [(each.reason, each.port) for each in learnt.refused] == [("169.254.169.254 is private", 80)]


def test_what_was_swallowed_is_said() -> None:
    """A proposal that may lack something says so."""
    learnt = learn([seen("a.example.com", swallowed=5)])
    assert learnt.unrecorded == 5
    assert any("5 connections" in note for note in learnt.notes)


@pytest.mark.parametrize("kind", ["run.finished", "sandbox.created", "egress"])
def test_other_events_are_none(kind: str) -> None:
    """Only what the gate told counts."""
    assert sight_from(1, kind, {}) is None


def test_names_that_were_only_resolved() -> None:
    """They need no rule, and are named."""
    learnt = learn([seen("a.example.com", 53, "dns"), seen("b.example.com"), seen("b.example.com", 53, "dns")])
    assert learnt.notes == ("resolved and never connected to, so without a rule: a.example.com",)
