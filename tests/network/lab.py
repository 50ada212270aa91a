"""A small internet for tests: namespaces with real servers in them, a host that has an uplink, and sandboxes.

Nothing here can reach the real one: no namespace has a way out but to another of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from ringfence.domain.egress import Floor, Policy, policy_from
from ringfence.guest import syscalls as sc
from ringfence.network import netlink, rules
from ringfence.network.network import Network

T = TypeVar("T")
NEWNET = 0x4000_0000
UPLINK = IPv4Address("51.15.0.2")  # the host's one address
BEYOND = IPv4Address("51.15.0.1")
ALLOWED, FORBIDDEN, PEER = "45.33.1.10", "45.33.1.20", "45.33.1.30"
NAMES = "45.33.1.53"
METADATA = "169.254.169.254"
INTRANET = "10.20.30.40"
FAR = (ALLOWED, FORBIDDEN, PEER, NAMES, METADATA, INTRANET)


def needed() -> None:
    """Skip where these tests cannot run; on CI they must."""
    lacking = "" if os.geteuid() == 0 else "needs root"
    lacking = lacking or ("" if os.access(rules.NFT, os.X_OK) else "needs nftables")
    lacking = lacking or ("" if shutil.which("openssl") else "needs openssl")
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)


class Namespace:
    """A network namespace, as one thread that lives in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.tid = self.run(self._unshare)

    def _unshare(self) -> int:
        sc.execute(sc.call("unshare", NEWNET))
        if self.name in {"host", "internet"}:  # they say nothing of their own accord
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        with netlink.Netlink() as link:
            link.do([netlink.up(1)])
        return threading.get_native_id()

    def run(self, call: Callable[[], T]) -> T:
        """Do something in it."""
        return self._thread.submit(call).result(150)

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Do something in it for long."""
        return self._thread.submit(call)

    def configure(self, *requests: netlink.Request) -> None:
        """Routing netlink, in it."""

        def do() -> None:
            with netlink.Netlink() as link:
                link.do(requests)

        self.run(do)

    def command(self, *argv: str) -> str:
        """A program, in it."""
        return self.run(lambda: subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False).stdout)

    def close(self) -> None:
        """Leave it; with its last socket it is gone."""
        self._thread.shutdown()


def connect(here: Namespace, there: Namespace, addresses: tuple[IPv4Address, IPv4Address]) -> None:
    """A wire between two namespaces."""
    with open(f"/proc/{there.tid}/ns/net") as target:
        ends = (
            netlink.End("up0", 50, bytes.fromhex("02aa00000001")),
            netlink.End("to0", 50, bytes.fromhex("02aa00000002")),
        )
        here.configure(netlink.wire(*ends, target.fileno()))
    for space, own, other in ((here, *addresses), (there, *reversed(addresses))):
        space.configure(netlink.own_address(50, own), netlink.up(50), netlink.neighbour_route(50, other, own))


class Site(http.server.BaseHTTPRequestHandler):
    """Says which host it was asked for, at which address."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str]]
    pages: ClassVar[dict[str, bytes]] = {}  # what is said instead, at some paths

    def do_GET(self) -> None:
        """Any page."""
        self.seen.append((self.command, str(self.headers["host"]), self.path))
        size = int(self.headers.get("content-length") or 0)
        body = f"{self.connection.getsockname()[0]} {self.path} {size}:".encode() + self.rfile.read(size)
        body = self.pages.get(self.path, body)
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    """A web server on a socket that was made elsewhere."""

    daemon_threads = True

    def __init__(self, door: socket.socket, seen: list[tuple[str, str, str]], tls: ssl.SSLContext | None) -> None:
        handler = type("Handler", (Site,), {"seen": seen})
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = tls.wrap_socket(door, server_side=True, do_handshake_on_connect=False) if tls else door
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Quiet."""


def dns_name(data: bytes, at: int) -> tuple[str, int]:
    """A plain name in a message."""
    labels = []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    return ".".join(labels), at + 1


class Names:
    """A name server whose answers are a table; a list of lists answers differently each time."""

    def __init__(self, door: socket.socket, stream: socket.socket) -> None:
        self.table: dict[str, list[list[str]]] = {}
        self.aliases: dict[str, str] = {}
        self.asked: list[str] = []
        self.truncate = False
        self.ttl = 5
        self.forge: Callable[[bytes, bytes], list[bytes]] = lambda _, answer: [answer]
        self._door, self._stream, self._open = door, stream, True
        for each in (door, stream):
            each.settimeout(0.2)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._serve_streams)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._open = False
        for thread in self._threads:
            thread.join(5)
        self._door.close()
        self._stream.close()

    def _serve(self) -> None:
        while self._open:
            with contextlib.suppress(TimeoutError):
                data, peer = self._door.recvfrom(4096)
                for answer in self.forge(data, self.answer(data, stream=False)):
                    self._door.sendto(answer, peer)

    def _serve_streams(self) -> None:
        while self._open:
            with contextlib.suppress(OSError, IndexError):
                asker, _ = self._stream.accept()
                with asker:
                    size = int.from_bytes(asker.recv(2), "big")
                    answer = self.answer(asker.recv(size), stream=True)
                    asker.sendall(len(answer).to_bytes(2, "big") + answer)

    def answer(self, data: bytes, *, stream: bool) -> bytes:
        """The answer by the table."""
        name, end = dns_name(data, 12)
        self.asked.append(name)
        if self.truncate and not stream:
            return data[:2] + struct.pack(">HHHHH", 0x8380, 1, 0, 0, 0) + data[12 : end + 4]
        records, count, real = b"", 0, name.lower()
        if real in self.aliases:
            target = b"".join(bytes([len(x)]) + x.encode() for x in self.aliases[real].split(".")) + b"\0"
            records += struct.pack(">HHHIH", 0xC00C, 5, 1, self.ttl, len(target)) + target
            pointer, count, real = end + 4 + 12, 1, self.aliases[real]
        else:
            pointer = 12
        turns = self.table.get(real, [])
        addresses = turns.pop(0) if len(turns) > 1 else turns[0] if turns else []
        for address in addresses:
            packed = socket.inet_aton(address)
            records += struct.pack(">HHHIH", 0xC000 | pointer, 1, 1, self.ttl, 4) + packed
        code = 0 if real in self.table else 3
        header = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, count + len(addresses), 0, 0)
        return header + data[12 : end + 4] + records


class Capture:
    """Every frame on an interface, by a packet socket of its own: what left, left."""

    def __init__(self, space: Namespace, interface: str) -> None:
        self._frames: list[bytes] = []
        self._lock = threading.Lock()

        def listening() -> socket.socket:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            if interface:  # else every one there is, and will be
                packets.bind((interface, 3))
            packets.setblocking(False)
            return packets

        self._socket = space.run(listening)
        self._open = True
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while self._open:
            select.select([self._socket], [], [], 0.1)
            self._take()

    def _take(self) -> None:
        """What waits in the socket was there: whoever looks or clears does not depend on when our thread runs."""
        with self._lock, contextlib.suppress(BlockingIOError):
            while True:
                self._frames.append(self._socket.recv(65_535))

    @property
    def frames(self) -> list[bytes]:
        """All of them so far."""
        self._take()
        return list(self._frames)

    def destinations(self) -> set[str]:
        """protocol and address of every IP packet in it; other kinds of frame by their number, but for ARP."""
        found = set()
        for frame in self.frames:
            kind = int.from_bytes(frame[12:14], "big")
            if kind == 0x0800:
                for at in (26, 30):
                    found.add(socket.inet_ntoa(frame[at : at + 4]))
            elif kind != 0x0806:
                found.add(f"frame {kind:#06x}")
        return found - {str(UPLINK), str(BEYOND)}

    def clear(self) -> None:
        """Forget what was seen."""
        self._take()
        self._frames.clear()

    def close(self) -> None:
        """Stop listening."""
        self._open = False
        self._thread.join(60)
        self._socket.close()


class Sandbox:
    """What a sandbox is to the network: a namespace of its own, with a wire or without."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.id = name
        self.space = Namespace(name)
        self._lab = lab

    def wire(self, policy: object, floor: Floor | None = None) -> None:
        """Lay its wire, and give it its policy."""
        self._lab.do(self._lab.network.attach(self.id, self.space.tid))
        self.allow(policy, floor)

    def allow(self, policy: object, floor: Floor | None = None) -> None:
        """Change its policy."""
        checked = policy if isinstance(policy, Policy) else policy_from(policy, floor or self._lab.floor)
        self._lab.do(self._lab.network.set(self.id, checked))

    @property
    def address(self) -> str:
        """Its own address."""
        return str(self._lab.network._router.address_of(self.id))

    def connection(self, address: str, port: int, timeout: float = 30.0) -> socket.socket:
        """A connection from inside it."""
        return self.space.run(lambda: socket.create_connection((address, port), timeout))

    def resolve(self, name: str, kind: int = 1, timeout: float = 30.0, *, edns: bool = True) -> bytes:
        """Ask its resolver, as any program would."""
        labels = b"".join(bytes([len(x)]) + x.encode("latin-1") for x in name.split("."))
        query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, int(edns)) + labels + b"\0" + struct.pack(">HH", kind, 1)
        query += b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0) if edns else b""

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(timeout)
                asking.sendto(query, (str(rules.GATEWAY), 53))
                return asking.recv(4096)

        return self.space.run(ask)

    def addresses(self, name: str) -> list[str]:
        """What its resolver gives for a name."""
        data = self.resolve(name, edns=False)
        return [
            socket.inet_ntoa(data[at + 12 : at + 16])
            for at in range(len(data))
            if data[at : at + 6] == b"\xc0\x0c\0\1\0\1"
        ]

    def close(self) -> None:
        """End it."""
        self._lab.do(self._lab.network.detach(self.id))
        self.space.close()


