"""Group E of the attack catalogue against the real thing: wires, packet rules and gate, with a capture on the uplink.

"Blocked" means that no packet left for there, and that whoever asked heard a no at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import pytest

from ringfence.domain.errors import BadRequest
from ringfence.network import rules
from ringfence.network.gate.guests import EVENTS_BURST, EVENTS_PER_SECOND
from tests.network.lab import (
    ALLOWED,
    FORBIDDEN,
    INTRANET,
    METADATA,
    NAMES,
    PEER,
    UPLINK,
    Lab,
    Sandbox,
    asked,
    everything,
    get,
    tls_client,
)
from tests.network.test_gate_parsers import made_hello, names, real_hello

GOOD, EVIL = "good.example.com", "evil.example.net"
WEB = [GOOD, "*.wild.example.com", {"domain": GOOD, "protocol": "http"}]
SOON = 12.0  # at once, on however busy a machine: sooner than any clock of the gate's would have it end


def eventually(check: Callable[[], object], seconds: float = 60.0) -> object:
    """Wait for something that is under way."""
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def refused(sandbox: Sandbox, address: str, port: int, words: bytes = b"") -> float:
    """Seconds until a connection from inside was refused; fails when anything but a reset or our 403 comes back."""
    began = time.monotonic()
    try:
        with sandbox.connection(address, port) as connection:
            heard = asked(connection, words)
    except ConnectionError:
        heard = b"<reset>"
    assert heard == b"<reset>" or b"\r\nX-Ringfence: denied\r\n" in heard, heard
    return time.monotonic() - began


async def running(call: Callable[[], object]) -> object:
    """A call where the node is."""
    return call()


async def listening(address: str, port: int) -> socket.socket:
    """A server where the coroutine runs."""
    return socket.create_server((address, port))


# -- what is allowed works ----------------------------------------------------------------------------------------


def test_an_allowed_site_by_tls_and_http(lab: Lab) -> None:
    """Both ways to a site that is on the list, with the body whole, and an event for each with its bytes."""
    sandbox = lab.sandbox("allowed", WEB)
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with tls_client(lab, sandbox, ALLOWED, GOOD) as connection:
        connection.sendall(get(GOOD, "/tls", extra="Connection: close\r\n"))
        assert f"{ALLOWED} /tls 0:".encode() in everything(connection)
    with sandbox.connection(ALLOWED, 80) as connection:
        body = os.urandom(300_000)
        answer = asked(connection, get(GOOD, "/up", "POST", f"Content-Length: {len(body)}\r\n") + body)
        assert answer.endswith(f"/up {len(body)}:".encode() + body)
    assert eventually(lambda: len(lab.told(verdict="allowed", sandbox="allowed")) == 2)
    event = lab.told(protocol="http", verdict="allowed")[0]
    assert (event["name"], event["address"], event["port"], event["rule"]) == (GOOD, ALLOWED, 80, f"{GOOD}:80/http")
    assert event["sent"] > 300_000
    assert event["received"] > 300_000


def test_a_big_download_waits_for_a_slow_reader(lab: Lab) -> None:
    """A client that does not read holds the server back: the gate keeps no more than a little for it."""
    sandbox = lab.sandbox("slow", [{"domain": GOOD, "protocol": "tcp", "ports": [7001]}])
    sandbox.addresses(GOOD)
    with lab.door(ALLOWED, 7001) as door, sandbox.connection(ALLOWED, 7001) as connection:
        server = door.accept()[0]
        server.settimeout(1.0)
        written = 0
        with server, contextlib.suppress(TimeoutError):
            while written < 200_000_000:
                written += server.send(bytes(1 << 20))
        assert written < 64_000_000
        assert connection.recv(10) == bytes(10)


def test_a_conversation_in_which_the_server_speaks_first(lab: Lab) -> None:
    """Any protocol, by the address that was resolved, at the port of its rule; half-closing works."""
    sandbox = lab.sandbox("first", [{"domain": GOOD, "protocol": "tcp", "ports": [22]}])
    assert refused(sandbox, ALLOWED, 22) < SOON  # not resolved yet: it could be anybody's address
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with lab.door(ALLOWED, 22) as door, sandbox.connection(ALLOWED, 22) as connection:
        server = door.accept()[0]
        with server:
            server.sendall(b"SSH-2.0-test\r\n")
            assert connection.recv(100) == b"SSH-2.0-test\r\n"
            connection.sendall(b"bye")
            connection.shutdown(socket.SHUT_WR)
            assert everything(server) == b"bye"
            server.sendall(b"later")
        assert everything(connection) == b"later"


def test_addresses_by_network(lab: Lab) -> None:
    """A rule for a network lets through to its addresses and ports, and to no others."""
    sandbox = lab.sandbox("cidr", [{"cidr": "45.33.1.8/29", "ports": [8080]}])
    with sandbox.connection(ALLOWED, 8080) as connection:
        assert b"200 OK" in asked(connection, get("whatever", extra="Connection: close\r\n"))
    assert refused(sandbox, ALLOWED, 80, get(GOOD)) < SOON
    assert refused(sandbox, FORBIDDEN, 8080, get(EVIL)) < SOON
    assert FORBIDDEN not in lab.capture.destinations()


def test_a_hundred_connections_at_once(lab: Lab) -> None:
    """All are carried, and none is mixed up with another."""
    sandbox = lab.sandbox("many", WEB)
    sandbox.addresses(GOOD)
    connections = [sandbox.connection(ALLOWED, 80) for _ in range(100)]
    for number, connection in enumerate(connections):
        connection.sendall(get(GOOD, f"/{number}"))
    for number, connection in enumerate(connections):
        with connection:
            assert f" /{number} 0:".encode() in everything(connection)


# -- what is not listed is denied -----------------------------------------------------------------------------------


def test_a_forbidden_site_is_refused_readably_and_at_once(lab: Lab) -> None:
    """DNS and HTTP say no and why, TLS says access denied, anything else is reset; and no packet left."""
    sandbox = lab.sandbox("denied", WEB)
    began = time.monotonic()
    answer = sandbox.resolve(EVIL)
    assert answer[3] & 15 == 5
    assert b"not on this sandbox's list" in answer
    with sandbox.connection(FORBIDDEN, 80) as connection:
        heard = asked(connection, get(EVIL, "/x"))
    assert heard.startswith(b"HTTP/1.1 403 ")
    assert b"denied: no rule for GET http://evil.example.net/x" in heard
    with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
        tls_client(lab, sandbox, FORBIDDEN, EVIL)
    refused(sandbox, FORBIDDEN, 22)
    refused(sandbox, FORBIDDEN, 443, b"\0\1\2")
    assert time.monotonic() - began < SOON
    assert lab.capture.destinations() == set()
    assert lab.names.asked == []
    denied = eventually(lambda: len(lab.told(sandbox="denied", verdict="denied")) >= 5)
    assert denied
    assert all(event["reason"] for event in lab.told(verdict="denied"))


def test_what_is_below_the_floor_is_refused_readably_too(lab: Lab) -> None:
    """A program that asks a metadata service reads why it cannot, in its own protocol."""
    sandbox = lab.sandbox("readable", [])
    with sandbox.connection(METADATA, 80) as connection:
        assert b"below the operator's floor" in asked(connection, get("169.254.169.254", "/latest/meta-data/"))
    with sandbox.connection(METADATA, 443) as connection:
        assert asked(connection, made_hello(names(b"meta.example.com"))).startswith(b"\x15\3\3\0\2\2")
    assert lab.capture.destinations() == set()


def test_an_empty_policy_denies_everything(lab: Lab) -> None:
    """An interface, and nothing to reach by it."""
    sandbox = lab.sandbox("empty", [])
    assert sandbox.resolve(GOOD)[3] & 15 == 5
    for port in (22, 80, 443):
        assert refused(sandbox, ALLOWED, port) < SOON
    assert lab.capture.destinations() == set()


def test_no_policy_yet_means_nothing(lab: Lab) -> None:
    """A warm sandbox has a wire before it has an owner: connections are reset, questions are not answered."""
    sandbox = lab.sandbox("warm")
    lab.do(lab.network.attach("warm", sandbox.space.tid))
    assert refused(sandbox, ALLOWED, 80) < SOON
    with pytest.raises(TimeoutError):
        sandbox.resolve(GOOD, timeout=0.3)
    assert lab.capture.destinations() == set()


def test_no_network_means_no_interface(lab: Lab) -> None:
    """The default: nothing but the loopback, and an immediate error."""
    sandbox = lab.sandbox("none")
    assert sandbox.space.run(socket.if_nameindex) == [(1, "lo")]
    with pytest.raises(OSError, match="unreachable"):
        sandbox.connection(ALLOWED, 80)
    assert lab.told(sandbox="none") == []


@pytest.mark.parametrize("address", [METADATA, INTRANET, "100.100.100.200", "168.63.129.16", "127.0.0.2", "0.0.0.1"])
@pytest.mark.parametrize("port", [80, 443])
def test_the_floor_holds_under_a_rule_for_everything(lab: Lab, address: str, port: int) -> None:
    """Metadata services and private networks are not reached by a policy that allows every address (attack 86)."""
    sandbox = lab.sandbox("floor", [{"cidr": "0.0.0.0/0", "ports": [80, 443]}])
    with contextlib.suppress(OSError):  # 127 and 0 do not leave the sandbox itself
        refused(sandbox, address, port)
    assert lab.capture.destinations() == set()
    assert not lab.visits.get(address)


def test_the_host_is_not_reached_by_any_of_its_addresses(lab: Lab) -> None:
    """A service of the host at its public address, and at the router's own (attack 87)."""
    sandbox = lab.sandbox("tohost", [{"cidr": "0.0.0.0/0", "ports": [1, 53, 80, 9000]}])
    with lab.do(listening(str(UPLINK), 9000)) as service:
        service.settimeout(0.3)
        assert refused(sandbox, str(UPLINK), 9000) < SOON
        with pytest.raises(TimeoutError):
            service.accept()
    for port in (1, 80, 22):
        assert refused(sandbox, str(rules.GATEWAY), port) < SOON
    assert eventually(lambda: any("this host's own" in event["reason"] for event in lab.told(sandbox="tohost")))


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inside.example.com", "meta.example.com"])
def test_an_allowed_name_with_a_private_address_is_not_answered(lab: Lab, name: str) -> None:
    """Rebinding at the first answer: the resolver drops it, and so does the gate (attack 89)."""
    sandbox = lab.sandbox("private", [name, {"domain": name, "protocol": "http"}])
    answer = sandbox.resolve(name)
    assert answer[3] & 15 == 5
    assert b"below the operator's floor" in answer
    for address in (INTRANET, METADATA):
        assert refused(sandbox, address, 80, get(name)) < SOON
    assert lab.capture.destinations() <= {NAMES}
    assert not lab.visits[INTRANET]
    assert not lab.visits[METADATA]


