"""Names, addresses and policies at the door: one spelling, everything else refused with the rule's index and reason."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.domain import names
from ringfence.domain.bundles import BUNDLES
from ringfence.domain.egress import (
    CLOSED,
    DEFAULT_FLOOR,
    METHODS,
    MOST_RULES,
    NOTHING,
    Asker,
    Mode,
    Protocol,
    bundle,
    floor_from,
    plain_path,
    policy_from,
    policy_to,
)
from ringfence.domain.errors import BadRequest

LABEL = st.from_regex(r"\A[a-z]([a-z0-9]{0,10}[a-z0-9])?\Z")
GOOD = st.lists(LABEL, min_size=2, max_size=6).map(".".join)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("evil.com\0.ok.com", "NUL"),
        ("OK.com", "upper case"),
        ("ok.com.", "ends with a dot"),
        ("ok..com", "empty label"),
        (".ok.com", "empty label"),
        ("\u03bfk.com", "not plain ASCII"),  # a Greek omicron
        ("ok.c\u043em", "not plain ASCII"),  # a Cyrillic o
        ("ok\u3002com", "not plain ASCII"),
        ("xn--.com", "hyphens"),
        ("xn--a-.com", "hyphens"),
        ("xn--zzzzzzzzzzzzzzzz99999.com", "punycode"),
        ("xn--pple-43d.com", "alphabets"),  # a Cyrillic a before Latin letters
        ("ab--cd.com", "reserved"),
        ("ok com", "blank"),
        ("ok\t.com", "blank"),
        ("ok.com\n", "blank"),
        ("-ok.com", "hyphens"),
        ("ok-.com", "hyphens"),
        ("o_k.com", "letters"),
        ("user@ok.com", "letters"),
        ("ok.com:443", "letters"),
        ("ok.com/path", "letters"),
        ("http://ok.com", "letters"),
        ("[::ffff:7f00:1]", "letters"),
        ("127.0.0.1", "number"),
        ("127.1", "number"),
        ("0x7f.0.0.0x1", "number"),
        ("0177.0.0.1", "number"),
        ("2130706433", "number"),
        ("ok.0x10", "number"),
        ("localhost", "single label"),
        ("a" * 64 + ".com", "longer than 63"),
        (".".join(["abcdefgh"] * 29) + ".com", "longer than 253"),
    ],
)
def test_what_is_no_name_is_refused(text: str, why: str) -> None:
    """Every odd spelling is refused with its own reason, in a policy and as a wildcard's rest alike."""
    with pytest.raises(names.BadName, match=why):
        names.pattern(text)
    with pytest.raises(BadRequest, match=r"rule 1 .*" + why):
        policy_from(["fine.example.com", text])
    with pytest.raises(names.BadName):
        names.pattern("*." + text)


@pytest.mark.parametrize("text", ["*", "a.*.com", "*a.com", "a*.com", "*.*.com", "*.com", "**.a.com", "*."])
def test_wildcards_stand_at_the_front_alone(text: str) -> None:
    """A wildcard is a whole first label before a name of at least two."""
    with pytest.raises(BadRequest, match="rule 0"):
        policy_from([text])


@given(GOOD)
def test_good_names_pass_unchanged(name: str) -> None:
    """What is spelt right is taken as it is; in a packet its case says nothing."""
    assert names.host_name(name) == name
    assert names.heard_name(name.upper().encode()) == name


@given(st.one_of(st.text(max_size=300), st.from_regex(r"\A[a-zA-Z0-9.\-*\0_]{0,60}\Z")))
def test_the_parser_is_total_and_settled(text: str) -> None:
    """Any text is either refused or comes back as it is, and what comes back is plain."""
    try:
        read = names.host_name(text)
    except names.BadName:
        return
    assert read == text == text.lower().strip(".")
    assert set(read) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert names.host_name(read) == read


@given(st.binary(max_size=300))
def test_bytes_from_a_packet_never_crash_it(raw: bytes) -> None:
    """The same for bytes."""
    with contextlib.suppress(names.BadName):
        assert names.heard_name(raw).encode() == raw.lower()


