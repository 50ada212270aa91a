"""Hosts that are sent secrets: they keep what they were sent, and give it back when asked to."""

from __future__ import annotations

import socket
import ssl
from ipaddress import IPv4Address
from typing import Any

from ringfence.domain.egress import policy_from
from ringfence.domain.secrets import PREFIX, Held, Part, Place, Trust, with_hosts
from ringfence.network import netlink
from ringfence.network.opener.authority import make_authority
from tests.network.lab import Lab, Sandbox, Server, Site, everything

API, OTHER, UNTRUSTED = "api.wild.example.com", "other.wild.example.com", "untrusted.example.org"
AT = {API: "45.33.1.40", OTHER: "45.33.1.41", UNTRUSTED: "45.33.1.42"}
VALUE = "sk-live-Q7vXk2nB9wLpR4tZ8mYc3dHs"  # the canary of these tests
AUTHORITY = make_authority()


class Sent:
    """One request as a host got it."""

    def __init__(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method, self.target, self.headers, self.body = method, target, headers, body

    def header(self, name: str) -> str | None:
        """Its one header of this name."""
        found = [value for each, value in self.headers if each.lower() == name]
        return found[0] if len(found) == 1 else None


class Api(Site):
    """Keeps every request; answers /echo with all of it, and whatever a test put under a path."""

    kept: list[Sent]

    def do_GET(self) -> None:  # noqa: N802 - the standard library's word
        """Any request."""
        body = self._body()
        self.kept.append(Sent(self.command, self.path, list(self.headers.items()), body))
        answer = b"ok"
        if self.path.startswith("/echo"):
            answer = f"{self.command} {self.path}\n{self.headers}\n".encode() + body
        self.send_response(200)
        if self.path.startswith("/echo"):
            self.send_header("x-echo", str(self.headers.get("authorization")))
        if self.path.endswith("chunks"):  # cut so that nothing stays in one piece
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for at in range(0, len(answer), 7):
                piece = answer[at : at + 7]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            size = int(self.headers.get("content-length") or 0)
            whole = self.rfile.read(size)
            if len(whole) < size:  # broken off: no request that a host would act on
                raise ConnectionError
            return whole
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


class Hosts:
    """The hosts, in a lab's internet."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.kept: dict[str, list[Sent]] = {}
        self._servers = []
        for name, address in AT.items():
            lab.internet.configure(netlink.own_address(1, IPv4Address(address)))
            lab.names.table[name] = [[address]]
            kept = self.kept[name] = []
            for port in (80, 443):
                door = lab.internet.run(lambda a=address, p=port: socket.create_server((a, p), backlog=64))  # type: ignore[misc]
                server = Server(door, [], lab._tls if port == 443 else None)
                server.RequestHandlerClass = type("Api_", (Api,), {"kept": kept, "seen": []})
                self._servers.append(server)

    def close(self) -> None:
        """End them."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


def held(name: str = "api", *places: str, hosts: tuple[str, ...] = (API,), value: str = VALUE, number: int = 1) -> Held:
    """A secret with a placeholder that a test can know; places as `header authorization`, `query key`, `body`."""
    made = []
    for text in places or ("header authorization",):
        part, _, rest = text.partition(" ")
        made.append(Place(Part(part), rest))
    return Held(name, hosts, tuple(made), f"{PREFIX}{number:032x}", value)


def entrusted(lab: Lab, sandbox: Sandbox, *secrets: Held, policy: Any = (), tenant: str = "a") -> None:
    """Give a sandbox its secrets, and with them the way to their hosts."""
    trust = Trust(secrets, AUTHORITY)
    if lab.network._router.address_of(sandbox.id) is None:
        lab.do(lab.network.attach(sandbox.id, sandbox.space.tid))
    lab.do(lab.network.entrust(sandbox.id, tenant, trust))
    sandbox.allow(with_hosts(policy_from(list(policy), lab.floor), trust))


def inside(sandbox: Sandbox, host: str, authority: str = AUTHORITY.certificate) -> ssl.SSLSocket:
    """A TLS connection of a program inside, which trusts its tenant's authority and no other."""
    context = ssl.create_default_context(cadata=authority)
    sandbox.addresses(host)
    return context.wrap_socket(sandbox.connection(AT[host], 443, 10.0), server_hostname=host)


def request(sandbox: Sandbox, host: str, text: bytes, authority: str = AUTHORITY.certificate) -> bytes:
    """One request, and all that comes back."""
    with inside(sandbox, host, authority) as connection:
        connection.sendall(text)
        return everything(connection)