def test_a_name_that_rebinds_after_it_was_checked(lab: Lab) -> None:
    """The address is good when the sandbox asks and private when the gate would ask again: it is not reached."""
    for turn in range(10):
        name, began = f"rebind{turn}.example.com", time.monotonic()
        lab.names.table[name] = [[ALLOWED], [METADATA], [INTRANET]]
        policy = [{"domain": name, "protocol": "http"}, {"domain": name, "protocol": "tcp", "ports": [8080]}]
        sandbox = lab.sandbox(f"rebind{turn}", policy)
        assert sandbox.addresses(name) == [ALLOWED]
        with sandbox.connection(ALLOWED, 80) as connection:
            answer = asked(connection, get(name))
        if time.monotonic() - began < 4:  # else it may have been stale already
            break
    assert b"200 OK" in answer
    time.sleep(5.2)  # the answer is stale now
    with sandbox.connection(ALLOWED, 80) as connection:
        assert b"403" in asked(connection, get(name))
    for address in (METADATA, INTRANET):
        refused(sandbox, address, 80, get(name))
        refused(sandbox, address, 8080)
    assert lab.capture.destinations() <= {NAMES, ALLOWED}


def test_private_answers_among_good_ones_are_dropped(lab: Lab) -> None:
    """The good address stays."""
    lab.names.table["mixed.example.com"] = [[METADATA, ALLOWED, INTRANET]]
    sandbox = lab.sandbox("mixed", ["mixed.example.com"])
    assert sandbox.addresses("mixed.example.com") == [ALLOWED]


