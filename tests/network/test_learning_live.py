"""Learning with the real gate: what is let through or rehearsed is told in full, and the proposal then suffices."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address

import pytest

from ringfence.domain.egress import Asker, Floor, policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.learning import Learnt, learn, sight_from
from ringfence.network.gate.guests import PLACEHOLDERS, Guest
from ringfence.network.rules import GATEWAY
from tests.network.lab import ALLOWED, FORBIDDEN, INTRANET, METADATA, NAMES, PEER, Lab, Sandbox, asked, get, tls_client
from tests.network.test_egress_live import SOON, eventually, refused

GOOD, EVIL = "good.example.com", "evil.example.net"
MODES = {"learn": {"mode": "learn"}, "rehearse": {"mode": "rehearse"}}


def studied(lab: Lab, mode: str, name: str, **more: object) -> Sandbox:
    """A sandbox whose policy is being learnt."""
    made = lab.sandbox(name)
    made.wire(policy_from({"mode": mode, **more}, lab.floor, learn=True))
    return made


def learnt(lab: Lab, sandbox: Sandbox, **how: bool) -> Learnt:
    """What its events come to, numbered as a store would."""
    rows = enumerate(lab.told(sandbox=sandbox.id))
    sights = [sight_from(number, f"egress.{event['verdict']}", event) for number, event in rows]
    return learn([sight for sight in sights if sight is not None], **how)


def program(lab: Lab, sandbox: Sandbox) -> None:
    """What some program does: a page by TLS, two plain requests, a database by name, a server by address."""
    there = sandbox.addresses(GOOD)[0]
    with contextlib.suppress(OSError), tls_client(lab, sandbox, there, GOOD) as connection:
        asked(connection, get(GOOD, "/tls", extra="Connection: close\r\n"))
    for method, path in (("GET", "/a?token=secret"), ("POST", "/b")):
        with contextlib.suppress(OSError), sandbox.connection(there, 80) as plain:
            asked(plain, get(GOOD, path, method))
    for address, port in ((there, 5432), (PEER, 7000)):
        with contextlib.suppress(OSError), sandbox.connection(address, port) as other:
            other.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")


def wanted(found: Learnt) -> set[str]:
    """The proposed rules, as text."""
    return {rule.text for rule in policy_from(found.policy()).rules}


RULES = {
    f"{GOOD}:443/tls",
    f"{GOOD}:80/http GET /a",
    f"{GOOD}:80/http POST /b",
    f"{GOOD}:5432/tcp",
    f"{PEER}/32:7000/tcp",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_program_s_own_policy_is_learnt(lab: Lab, mode: str) -> None:
    """Every destination with its protocol, port, method and path; and the proposal lets the same program through."""
    sandbox = studied(lab, mode, f"{mode}-1")
    with lab.door(ALLOWED, 5432), lab.door(PEER, 7000):
        program(lab, sandbox)
    assert eventually(lambda: wanted(learnt(lab, sandbox)) >= RULES), wanted(learnt(lab, sandbox))
    found = learnt(lab, sandbox)
    assert wanted(found) == RULES
    assert "secret" not in str(found)
    assert all(rule.reason.startswith("seen ") for rule in found.rules)
    after = lab.sandbox(f"{mode}-2", found.policy())
    with lab.door(ALLOWED, 5432), lab.door(PEER, 7000):
        program(lab, after)
    assert eventually(lambda: len(lab.told(sandbox=after.id)) >= 5)
    assert not lab.told(sandbox=after.id, verdict="denied")


def test_a_rehearsal_lets_nothing_out(lab: Lab) -> None:
    """Not even a question: names have addresses that nobody has, and each connection is refused in its language."""
    sandbox = studied(lab, "rehearse", "closed")
    (pretended,) = sandbox.addresses(EVIL)
    assert pretended_one(pretended)
    assert sandbox.addresses(EVIL) == [pretended]
    assert sandbox.addresses(GOOD) != [pretended]
    program(lab, sandbox)
    for address, port in ((FORBIDDEN, 22), (pretended, 22), (pretended, 443), (FORBIDDEN, 80)):
        assert refused(sandbox, address, port, get(EVIL)) < SOON
    assert not lab.names.asked
    assert lab.capture.destinations() == set()
    assert not lab.visits[ALLOWED]


def test_a_rehearsal_keeps_what_is_allowed_already(lab: Lab) -> None:
    """So that a policy grows run by run: what a rule allows works, what none does is told of."""
    sandbox = studied(lab, "rehearse", "grows", allow=[GOOD])
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with tls_client(lab, sandbox, ALLOWED, GOOD) as connection:
        assert b"/tls" in asked(connection, get(GOOD, "/tls", extra="Connection: close\r\n"))
    (pretended,) = sandbox.addresses(EVIL)
    refused(sandbox, pretended, 80, get(EVIL, "/next"))
    refused(sandbox, ALLOWED, 80, get(GOOD, "/also"))
    expected = {f"{GOOD}:443/tls", f"{EVIL}:80/http GET /next", f"{GOOD}:80/http GET /also"}
    assert eventually(lambda: wanted(learnt(lab, sandbox)) == expected), wanted(learnt(lab, sandbox))
    assert FORBIDDEN not in lab.capture.destinations()


@pytest.mark.parametrize("mode", MODES)
def test_the_floor_holds_while_learning(lab: Lab, mode: str) -> None:
    """Private networks, metadata, the host, other sandboxes: denied, never proposed, and named with the reason."""
    other = studied(lab, mode, f"{mode}-neighbour")
    sandbox = studied(lab, mode, f"{mode}-floor")
    for address in (INTRANET, METADATA, "10.0.0.1", str(GATEWAY), other.address, "224.0.0.1"):
        with contextlib.suppress(OSError):  # some have no way at all
            refused(sandbox, address, 80, get("meta.example.com"))
    for name in ("inside.example.com", "meta.example.com"):
        for address in sandbox.addresses(name):
            assert pretended_one(address)
    with contextlib.suppress(OSError):
        refused(sandbox, "51.15.0.2", 22)
    assert lab.capture.destinations() <= {NAMES}
    found = learnt(lab, sandbox)
    assert {rule for rule in wanted(found) if "meta.example.com" not in rule} <= {"51.15.0.2/32:22/tcp"}
    if mode == "learn":
        assert wanted(found) == set()
        places = (INTRANET, METADATA, "51.15.0.2", other.address)

        def reasons() -> str:
            return " ".join(each.reason for each in learnt(lab, sandbox).refused)

        assert eventually(lambda: all(place in reasons() for place in places)), reasons()


def pretended_one(text: str) -> bool:
    """Whether an address is one that nobody has."""
    return IPv4Address(text) in PLACEHOLDERS


def test_a_client_that_lies_about_its_name(lab: Lab) -> None:
    """Learning takes no name that was never resolved: the address is what was reached, and what is proposed."""
    sandbox = studied(lab, "learn", "liar")
    with contextlib.suppress(OSError), tls_client(lab, sandbox, ALLOWED, None) as connection:
        asked(connection, get(GOOD, "/", extra="Connection: close\r\n"))
    assert eventually(lambda: wanted(learnt(lab, sandbox)) == {f"{ALLOWED}/32:443/tcp"}), wanted(learnt(lab, sandbox))
    hearsay = studied(lab, "rehearse", "hearsay")
    refused(hearsay, ALLOWED, 80, get(EVIL, "/"))
    assert eventually(lambda: wanted(learnt(lab, hearsay)) == {f"{ALLOWED}/32:80/tcp"}), wanted(learnt(lab, hearsay))


def test_a_server_that_speaks_first_is_learnt(lab: Lab) -> None:
    """A client that waits is waited for only a moment, and then let through to the name its address was given for."""
    sandbox = studied(lab, "learn", "waits")
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with lab.door(ALLOWED, 22) as door, sandbox.connection(ALLOWED, 22) as connection:
        server = door.accept()[0]
        with server:
            server.sendall(b"SSH-2.0-x\r\n")
            assert connection.recv(20) == b"SSH-2.0-x\r\n"
    assert eventually(lambda: wanted(learnt(lab, sandbox)) == {f"{GOOD}:22/tcp"}), wanted(learnt(lab, sandbox))


def test_learning_ends_when_the_policy_does(lab: Lab) -> None:
    """What was only let through to learn is cut at once; what was only pretended is forgotten."""
    sandbox = studied(lab, "learn", "ends")
    sandbox.addresses(GOOD)
    with lab.door(ALLOWED, 7001) as door, sandbox.connection(ALLOWED, 7001) as connection:
        connection.sendall(b"x")
        server = door.accept()[0]
        with server:
            assert server.recv(1) == b"x"
            sandbox.allow([GOOD])
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
    pretends = studied(lab, "rehearse", "stops")
    assert pretended_one(pretends.addresses(GOOD)[0])
    pretends.allow([GOOD])
    assert pretends.addresses(GOOD) == [ALLOWED]
    with tls_client(lab, pretends, ALLOWED, GOOD) as page:
        assert b"/tls" in asked(page, get(GOOD, "/tls", extra="Connection: close\r\n"))


def test_names_of_the_floor_are_not_pretended(lab: Lab) -> None:
    """A rehearsal has no address for names that mean this machine to somebody, nor for what is no name."""
    sandbox = studied(lab, "rehearse", "floor-names")
    for name in ("a.localhost", "metadata.google.internal", "10.in-addr.arpa", "Bad_name.example.com"):
        answer = sandbox.resolve(name, edns=False)
        assert struct.unpack(">H", answer[2:4])[0] & 15
        assert not sandbox.addresses(name)


def test_pretended_addresses_do_not_run_out() -> None:
    """A program that asks for more names than there are addresses gets older ones again, and memory stays bounded."""
    guest = Guest("s", GATEWAY, Asker.of(policy_from({"mode": "rehearse"})))
    seen = {guest.pretend(f"n{n}.example.com", 5).addresses[0] for n in range(70_000)}
    assert all(address in PLACEHOLDERS for address in seen)
    assert len(seen) == PLACEHOLDERS.num_addresses - 2
    assert guest.pins.names_of(next(iter(guest.pretend("last.example.com", 5).addresses))) == ["last.example.com"]


def test_learning_needs_the_operators_word() -> None:
    """Refused with the reason and what to use instead; a rehearsal needs nobody's."""
    with pytest.raises(BadRequest, match="the operator has not allowed") as found:
        policy_from({"mode": "learn"}, Floor())
    assert "rehearse" in found.value.remediation
    assert policy_from({"mode": "rehearse"}, Floor()).networked


def test_a_name_of_another_alphabet_is_read_by_the_gate(lab: Lab) -> None:
    """The gate has no file system to look for anything in when the first such name comes."""
    name = "xn--bcher-kva.example.com"
    sandbox = studied(lab, "rehearse", "alphabet")
    (pretended,) = sandbox.addresses(name)
    assert refused(sandbox, pretended, 80, get(name, "/x")) < 2
    expected = {f"{name}:80/http GET /x"}
    assert eventually(lambda: wanted(learnt(lab, sandbox)) == expected), wanted(learnt(lab, sandbox))