@pytest.mark.parametrize(
    "text",
    ["010.0.0.1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "0x1.2.3.4", "1.2.3.4 ", " 1.2.3.4", "\uff11.2.3.4", "1..3.4", ""],
)
def test_addresses_have_one_spelling(text: str) -> None:
    """Octal, hexadecimal, short and padded addresses are none."""
    with pytest.raises(names.BadName):
        names.address(text)
    with pytest.raises(BadRequest, match="rule 0"):
        policy_from([{"cidr": text, "ports": [80]}])


@given(st.integers(0, 2**32 - 1))
def test_plain_addresses_pass(number: int) -> None:
    """Every address in its plain spelling is one."""
    assert int(names.address(str(IPv4Address(number)))) == number


PRIVATE = [
    "10.0.0.0/8", "10.1.2.3/32", "127.0.0.1", "127.0.0.0/8", "169.254.169.254", "169.254.170.2", "100.100.100.200",
    "168.63.129.16", "192.168.1.0/24", "172.16.0.0/12", "172.31.255.255", "0.0.0.0", "255.255.255.255", "224.0.0.1",
    "240.0.0.0/4", "198.18.0.1", "192.0.0.192", "100.64.0.0/10",
]  # fmt: skip


@pytest.mark.parametrize("cidr", PRIVATE)
def test_private_ranges_are_refused_at_the_door(cidr: str) -> None:
    """A rule that lies below the floor is refused, with its index."""
    with pytest.raises(BadRequest, match=r"rule 1 is for .* below the operator's floor"):
        policy_from(["ok.example.com", {"cidr": cidr, "ports": [80]}])


@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("fd00:ec2::254/128", "IPv6"),
        ("::ffff:169.254.169.254", "IPv6"),
        ("64:ff9b::a9fe:a9fe", "IPv6"),
        ("8.8.8.8/8", "bits set"),
        ("8.8.8.8/33", "prefix"),
        ("8.8.8.8/", "prefix"),
        ("8.8.8.8/08", "prefix"),
        ("8.8.8.8/-1", "prefix"),
        ("8.8.8.8/255.0.0.0", "prefix"),
    ],
)
def test_networks_have_one_spelling(cidr: str, why: str) -> None:
    """IPv6 and half-right networks are refused."""
    with pytest.raises(BadRequest, match=rf"rule 0 .*{why}"):
        policy_from([{"cidr": cidr, "ports": [80]}])


