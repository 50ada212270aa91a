"""Gateways: a source address, a SOCKS5 and an HTTP proxy, each a real one; and nothing that leaves another way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ringfence.config import EgressSettings, ServerSettings, read_server
from ringfence.domain.egress import policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.gateways import Gateway, agreed, gateway_from, gateway_to
from ringfence.engine.policy import Ceiling, Policy
from ringfence.network import netlink
from ringfence.network.network import Network
from ringfence.serve import handed, without_passwords
from tests.network.lab import ALLOWED, BEYOND, NAMES, PEER, UPLINK, Lab, Sandbox, asked, get, tls_client
from tests.network.test_egress_live import eventually

GOOD = "good.example.com"
RULES = [GOOD, {"domain": GOOD, "protocol": "http"}, {"cidr": f"{PEER}/32", "ports": [7100, 7101]}]
SECOND = IPv4Address("51.15.0.3")  # the host's other address
PROXIES = "45.33.1.60"  # where the proxies are
SOCKS, HTTP, HUNG, CLOSED = 1080, 8888, 1081, 1082
SECRET = "hunter2-canary"
TABLES: dict[str, dict[str, Any]] = {
    "second": {"kind": "source", "address": str(SECOND)},
    "gone": {"kind": "source", "address": "51.15.0.99"},
    "socks": {"kind": "socks5", "address": PROXIES, "port": SOCKS, "username": "u", "password": SECRET},
    "http": {"kind": "http", "address": PROXIES, "port": HTTP, "username": "u", "password": SECRET},
    "wrong-socks": {"kind": "socks5", "address": PROXIES, "port": SOCKS, "username": "u", "password": "no"},
    "wrong-http": {"kind": "http", "address": PROXIES, "port": HTTP, "username": "u", "password": "no"},
    "nobody": {"kind": "socks5", "address": PROXIES, "port": CLOSED},
    "hung": {"kind": "http", "address": PROXIES, "port": HUNG},
    "other": {"kind": "socks5", "address": PROXIES, "port": HTTP},
}
GATEWAYS = {name: gateway_from(name, table) for name, table in TABLES.items()}


def tools() -> None:
    """Skip where the proxies are not installed; on CI they must be."""
    missing = [tool for tool in ("microsocks", "tinyproxy") if shutil.which(tool) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"needs {missing}")
    if missing:
        pytest.skip(f"needs {missing}")


def accepting(lab: Lab, port: int) -> bool:
    """Whether a proxy is there."""

    async def tried() -> bool:
        try:
            socket.create_connection((PROXIES, port), 1).close()
        except OSError:
            return False
        return True

    return lab.do(tried())


@pytest.fixture(scope="module")
def office(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with a second address at the host, proxies in the internet, and a network that may leave by them."""
    tools()
    lab.do(_second_address())
    lab.internet.configure(netlink.neighbour_route(50, SECOND, BEYOND), netlink.own_address(1, IPv4Address(PROXIES)))
    conf: Path = tmp_path_factory.mktemp("tinyproxy") / "conf"
    conf.write_text(
        f"Port {HTTP}\nListen {PROXIES}\nTimeout 30\nAllow {UPLINK}\nBasicAuth u {SECRET}\nLogLevel Error\n"
    )
    commands = [
        ["microsocks", "-i", PROXIES, "-p", str(SOCKS), "-u", "u", "-P", SECRET],
        ["tinyproxy", "-d", "-c", str(conf)],
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [lab.internet.run(lambda argv=argv: subprocess.Popen(argv, **quiet)) for argv in commands]  # type: ignore[misc]
    usual, lab.network = lab.network, lab.do(_opened(lab))
    try:
        assert eventually(lambda: accepting(lab, SOCKS) and accepting(lab, HTTP), 10)
        yield lab
    finally:
        while lab.sandboxes:
            lab.sandboxes.pop().close()
        lab.do(lab.network.close())
        lab.network = usual
        for process in running:
            process.kill()
            process.wait()


async def _second_address() -> None:
    with netlink.Netlink() as link:
        link.do([netlink.own_address(50, SECOND)])


async def _opened(lab: Lab) -> Network:
    network = Network(floor=lab.floor, resolvers=((NAMES, 53),), gateways=GATEWAYS)
    network.on_event(lab.events.append)
    await network.open()
    return network


def behind(lab: Lab, gateway: str) -> Sandbox:
    """A sandbox that leaves by a gateway, and knows where its site is."""
    made = lab.sandbox(f"by-{gateway}")
    checked = policy_from(RULES)
    made.wire(type(checked)(checked.mode, checked.rules, gateway=gateway))
    made.addresses(GOOD)
    return made


def source_seen(lab: Lab, sandbox: Sandbox, port: int = 7100) -> str:
    """From where a server beyond sees a connection come; what it says first arrives whole."""
    with lab.door(PEER, port) as door, sandbox.connection(PEER, port) as connection:
        door.settimeout(60)
        server, peer = door.accept()
        with server:
            server.sendall(b"220 the server speaks first\r\n")
            assert connection.recv(100) == b"220 the server speaks first\r\n"
            connection.sendall(b"bye")
            assert server.recv(10) == b"bye"
    return str(peer[0])


@pytest.mark.parametrize("gateway", ["second", "socks", "http"])
def test_connections_leave_by_their_gateway(office: Lab, gateway: str) -> None:
    """TLS, plain requests and others; the server sees the gateway's address, never the host's own."""
    sandbox = behind(office, gateway)
    office.capture.clear()
    with tls_client(office, sandbox, ALLOWED, GOOD) as connection:
        assert f"{ALLOWED} /tls".encode() in asked(connection, get(GOOD, "/tls", extra="Connection: close\r\n"))
    with sandbox.connection(ALLOWED, 80) as plain:
        assert f"{ALLOWED} /plain".encode() in asked(plain, get(GOOD, "/plain"))
    seen = source_seen(office, sandbox)
    assert seen == (str(SECOND) if gateway == "second" else seen)
    assert seen != str(UPLINK)
    wanted = {ALLOWED, PEER} if gateway == "second" else {PROXIES}
    # What was captured is read a moment after it was sent.
    assert eventually(lambda: wanted <= office.capture.destinations())
    assert office.capture.destinations() - {NAMES, str(SECOND)} == wanted


@pytest.mark.parametrize(
    ("gateway", "why"),
    [
        ("gone", "the egress gateway gone is down: 51.15.0.99 is no address of this host"),
        ("nobody", "the egress gateway nobody is down: Connection refused"),
        ("wrong-socks", "the egress gateway wrong-socks does not take our credentials"),
        ("wrong-http", "the egress gateway wrong-http does not take our credentials"),
        ("other", "the egress gateway other is"),
    ],
)
def test_a_gateway_that_is_down_fails_closed(office: Lab, gateway: str, why: str) -> None:
    """Nothing leaves another way, the program is told why, and so is its owner."""
    sandbox = behind(office, gateway)
    with sandbox.connection(ALLOWED, 80, timeout=60) as plain:
        heard = asked(plain, get(GOOD, "/"))
    assert b"403 Forbidden" in heard
    assert why.encode() in heard
    assert SECRET.encode() not in heard
    event = eventually(lambda: office.told(verdict="denied", sandbox=sandbox.id))
    assert isinstance(event, list)
    assert why in event[0]["reason"]
    assert office.capture.destinations() - {NAMES} <= {PROXIES}
    assert not office.visits[ALLOWED]


def test_a_gateway_that_hangs_is_given_up(office: Lab) -> None:
    """Within its deadline, not the program's patience."""
    sandbox = behind(office, "hung")
    with office.door(PROXIES, HUNG), sandbox.connection(ALLOWED, 80, timeout=60) as plain:
        assert b"the egress gateway hung is down: it does not answer" in asked(plain, get(GOOD, "/"))
    assert not office.visits[ALLOWED]


@pytest.mark.parametrize("gateway", ["socks", "http"])
def test_a_destination_that_fails_is_not_the_gateways_failure(office: Lab, gateway: str) -> None:
    """It is told apart: the connection failed, and was not denied."""
    sandbox = behind(office, gateway)
    with contextlib.suppress(OSError), sandbox.connection(PEER, 7101) as connection:
        assert connection.recv(10) == b""
    told = eventually(lambda: office.told(verdict="failed", sandbox=sandbox.id))
    assert isinstance(told, list)
    assert re.search(
        r"the egress gateway \w+ (was refused there|failed|does not open the connection)", told[0]["reason"]
    )


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000,
        b"SSH-2.0-x\r\n\r\n\r\n\r\n",
        b"\x05\x00" * 4,
        b"",
        b"HTTP/1.1 999999 no\r\n\r\n",
    ],
    ids=["endless", "ssh", "socks", "silent", "status"],
)
def test_what_is_no_proxy_is_down(office: Lab, words: bytes) -> None:
    """Whatever answers there: no byte of it reaches the program as if it came from the server."""
    sandbox = behind(office, "hung")

    def play(door: socket.socket) -> None:
        server, _ = door.accept()
        with server, contextlib.suppress(OSError):
            server.recv(1000)
            server.sendall(words)

    with office.door(PROXIES, HUNG) as door, sandbox.connection(ALLOWED, 80, timeout=60) as plain:
        player = threading.Thread(target=play, args=(door,))
        player.start()
        heard = asked(plain, get(GOOD, "/"))
        player.join()
    assert b"403 Forbidden" in heard
    assert b"the egress gateway hung is" in heard