def test_aliases_are_followed_to_addresses_only(lab: Lab) -> None:
    """An alias of an allowed name leads where its owner says, but pins that name alone; a private end is none."""
    lab.names.aliases |= {"alias.example.com": "edge.cdn.net", "bad.example.com": "inside.cdn.net"}
    lab.names.table |= {
        "alias.example.com": [[]],
        "edge.cdn.net": [[ALLOWED]],
        "bad.example.com": [[]],
        "inside.cdn.net": [[INTRANET]],
    }
    sandbox = lab.sandbox("alias", ["alias.example.com", "bad.example.com"])
    assert ALLOWED in sandbox.addresses("alias.example.com")
    assert sandbox.resolve("edge.cdn.net")[3] & 15 == 5
    assert sandbox.resolve("bad.example.com")[3] & 15 == 5


@pytest.mark.parametrize("kind", [12, 15, 16, 33, 10, 255, 252, 257])
def test_only_addresses_are_answered(lab: Lab, kind: int) -> None:
    """TXT, MX, SRV, NULL, ANY, transfers: refused here, even for allowed names, and nobody upstream is asked."""
    sandbox = lab.sandbox("kinds", WEB)
    assert sandbox.resolve(GOOD, kind)[3] & 15 == 5
    assert lab.names.asked == []


@pytest.mark.parametrize("kind", [28, 64, 65])
def test_ipv6_and_hints_are_answered_empty(lab: Lab, kind: int) -> None:
    """So that a program that asks for both gets on with what there is, and no encrypted hello is ever offered."""
    sandbox = lab.sandbox("six", WEB)
    answer = sandbox.resolve(GOOD, kind)
    assert answer[3] & 15 == 0
    assert answer[6:8] == b"\0\0"
    assert lab.names.asked == []