class Lab:
    """The host, the internet, and the network under test."""

    def __init__(self, folder: Path) -> None:
        self.floor = Floor()
        self.events: list[dict[str, Any]] = []
        self.visits: dict[str, list[tuple[str, str, str]]] = {}
        self.sandboxes: list[Sandbox] = []
        self.host, self.internet = Namespace("host"), Namespace("internet")
        connect(self.host, self.internet, (UPLINK, BEYOND))
        self.host.configure(netlink.default_route(50, BEYOND))
        self.internet.configure(*(netlink.own_address(1, IPv4Address(each)) for each in FAR))
        self._servers: list[Server] = []
        self.certificate, key = folder / "cert.pem", folder / "key.pem"
        self._certify(key)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self.certificate, key)
        for address in (ALLOWED, FORBIDDEN, PEER, METADATA, INTRANET):
            self.visits[address] = []
            for port in (80, 443, 8080):
                self.serve(address, port)
        self.names = self.internet.run(self._name_server)
        self.capture = Capture(self.host, "up0")
        self.inner = Capture(self.host, "lo")  # what reaches the host's own services, whatever address was meant
        self._loop: asyncio.AbstractEventLoop = self.host.run(asyncio.new_event_loop)
        self._running = self.host.start(self._loop.run_forever)
        self.network = self.do(self._opened())

    async def _opened(self) -> Network:
        network = Network(floor=self.floor, resolvers=((NAMES, 53),), roots=str(self.certificate))
        network.on_event(self.events.append)
        await network.open()
        return network

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the node would: on the host's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(150)

    def _certify(self, key: Path) -> None:
        words = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        hosts = ("good.example.com", "evil.example.net", "*.wild.example.com", "pypi.org", "files.pythonhosted.org")
        names = "subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts)
        subprocess.run(
            ["openssl", "req", *words, "-subj", "/CN=test", "-addext", names, "-keyout", key, "-out", self.certificate],
            check=True,
            capture_output=True,
        )

    def serve(self, address: str, port: int) -> None:
        """A web server, over TLS at 443."""
        door = self.internet.run(lambda: socket.create_server((address, port), backlog=64))
        self._servers.append(Server(door, self.visits[address], self._tls if port == 443 else None))

    def door(self, address: str, port: int) -> socket.socket:
        """A listening socket in the internet, to play a server by hand."""
        return self.internet.run(lambda: socket.create_server((address, port), backlog=64))

    def _name_server(self) -> Names:
        door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        door.bind((NAMES, 53))
        names = Names(door, socket.create_server((NAMES, 53)))
        names.table = {
            "good.example.com": [[ALLOWED]],
            "evil.example.net": [[FORBIDDEN]],
            "peer.example.com": [[PEER]],
            "a.wild.example.com": [[ALLOWED]],
            "inside.example.com": [[INTRANET]],
            "meta.example.com": [[METADATA]],
        }
        return names

    def sandbox(self, name: str, policy: object = None) -> Sandbox:
        """A new one; with a policy, also a wire."""
        made = Sandbox(self, name)
        self.sandboxes.append(made)
        if policy is not None:
            made.wire(policy)
        return made

    def told(self, **wanted: object) -> list[dict[str, Any]]:
        """Events of this kind."""
        return [event for event in list(self.events) if all(event.get(key) == value for key, value in wanted.items())]

    def close(self) -> None:
        """End everything."""
        for sandbox in self.sandboxes:
            sandbox.close()
        self.do(self.network.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._running.result(150)
        self.host.run(self._loop.close)
        self.capture.close()
        self.inner.close()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self.names.close()
        self.host.close()
        self.internet.close()


def tls_client(lab: Lab, sandbox: Sandbox, address: str, name: str | None, port: int = 443) -> ssl.SSLSocket:
    """A TLS connection from inside, to an address, for a name."""
    context = ssl.create_default_context(cafile=str(lab.certificate))
    if name is None:
        context.check_hostname = False
    return context.wrap_socket(sandbox.connection(address, port), server_hostname=name)


def asked(connection: socket.socket, request: bytes) -> bytes:
    """Send a request, and read until the other side is done."""
    connection.sendall(request)
    return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """All that comes; a reset is the bytes' end marked as such."""
    data = b""
    try:
        while more := connection.recv(65_536):
            data += more
    except ConnectionResetError:
        data += b"<reset>"
    return data


def get(host: str, path: str = "/", method: str = "GET", extra: str = "") -> bytes:
    """A plain request."""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Lab]:
    """A lab, and its end."""
    needed()
    lab = Lab(folder)
    try:
        yield lab
    finally:
        lab.close()