# -- what operators write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"kind": "ftp", "address": "10.0.0.1", "port": 1}, "kind"),
        ({"kind": "http", "address": "10.0.0.1"}, "needs a port"),
        ({"kind": "source", "address": "10.0.0.1", "port": 80}, "has no port"),
        ({"kind": "socks5", "address": "proxy.example.com", "port": 1}, "address"),
        ({"kind": "socks5", "address": "10.0.0.1", "port": True}, "port"),
        ({"kind": "socks5", "address": "10.0.0.1", "port": 1, "password": SECRET}, "credentials"),
        ({"kind": "http", "address": "10.0.0.1", "port": 1, "username": "a:b", "password": SECRET}, "credentials"),
        ({"kind": "http", "address": "10.0.0.1", "port": 1, "username": "u", "password": SECRET + "\r\nX: y"}, "plain"),
        ({"kind": "http", "address": "10.0.0.1", "port": 1, "username": "u" * 300}, "255"),
        ({"kind": "http", "address": "10.0.0.1", "port": 1, "url": "x"}, "no table of"),
        ({"kind": "http", "address": "10.0.0.1", "port": 1, "tenants": "a"}, "tenants"),
        ("http://10.0.0.1", "no table"),
    ],
)
def test_a_bad_gateway_is_refused_and_its_password_not_repeated(table: Any, why: str) -> None:
    """Before anything is served."""
    with pytest.raises(BadRequest, match=why) as refused:
        gateway_from("office", table)
    assert SECRET not in str(refused.value)
    assert SECRET not in refused.value.cause