def test_dns_tunnels_find_no_end(lab: Lab) -> None:
    """Data in names of a forbidden domain, by datagram and by stream, to our resolver and to any other (attack 89)."""
    sandbox = lab.sandbox("tunnel", WEB)
    for number in range(20):
        assert sandbox.resolve(f"{'ab' * 30}.{number}.attacker.example.org")[3] & 15 == 5

    def elsewhere() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            asking.sendto(
                struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\4evil\7example\3net\0\0\1\0\1", (FORBIDDEN, 53)
            )
            return asking.recvfrom(4096)[0]

    assert sandbox.space.run(elsewhere)[3] & 15 == 5
    query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\4data\4evil\7example\3net\0\0\1\0\1"
    for address in (str(rules.GATEWAY), FORBIDDEN, "8.8.8.8"):
        with sandbox.connection(address, 53) as connection:
            connection.sendall(len(query).to_bytes(2, "big") + query)
            answer = connection.recv(4096)
            assert answer[5] & 15 == 5
    for port in (853, 443):
        assert refused(sandbox, "8.8.8.8", port, b"\0\0") < SOON
    assert lab.names.asked == []
    assert lab.capture.destinations() == set()


def test_an_allowed_name_over_tcp_and_a_long_answer(lab: Lab) -> None:
    """A resolver that answers "too long" is asked again by stream; a sandbox may ask by stream too."""
    lab.names.truncate = True
    try:
        sandbox = lab.sandbox("stream", WEB)
        assert sandbox.addresses(GOOD) == [ALLOWED]
    finally:
        lab.names.truncate = False
    query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\4good\7example\3com\0\0\1\0\1"
    with sandbox.connection(str(rules.GATEWAY), 53) as connection:
        for _ in range(3):
            connection.sendall(len(query).to_bytes(2, "big") + query)
            assert socket.inet_aton(ALLOWED) in connection.recv(4096)


def test_forged_answers_are_not_believed(lab: Lab) -> None:
    """Answers with another number or another question are passed over until the right one comes."""

    def forge(query: bytes, answer: bytes) -> list[bytes]:
        other = bytes([answer[0] ^ 1]) + answer[1:]
        evil = answer.replace(b"\4good", b"\4evil")
        poisoned = answer.replace(socket.inet_aton(ALLOWED), socket.inet_aton(FORBIDDEN))
        return [bytes([poisoned[0] ^ 1]) + poisoned[1:], other, evil, b"", b"x", answer]

    lab.names.forge, kept = forge, lab.names.forge
    try:
        sandbox = lab.sandbox("forged", WEB)
        assert sandbox.addresses(GOOD) == [ALLOWED]
    finally:
        lab.names.forge = kept


@pytest.mark.parametrize(
    "name",
    [
        "ev\0il.example.com",
        "GOOD.example.com.evil",
        "good.example.com\0.evil.net",
        "xn--.example.com",
        "xn--god-rna.example.com",
    ],
)
def test_odd_names_are_refused(lab: Lab, name: str) -> None:
    """Nobody is asked for a name that is none."""
    sandbox = lab.sandbox("odd", WEB)
    assert sandbox.resolve(name)[3] & 15 == 5
    assert lab.names.asked == []


# -- confusion ------------------------------------------------------------------------------------------------------


def test_fronting_by_tls(lab: Lab) -> None:
    """The right name at a wrong address, a wrong name at the right address, no name, a hidden name (attack 90)."""
    sandbox = lab.sandbox("fronting", WEB)
    sandbox.addresses(GOOD)
    for address, name in ((FORBIDDEN, GOOD), (ALLOWED, EVIL), (ALLOWED, None), (PEER, GOOD)):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            tls_client(lab, sandbox, address, name)
    for words in (
        made_hello(names(GOOD.encode()), (0xFE0D, bytes(8))),
        made_hello(names(GOOD.encode(), EVIL.encode())),
        made_hello(names(f"{GOOD}.".encode())),
        made_hello(names(f"{EVIL}\0.{GOOD}".encode())),
        made_hello(names(f"{GOOD}@{EVIL}".encode())),
        made_hello(names(f"evil{GOOD}".encode())),
        made_hello(names(f"{GOOD}.evil.net".encode())),
        real_hello(None),
    ):
        with sandbox.connection(ALLOWED, 443) as connection:
            assert asked(connection, words).startswith(b"\x15\3\3\0\2\2")
    assert lab.capture.destinations() <= {NAMES}
    assert eventually(lambda: any("ECH" in event["reason"] for event in lab.told(sandbox="fronting")))
    assert eventually(lambda: any("never resolved for" in event["reason"] for event in lab.told(sandbox="fronting")))