@pytest.mark.parametrize("name", ["metadata.google.internal", "printer.local", "a.localhost", "1.0.0.127.in-addr.arpa"])
def test_names_of_here_are_below_the_floor(name: str) -> None:
    """Names that mean this machine or this network are refused, whatever they resolve to."""
    with pytest.raises(BadRequest, match="floor"):
        policy_from([name])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("all", "must be"),
        (7, "must be"),
        ({"allow": "ok.com"}, "list"),
        ({"allow": [], "deny": []}, "must be"),
        ({"mode": "open"}, "mode"),
        ({"mode": "none", "allow": ["ok.com"]}, "contradict"),
        ({"bundles": ["pip"]}, "no bundle"),
        ({"bundles": "pypi"}, "bundles"),
        ({"bundles": [["pypi"]]}, "no bundle"),
        ({"allow": [None]}, "rule 0 is neither"),
        ({"allow": ["ok.com", 3]}, "rule 1 is neither"),
        ({"allow": [{}]}, "rule 0 needs"),
        ({"allow": [{"domain": "ok.com", "cidr": "8.8.8.0/24"}]}, "rule 0 needs"),
        ({"allow": [{"domain": ["ok.com"]}]}, "rule 0 needs"),
        ({"allow": [{"domain": "ok.com", "port": 1}]}, "rule 0 has unknown fields"),
        ({"allow": [{"domain": "ok.com", "ports": []}]}, "rule 0 .*ports"),
        ({"allow": [{"domain": "ok.com", "ports": [0]}]}, "rule 0 .*port"),
        ({"allow": [{"domain": "ok.com", "ports": [65536]}]}, "rule 0 .*port"),
        ({"allow": [{"domain": "ok.com", "ports": [True]}]}, "rule 0 .*port"),
        ({"allow": [{"domain": "ok.com", "ports": ["443"]}]}, "rule 0 .*port"),
        ({"allow": [{"domain": "ok.com", "protocol": "udp"}]}, "rule 0 .*protocol"),
        ({"allow": [{"domain": "ok.com", "protocol": "tcp"}]}, "rule 0 .*ports"),
        ({"allow": [{"cidr": "8.8.8.8", "protocol": "tls"}]}, "rule 0 .*tcp"),
        ({"allow": [{"cidr": "8.8.8.8"}]}, "rule 0 .*ports"),
        ({"allow": [{"domain": "ok.com", "methods": ["GET"]}]}, "plain HTTP"),
        ({"allow": [{"domain": "ok.com", "protocol": "http", "methods": ["get"]}]}, "rule 0 .*methods"),
        ({"allow": [{"domain": "ok.com", "protocol": "http", "paths": ["x"]}]}, "rule 0 .*path"),
        ({"allow": [{"domain": "ok.com", "protocol": "http", "paths": ["/a/../b"]}]}, "rule 0 .*path"),
        ({"allow": [{"domain": "ok.com", "protocol": "http", "paths": ["/a*b"]}]}, "rule 0 .*path"),
        ({"allow": [{"domain": "ok.com", "reason": "a\nb"}]}, "rule 0 .*reason"),
        ({"allow": ["ok.com"], "max_bytes": -1}, "max_bytes"),
        ({"allow": ["ok.com"], "max_bytes": True}, "max_bytes"),
        ({"allow": ["ok.com"], "max_bytes": 1.5}, "max_bytes"),
        ({"allow": ["ok.com"] * (MOST_RULES + 1)}, f"rule {MOST_RULES} is too many"),
        ({"allow": [f"h{n}.example.com" for n in range(10_000)]}, "10000 rules"),
    ],
)
def test_a_bad_policy_is_refused_with_its_reason(value: object, why: str) -> None:
    """Nothing is repaired and nothing unknown is ignored."""
    with pytest.raises(BadRequest, match=why) as refused:
        policy_from(value)
    assert refused.value.code == "bad_egress"


def test_nothing_asked_means_nothing_allowed() -> None:
    """No policy has no network; an empty list has one on which everything is denied."""
    assert policy_from(None) is policy_from("none") is policy_from({"mode": "none"}) is NOTHING
    assert not NOTHING.networked
    for value in ([], {"allow": []}, {}, {"mode": "allow"}):
        policy = policy_from(value)
        assert policy.mode is Mode.ALLOW
        assert policy.rules == ()
        asker = Asker.of(policy)
        assert not asker.named("pypi.org")
        assert asker.by_address(IPv4Address("8.8.8.8"), 443) is None
        assert asker.reads(443) == frozenset()


def test_a_policy_survives_being_sent() -> None:
    """What is written is read back equal, its bundles spelt out with their reasons."""
    policy = policy_from(
        {
            "allow": [
                "api.example.com",
                "*.wild.example.com",
                {"domain": "db.example.com", "protocol": "tcp", "ports": [5432, 22], "reason": "the database"},
                {"domain": "old.example.com", "protocol": "http", "methods": ["GET"], "paths": ["/a/*", "/b"]},
                {"cidr": "8.8.8.0/24", "ports": [853]},
            ],
            "bundles": ["pypi", "debian"],
            "max_bytes": 1000,
        }
    )
    assert policy_from(policy_to(policy)) == policy
    assert policy.rules[2].ports == (22, 5432)
    assert {rule.reason.partition(":")[0] for rule in policy.rules[5:]} == {"pypi", "debian"}
    assert policy_to(NOTHING) == {"mode": "none"}