def test_settings_name_gateways_and_who_must_use_them(tmp_path: Path) -> None:
    """A tenant pinned to one that is not there stops the server."""
    file = tmp_path / "server.toml"
    text = '[egress.gateways.office]\nkind = "source"\naddress = "51.15.0.3"\n[tenants.acme]\negress_gateway = '
    file.write_text(text + '"office"\n')
    assert read_server(str(file)).egress.ways()["office"].place == "51.15.0.3"
    file.write_text(text + '"home"\n')
    with pytest.raises(BadRequest, match=r"tenants.acme.egress_gateway 'home' is not defined"):
        read_server(str(file))
    file.write_text('[egress.gateways.Office]\nkind = "source"\naddress = "51.15.0.3"\n')
    with pytest.raises(BadRequest, match="lower-case"):
        read_server(str(file))


def test_who_may_leave_by_what() -> None:
    """The operator's word stands above the tenant's; what is not a tenant's is as if it were not there."""
    gateways = {
        "all": gateway_from("all", {"kind": "source", "address": "51.15.0.3"}),
        "acme": gateway_from("acme", {"kind": "source", "address": "51.15.0.4", "tenants": ["acme"]}),
    }
    policy = Policy(
        ceiling=lambda tenant: Ceiling(egress_gateway="all" if tenant == "pinned" else ""), gateways=gateways
    )
    assert policy.gateway("anybody", "") == {}
    assert policy.gateway("anybody", "all") == {"egress_gateway": "all"}
    assert policy.gateway("pinned", "") == {"egress_gateway": "all"}
    assert policy.gateway("acme", "acme") == {"egress_gateway": "acme"}
    with pytest.raises(BadRequest, match="must leave by the egress gateway all") as refused:
        policy.gateway("pinned", "acme")
    assert refused.value.code == "gateway_pinned"
    for name in ("acme", "none-such", "../etc"):
        with pytest.raises(BadRequest, match="no egress gateway") as refused:
            policy.gateway("anybody", name)
        assert refused.value.code == "unknown_gateway"
    with pytest.raises(BadRequest, match="web must leave by"):
        agreed("office", "home", "web")


def test_passwords_stay_where_they_are_needed() -> None:
    """The process that faces the network gets names and places; nothing prints a password."""
    settings = ServerSettings(egress=EgressSettings(gateways={"socks": TABLES["socks"]}))
    for text in (repr(settings.egress.ways()), repr(GATEWAYS)):
        assert SECRET not in text
    descriptor = handed(without_passwords(settings))
    with os.fdopen(descriptor, "rb") as file:
        text = file.read().decode()
    assert SECRET not in text
    assert "45.33.1.60" in text
    assert gateway_from("socks", gateway_to(GATEWAYS["socks"])) == GATEWAYS["socks"]
    assert isinstance(GATEWAYS["socks"], Gateway)