@pytest.mark.parametrize(
    "words",
    [
        get(EVIL),
        get(f"{GOOD}:8080"),
        get(f"{GOOD}."),
        get("45.33.1.10"),
        get(f"{GOOD}@{EVIL}"),
        get(f"{EVIL}\0.{GOOD}"),
        get(f"{GOOD}.evil.net"),
        get(f"evil{GOOD}"),
        get("[::ffff:2d21:10a]"),
        get("0x2d21010a"),
        get(GOOD, f"http://{EVIL}/"),
        get(GOOD, extra=f"Host: {EVIL}\r\n"),
        get(GOOD, extra="Upgrade: h2c\r\n"),
        get(GOOD, "*", "OPTIONS"),
        get(f"{GOOD}:80", f"{EVIL}:443", "CONNECT"),
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_fronting_by_http(lab: Lab, words: bytes) -> None:
    """A Host that is not the allowed one, in every way of saying so, is a readable no (attack 90)."""
    sandbox = lab.sandbox("host", WEB)
    sandbox.addresses(GOOD)
    with sandbox.connection(ALLOWED, 80) as connection:
        heard = asked(connection, words)
    assert heard.startswith(b"HTTP/1.1 403 ")
    assert b"ringfence: denied: " in heard
    assert not lab.visits[ALLOWED]
    assert lab.capture.destinations() <= {NAMES}


def test_a_second_request_is_not_sent_on(lab: Lab) -> None:
    """Pipelined behind the first, or hidden in its body: the server hears one request (attack 90)."""
    sandbox = lab.sandbox("pipeline", WEB)
    sandbox.addresses(GOOD)
    for first in (
        get(GOOD, "/1"),
        get(GOOD, "/1", "POST", "Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
    ):
        with sandbox.connection(ALLOWED, 80) as connection:
            heard = asked(connection, first + get(EVIL, "/2") + get(GOOD, "/3"))
        assert heard.count(b"HTTP/1.1 200") == 1
        assert b"/2" not in heard
    assert {path for _, _, path in lab.visits[ALLOWED]} == {"/1"}


def test_methods_and_paths(lab: Lab) -> None:
    """A rule for reading one part of a site by plain HTTP allows neither writing nor the rest."""
    rule = {"domain": GOOD, "protocol": "http", "methods": ["GET"], "paths": ["/pool/*"]}
    sandbox = lab.sandbox("paths", [rule])
    sandbox.addresses(GOOD)

    def status(words: bytes) -> bytes:
        with sandbox.connection(ALLOWED, 80) as connection:
            return asked(connection, words)[9:12]

    assert status(get(GOOD, "/pool/a.deb")) == b"200"
    for words in (
        get(GOOD, "/other"),
        get(GOOD, "/pool/../other"),
        get(GOOD, "/pool/%2e%2e/x"),
        get(GOOD, "/pool/a", "POST"),
    ):
        assert status(words) == b"403"
    assert {path for _, _, path in lab.visits[ALLOWED]} == {"/pool/a.deb"}


def test_a_wrong_protocol_for_a_rule(lab: Lab) -> None:
    """A rule for TLS does not let plain text through at its port, nor the other way round."""
    sandbox = lab.sandbox("protocol", [GOOD, {"domain": GOOD, "protocol": "http"}])
    sandbox.addresses(GOOD)
    with sandbox.connection(ALLOWED, 443) as connection:
        assert b"403" in asked(connection, get(f"{GOOD}:443"))
    with pytest.raises(ssl.SSLError):
        tls_client(lab, sandbox, ALLOWED, GOOD, 80)
    assert refused(sandbox, ALLOWED, 443, b"SSH-2.0-x\r\n") < SOON
    assert lab.capture.destinations() <= {NAMES}


# -- beside the gate ------------------------------------------------------------------------------------------------


def raw(sandbox: Sandbox, frames: list[bytes], kind: int = 0x0800) -> None:
    """Put frames on the wire as its own root could, if it had the right (no sandbox has)."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
            wire.bind(("eth0", kind))
            for frame in frames:
                wire.send(
                    bytes.fromhex("02ffffff0001") + bytes.fromhex("02ffffff0002") + kind.to_bytes(2, "big") + frame
                )

    sandbox.space.run(send)


def ip_packet(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet by hand."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack(">H", total) + head[12:] + payload


def dropped(lab: Lab) -> dict[str, int]:
    """The router's counters."""
    found: dict[str, int] = lab.do(lab.network.status())["dropped"]
    return found


def test_a_spoofed_source_is_dropped(lab: Lab) -> None:
    """Packets in a neighbour's name, in the router's, in a stranger's: none is believed."""
    victim, sandbox = lab.sandbox("victim", WEB), lab.sandbox("spoofer", [])
    question = (
        struct.pack(">HHHH", 4000, 53, 8 + 34, 0)
        + struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0)
        + b"\4good\7example\3com\0\0\1\0\1"
    )
    before = dropped(lab)["spoofed"]
    sources = (victim.address, str(rules.GATEWAY), "8.8.8.8", "0.0.0.0", "127.0.0.1")
    raw(sandbox, [ip_packet(source, str(rules.GATEWAY), 17, question) for source in sources])
    assert eventually(lambda: dropped(lab)["spoofed"] - before >= 3)
    assert lab.names.asked == []
    assert lab.capture.destinations() == set()
    assert lab.told(sandbox="victim") == []


def test_other_protocols_are_dropped(lab: Lab) -> None:
    """ICMP, SCTP, GRE, broadcast and multicast, fragments, IPv6 in all its kinds: counted, and gone."""
    sandbox = lab.sandbox("raw", [{"cidr": "0.0.0.0/0", "ports": [80]}])
    before, own = dropped(lab), sandbox.address
    raw(sandbox, [ip_packet(own, ALLOWED, 1, b"\x08\0\xf7\xff\0\0\0\0"), ip_packet(own, ALLOWED, 132, bytes(12))])
    raw(sandbox, [ip_packet(own, ALLOWED, 47, bytes(8)), ip_packet(own, "255.255.255.255", 17, bytes(8))])
    raw(
        sandbox,
        [ip_packet(own, "224.0.0.251", 17, bytes(8)), ip_packet(own, "198.18.255.255", 1, b"\x08\0\xf7\xff\0\0\0\0")],
    )
    neighbour = (
        bytes.fromhex("6000000000083aff") + bytes(16) + bytes.fromhex("ff020000000000000000000000000001") + bytes(8)
    )
    raw(sandbox, [neighbour], 0x86DD)
    for kind in ("wide", "pings", "unknown"):
        assert eventually(lambda kind=kind: dropped(lab)[kind] - before[kind] >= 2), kind  # type: ignore[misc]
    assert lab.capture.destinations() == set()


def test_half_a_conversation_is_dropped(lab: Lab) -> None:
    """Segments that belong to no connection, as a scan would send them."""
    sandbox, own = lab.sandbox("scan", [{"cidr": "0.0.0.0/0", "ports": [80]}]), ""
    own = sandbox.address
    flags = [0x10, 0x04, 0x01, 0x29, 0x00, 0x12]
    raw(
        sandbox,
        [
            ip_packet(own, ALLOWED, 6, struct.pack(">HHIIBBHHH", 4001 + n, 80, 1, 1, 0x50, f, 1000, 0, 0))
            for n, f in enumerate(flags)
        ],
    )
    time.sleep(0.3)
    assert lab.capture.destinations() == set()


@pytest.mark.parametrize("port", [443, 123, 80, 5353])
def test_datagrams_are_refused_at_once(lab: Lab, port: int) -> None:
    """UDP 443 (QUIC) and every other port but the resolver's: the program is told, and falls back (attack 90)."""
    sandbox = lab.sandbox("udp", WEB)
    sandbox.addresses(GOOD)
    lab.capture.clear()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(30)
            datagrams.connect((ALLOWED, port))
            datagrams.send(b"hello")
            datagrams.recv(10)

    began = time.monotonic()
    with pytest.raises(OSError, match=r"No route to host|refused|denied"):
        sandbox.space.run(send)
    assert time.monotonic() - began < SOON
    assert lab.capture.destinations() <= {NAMES}  # the name was asked for


def test_ipv6_is_not_there(lab: Lab) -> None:
    """No address, no route; metadata by IPv6, mapped, translated or tunnelled is unreachable at once."""
    sandbox = lab.sandbox("v6", [{"cidr": "0.0.0.0/0", "ports": [80]}])
    for address in ("fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "ff02::1%eth0", "fe80::1%eth0"):
        with pytest.raises(OSError, match=r"unreachable|assign|No route|Invalid"):
            sandbox.connection(address, 80, timeout=1)
    with pytest.raises(ConnectionError):
        sandbox.connection(f"::ffff:{METADATA}", 80).recv(1)
    assert lab.capture.destinations() == set()
    assert not lab.visits[METADATA]


def test_neighbours_do_not_exist(lab: Lab) -> None:
    """Another tenant's server is not reached by TCP, UDP or ARP, whatever the policy says (attack 88)."""
    victim = lab.sandbox("neighbour", [{"cidr": "0.0.0.0/0", "ports": [8000]}])
    sandbox = lab.sandbox("scanner", [{"cidr": "0.0.0.0/0", "ports": [8000]}])
    with victim.space.run(lambda: socket.create_server(("0.0.0.0", 8000))) as service:
        service.settimeout(0.5)
        assert refused(sandbox, victim.address, 8000) < SOON
        with pytest.raises(TimeoutError):
            service.accept()
    arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex("02ffffff0002") + socket.inet_aton(sandbox.address)

    def answered() -> bytes:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as wire:
            wire.bind(("eth0", 0x0806))
            wire.settimeout(0.5)
            frame = (
                b"\xff" * 6
                + bytes.fromhex("02ffffff0002")
                + b"\x08\x06"
                + arp
                + bytes(6)
                + socket.inet_aton(victim.address)
            )
            wire.send(frame)
            return wire.recv(100)

    with pytest.raises(TimeoutError):
        sandbox.space.run(answered)


def test_nobody_knocks_from_outside(lab: Lab) -> None:
    """A sandbox that listens on everything is found by nobody: no packet begins towards it (attack 100)."""
    sandbox = lab.sandbox("listener", WEB)
    with sandbox.space.run(lambda: socket.create_server(("0.0.0.0", 80))):
        for outside in (lab.internet.run, lambda call: lab.do(running(call))):
            with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
                outside(lambda: socket.create_connection((sandbox.address, 80), 0.5))


# -- change and end -------------------------------------------------------------------------------------------------


def echo(lab: Lab, sandbox: Sandbox, port: int) -> tuple[socket.socket, socket.socket]:
    """An open conversation: the sandbox's end and the server's."""
    with lab.door(ALLOWED, port) as door:
        connection = sandbox.connection(ALLOWED, port)
        server = door.accept()[0]
    server.settimeout(60)
    connection.sendall(b"hello")
    assert server.recv(10) == b"hello"
    return connection, server


def test_a_changed_policy_cuts_what_it_does_not_allow(lab: Lab) -> None:
    """Within a second, both ends hear it; what is still allowed goes on; and it is denied from then on (attack 99)."""
    both = [{"cidr": f"{ALLOWED}/32", "ports": [7002]}, {"cidr": f"{ALLOWED}/32", "ports": [7003]}]
    sandbox = lab.sandbox("changed", both)
    cut, cut_server = echo(lab, sandbox, 7002)
    kept, kept_server = echo(lab, sandbox, 7003)
    with cut, cut_server, kept, kept_server:
        began = time.monotonic()
        sandbox.allow(both[1:])
        assert everything(cut) == b"<reset>"
        assert everything(cut_server) == b"<reset>"
        assert time.monotonic() - began < SOON
        kept.sendall(b"again")
        assert kept_server.recv(10) == b"again"
    assert refused(sandbox, ALLOWED, 7002) < SOON
    assert eventually(lambda: any(e["reason"] == "the policy was changed" for e in lab.told(verdict="cut")))


def test_a_changed_policy_forgets_names(lab: Lab) -> None:
    """A name that was resolved under the old policy is nothing under the new one, and works again under the next."""
    sandbox = lab.sandbox("forgets", WEB)
    sandbox.addresses(GOOD)
    sandbox.allow([])
    assert refused(sandbox, ALLOWED, 80, get(GOOD)) < SOON
    assert sandbox.resolve(GOOD)[3] & 15 == 5
    sandbox.allow(WEB)
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with sandbox.connection(ALLOWED, 80) as connection:
        assert b"200 OK" in asked(connection, get(GOOD))


def test_bytes_may_be_bounded(lab: Lab) -> None:
    """A sandbox that has used up its bytes is cut, and gets no new connection (attack 102)."""
    sandbox = lab.sandbox("bytes", {"allow": [{"cidr": f"{ALLOWED}/32", "ports": [7004]}], "max_bytes": 100_000})
    connection, server = echo(lab, sandbox, 7004)
    with connection, server, contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(bytes(10_000))
            time.sleep(0.001)

    def told() -> bool:  # what was sent is counted once the gate has taken it
        assert refused(sandbox, ALLOWED, 7004) < SOON
        return any("used up" in event["reason"] for event in lab.told(verdict="denied"))

    assert eventually(told)


def test_one_sandbox_has_only_so_many_connections(lab: Lab) -> None:
    """The ones beyond are refused, and a neighbour is served all the same."""
    sandbox, other = lab.sandbox("greedy", [{"cidr": f"{ALLOWED}/32", "ports": [80]}]), lab.sandbox("modest", WEB)
    other.addresses(GOOD)
    held: list[socket.socket] = []

    def told() -> bool:
        with contextlib.suppress(OSError):
            held.append(sandbox.connection(ALLOWED, 80))
        return any("connections at once" in event["reason"] for event in lab.told(sandbox="greedy"))

    deadline = time.monotonic() + 60
    while not told():
        assert time.monotonic() < deadline
    with other.connection(ALLOWED, 80) as connection:
        assert b"200 OK" in asked(connection, get(GOOD))
    for each in held:
        each.close()


def test_a_neighbour_at_full_speed_leaves_room(lab: Lab) -> None:
    """While one sandbox moves all the bytes it can, another's short exchanges are not held up."""
    busy, calm = lab.sandbox("busy", [{"cidr": f"{ALLOWED}/32", "ports": [7007]}]), lab.sandbox("other", WEB)
    connection, server = echo(lab, busy, 7007)
    over = threading.Event()

    def pour() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                server.send(bytes(1 << 20))

    def drink() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection.recv(1 << 20)

    threads = [threading.Thread(target=each) for each in (pour, drink)]
    for thread in threads:
        thread.start()
    calm.addresses(GOOD)
    took = []
    for _ in range(20):
        began = time.monotonic()
        with calm.connection(ALLOWED, 80) as short:
            assert b"200 OK" in asked(short, get(GOOD))
        took.append(time.monotonic() - began)
    over.set()
    connection.close()
    server.close()
    for thread in threads:
        thread.join(60)
    assert sorted(took)[10] < SOON


def test_events_cannot_flood_the_node(lab: Lab) -> None:
    """Many denials are a bounded number of events, and a later one says how many there were."""
    sandbox, began = lab.sandbox("noisy", []), time.monotonic()
    for _ in range(450):
        sandbox.resolve(EVIL)
    time.sleep(0.2)
    most = EVENTS_BURST + EVENTS_PER_SECOND * (time.monotonic() - began + 1)
    assert len(lab.told(sandbox="noisy")) < most
    time.sleep(0.3)
    sandbox.resolve(EVIL)
    assert eventually(lambda: sum(event["swallowed"] for event in lab.told(sandbox="noisy")) > 450 - most)


def test_a_flood_of_questions_is_slowed(lab: Lab) -> None:
    """More than a few hundred a second are dropped before the gate sees them; a neighbour is answered meanwhile."""
    sandbox, other = lab.sandbox("flood", WEB), lab.sandbox("calm", WEB)
    before = dropped(lab)["hasty"]

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for _ in range(5000):
                sending.sendto(b"x" * 20, (str(rules.GATEWAY), 53))

    began = time.monotonic()
    flooding = sandbox.space.start(flood)
    assert other.addresses(GOOD) == [ALLOWED]
    flooding.result(60)
    passed = rules.QUESTIONS_PER_SECOND * (time.monotonic() - began + 2)
    assert dropped(lab)["hasty"] - before > 5000 - passed


def test_garbage_is_survived(lab: Lab) -> None:
    """Random bytes at every door, connections that say nothing and leave: the gate is the same process afterwards."""
    sandbox = lab.sandbox("garbage", WEB)
    sandbox.addresses(GOOD)
    gate = lab.do(lab.network.status())["gate"]
    for port in (80, 443, 53):
        for size in (0, 1, 5, 100, 3000):
            with sandbox.connection(ALLOWED, port) as connection, contextlib.suppress(OSError):
                connection.sendall(os.urandom(size))
                if size % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def datagrams() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for size in range(0, 1400, 7):
                sending.sendto(os.urandom(size), (str(rules.GATEWAY), 53))

    sandbox.space.run(datagrams)
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with sandbox.connection(ALLOWED, 80) as connection:
        assert b"200 OK" in asked(connection, get(GOOD))
    assert lab.do(lab.network.status())["gate"] == gate


def test_without_a_gate_everything_is_closed(lab: Lab) -> None:
    """Its death cuts every connection and refuses new ones; the next gate knows every policy again."""
    sandbox = lab.sandbox("orphan", [*WEB, {"cidr": f"{ALLOWED}/32", "ports": [7005]}])
    sandbox.addresses(GOOD)
    connection, server = echo(lab, sandbox, 7005)
    gate = lab.do(lab.network.status())["gate"]
    with connection, server:
        began = time.monotonic()
        os.kill(gate, signal.SIGKILL)
        assert everything(connection) in {b"<reset>", b""}
        assert everything(server) in {b"<reset>", b""}
        assert time.monotonic() - began < SOON
    with contextlib.suppress(OSError):
        assert refused(sandbox, ALLOWED, 80, get(GOOD)) < SOON
    assert eventually(lambda: lab.do(lab.network.status())["gate"] not in {0, gate})
    assert sandbox.addresses(GOOD) == [ALLOWED]
    with sandbox.connection(ALLOWED, 80) as again:
        assert b"200 OK" in asked(again, get(GOOD))
    assert refused(sandbox, FORBIDDEN, 22) < SOON


def test_an_ended_sandbox_leaves_nothing(lab: Lab) -> None:
    """Its connections are cut, its wire is gone, and whoever gets its address gets none of its rights."""
    before = lab.do(lab.network._router._there(socket.if_nameindex))
    sandbox = lab.sandbox("ends", [{"cidr": f"{ALLOWED}/32", "ports": [7006]}])
    connection, server = echo(lab, sandbox, 7006)
    lab.sandboxes.remove(sandbox)
    with connection, server:
        sandbox.close()
        assert everything(server) == b"<reset>"
    assert lab.do(lab.network._router._there(socket.if_nameindex)) == before
    lab.network._router._free.rotate(1)  # the address just given back is taken next
    heir = lab.sandbox("heir", [])
    assert refused(heir, ALLOWED, 7006) < SOON


def test_a_policy_for_a_sandbox_without_a_wire_is_an_error(lab: Lab) -> None:
    """Nothing is remembered for later; and a bad policy never gets this far."""
    with pytest.raises(Exception, match="no network"):
        lab.sandbox("wireless").allow(WEB)
    with pytest.raises(BadRequest):
        lab.sandbox("bad").allow(["*"])