@pytest.mark.parametrize("name", BUNDLES)
def test_every_bundle_is_a_policy_with_reasons(name: str) -> None:
    """Each line is a rule that the door would take, exact, and says why it is there."""
    rules = bundle(name)
    assert rules == policy_from({"bundles": [name]}).rules
    assert policy_from(policy_to(policy_from({"bundles": [name]}))).rules == rules
    assert all(rule.reason and not rule.domain.startswith("*") for rule in rules)


def test_wildcards_cover_what_is_below_them_and_nothing_else() -> None:
    """Not the name itself, not a name that merely ends the same, not one that merely begins so."""
    asker = Asker.of(policy_from(["*.ok.example.com", "one.example.com"]))
    assert asker.by_name("a.ok.example.com", 443, Protocol.TLS)
    assert asker.by_name("b.a.ok.example.com", 443, Protocol.TLS)
    for name in ("ok.example.com", "evilok.example.com", "ok.example.com.evil.net", "example.com", "a.one.example.com"):
        assert asker.by_name(name, 443, Protocol.TLS) is None, name
    assert asker.by_name("a.ok.example.com", 80, Protocol.HTTP) is None
    assert asker.by_name("a.ok.example.com", 444, Protocol.TLS) is None


def test_methods_and_paths_of_plain_http() -> None:
    """A path that could be read as another one fits no rule about paths."""
    rule = {"domain": "ok.example.com", "protocol": "http", "methods": ["GET", "HEAD"], "paths": ["/debian/*", "/x"]}
    asker = Asker.of(policy_from([rule]))

    def fits(method: str, path: str) -> bool:
        return asker.by_request("ok.example.com", 80, method, path) is not None

    assert fits("GET", "/debian/pool/a.deb")
    assert fits("HEAD", "/x")
    assert not fits("POST", "/x")
    for path in ("/", "/y", "/x/", "/debian", "/debian/../secret", "/debian/%2e%2e/secret", "/debian//../s",
                 "/debian/./a", "/debian/a\\..\\b", "debian/", "/debian/.."):  # fmt: skip
        assert not fits("GET", path), path


@given(st.from_regex(r"\A/[a-z./%]{0,20}\Z"))
def test_plain_paths_stay_where_they_are(path: str) -> None:
    """A plain path has no step that leads elsewhere."""
    if plain_path(path):
        assert "/../" not in path
        assert "//" not in path
        assert not path.endswith("/..")


@given(st.integers(0, len(CLOSED) - 1), st.integers(0, 2**32 - 1))
def test_every_closed_address_is_closed(which: int, number: int) -> None:
    """Whatever the address in a closed network, it is never permitted."""
    network = CLOSED[which]
    assert not DEFAULT_FLOOR.permits(network[number % network.num_addresses])


def test_the_operator_can_open_and_close() -> None:
    """An operator's hole lets an internal mirror through, an operator's bar closes the control plane elsewhere."""
    floor = floor_from(deny=["93.184.216.0/24"], permit=["10.1.2.3/32"])
    assert floor.permits(IPv4Address("10.1.2.3"))
    assert not floor.permits(IPv4Address("10.1.2.4"))
    assert not floor.permits(IPv4Address("93.184.216.34"))
    assert policy_from([{"cidr": "10.1.2.3/32", "ports": [80]}], floor).rules
    with pytest.raises(BadRequest):
        policy_from([{"cidr": "93.184.216.34", "ports": [80]}], floor)
    with pytest.raises(BadRequest, match="floor"):
        floor_from(deny=["nonsense"], permit=[])


def test_a_rule_for_everything_is_taken_but_leaves_the_floor() -> None:
    """0.0.0.0/0 is a rule; what is private is denied all the same, at the gate."""
    asker = Asker.of(policy_from([{"cidr": "0.0.0.0/0", "ports": [80]}]))
    assert asker.by_address(IPv4Address("169.254.169.254"), 80)
    assert not DEFAULT_FLOOR.permits(IPv4Address("169.254.169.254"))


def test_methods_are_known() -> None:
    """CONNECT and TRACE are not among them: they would name another host, or echo."""
    assert not {"CONNECT", "TRACE"} & set(METHODS)
