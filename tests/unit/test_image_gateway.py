"""The way out of the job that fetches: what it sees of this machine, and whom it can speak to."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.egress import DEFAULT_FLOOR, Floor
from ringfence.domain.errors import PlatformFault
from ringfence.templates import pulled
from ringfence.templates.image import fetch, gateway, jobs
from ringfence.templates.image.access import Access, Bounds
from ringfence.templates.image.fetch import Fetcher
from ringfence.templates.image.gateway import Gateway, doors
from ringfence.templates.image.reference import parse

LOOK = """
import ctypes, json, os, socket
def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"
libc = ctypes.CDLL(None)
print(json.dumps({
    "top": sorted(os.listdir("/")), "etc": sorted(os.listdir("/etc")), "folder": sorted(os.listdir(".")),
    "interfaces": [name for _, name in socket.if_nameindex()], "uid": os.getuid(), "pid": os.getpid(),
    "env": dict(os.environ),
    "fds": sorted(int(n) for n in range(64) if tried(lambda: os.fstat(n)) == "done"),
    "new privileges": libc.prctl(38 + 1, 0, 0, 0, 0), "chroot": tried(lambda: os.chroot("/")),
    "groups": os.getgroups(), "usr": tried(lambda: open("/usr/x", "w")), "etc/x": tried(lambda: open("/etc/x", "w")),
    "own": tried(lambda: open("/folder/x", "w")), "out": tried(lambda: socket.create_connection(("8.8.8.8", 53), 2)),
    "metadata": tried(lambda: socket.create_connection(("169.254.169.254", 80), 2)),
}))
"""  # fmt: skip


class _Server:
    """Answers every connection with what it was sent, and counts them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                data = connection.recv(65536)
                if data == b"stop":
                    return
                self.heard.append(data)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data)

    def close(self) -> None:
        """End it."""
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"stop")
        self.thread.join()
        self.listener.close()


@pytest.fixture
def server() -> Iterator[_Server]:
    """Something on this machine's loopback."""
    running = _Server()
    yield running
    running.close()


def asked(access: Access, question: bytes, more: bytes = b"", most: int = 1 << 20) -> tuple[bytes, Gateway]:
    """What the gateway answers at its proxy's door."""

    async def ask() -> tuple[bytes, Gateway]:
        gateway = Gateway(access, most)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        await gateway.serve([listener])
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(question)
            answer = b""
            if more:
                answer = await reader.readuntil(b"\r\n\r\n")
                writer.write(more)
            writer.write_eof()
            answer += await asyncio.wait_for(reader.read(), 60)
            writer.close()
        finally:
            await gateway.close()
        return answer, gateway

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "place",
    [
        "127.0.0.1:{port}", "localhost:{port}", "0.0.0.0:{port}", "[::1]:{port}", "[::ffff:127.0.0.1]:{port}",
        "127.1:{port}", "0x7f000001:{port}", "2130706433:{port}", "10.0.0.1:80", "169.254.169.254:80", "[fe80::1]:80",
        "192.168.0.1:443",
    ],
)  # fmt: skip
def test_nobody_private_is_spoken_to(server: _Server, place: str) -> None:
    """Judged by the address that a name or a spelling leads to; named afterwards."""
    where = place.format(port=server.port)
    answer, gateway = asked(Access(), f"CONNECT {where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 502"))
    assert gateway.denied or gateway.unreachable
    assert server.heard == []


def test_a_name_with_one_private_address_among_public_ones_is_refused(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever answers for the name could make any of them the one that is used."""

    async def both(*_args: object, **_more: object) -> list[Any]:
        return [(2, 1, 6, "", ("8.8.8.8", server.port)), (2, 1, 6, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", both)
    answer, gateway = asked(Access(), f"CONNECT registry.example:{server.port} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403")
    assert gateway.denied == [f"registry.example:{server.port}"]


@pytest.mark.parametrize(
    ("place", "floor"),
    [
        ("8.8.8.8:22", DEFAULT_FLOOR),
        ("8.8.8.8:80", DEFAULT_FLOOR),
        ("8.8.8.8:443", Floor(closed=(IPv4Network("8.8.8.0/24"),))),
        ("168.63.129.16:443", DEFAULT_FLOOR),
        ("registry.internal:443", DEFAULT_FLOOR),
        ("8.8.4.4:443", DEFAULT_FLOOR),
    ],
)
def test_a_tenant_s_image_comes_from_port_443_above_the_operator_s_floor(
    place: str, floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never from this host's own address, public though it may be: here that is the last."""
    monkeypatch.setattr(gateway, "own", lambda address: str(address) == "8.8.4.4")
    answer, seen = asked(Access(floor=floor), f"CONNECT {place} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403")
    assert seen.denied == [place]


def test_what_the_operator_names_is_above_the_floor_for_its_own_images_alone(server: _Server) -> None:
    """Whatever its port and address."""
    where = f"127.0.0.1:{server.port}"
    question = f"CONNECT {where} HTTP/1.1\r\n\r\n".encode()
    assert asked(Access(allow=(where,), floor=DEFAULT_FLOOR), question, b"hello")[0].startswith(b"HTTP/1.1 200")
    assert asked(Access(allow=("127.0.0.1:1",), floor=DEFAULT_FLOOR), question)[0].startswith(b"HTTP/1.1 403")
    job = {"allow": [where, "http://10.0.0.1:5000"], "username": "", "password": "", "bounds": {}}
    job["floor"] = {"closed": [], "opened": [], "names": []}
    assert pulled._access(job, parse("registry.example/x")).allow == ()
    assert pulled._access(job, parse("10.0.0.1:5000/x", frozenset({"10.0.0.1:5000"}))).allow == (
        "http://10.0.0.1:5000",
    )


def test_an_allowed_registry_is_tunnelled_to(server: _Server) -> None:
    """Only at the port that is allowed, if one is."""
    where = f"127.0.0.1:{server.port}"
    answer, gateway = asked(Access(allow=(where,)), f"CONNECT {where} HTTP/1.1\r\n\r\n".encode(), b"hello")
    assert answer.endswith(b"hello")
    assert gateway.received == len(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
    answer, _ = asked(Access(allow=("127.0.0.1:1",)), f"CONNECT {where} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403")


def test_plain_http_is_for_registries_that_the_operator_said_so_of(server: _Server) -> None:
    """A registry with TLS cannot send anybody to one without."""
    where = f"127.0.0.1:{server.port}"
    question = (
        f"GET http://{where}/v2/?a=b HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: x\r\nAccept: y\r\n\r\n".encode()
    )
    answer, gateway = asked(Access(allow=(where,)), question)
    assert answer.startswith(b"HTTP/1.1 403")
    assert gateway.denied == [where]
    answer, _ = asked(Access(allow=(f"http://{where}",)), question)
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.heard == [
        f"GET /v2/?a=b HTTP/1.1\r\nHost: {where}\r\nAccept: y\r\nConnection: close\r\n\r\n".encode()
    ]


@pytest.mark.parametrize(
    "question",
    [
        b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT x HTTP/9\r\n\r\n", b"CONNECT a b c\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"CONNECT ../etc:80 HTTP/1.1\r\n\r\n", b"CONNECT x:99999 HTTP/1.1\r\n\r\n", b"CONNECT :80 HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_question_is_answered_with_no(question: bytes) -> None:
    """The job's own client would never ask so."""
    answer, _ = asked(Access(), question)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 502"))


def test_more_bytes_than_the_image_may_have_end_the_connection(server: _Server) -> None:
    """Counted over all connections together."""
    where = f"127.0.0.1:{server.port}"
    question = f"CONNECT {where} HTTP/1.1\r\n\r\n".encode()
    _, gateway = asked(Access(allow=(where,)), question, b"x" * 5000, most=1000)
    assert gateway.exhausted


def test_each_allowed_loopback_registry_has_a_door_and_no_other() -> None:
    """Clients never ask a proxy for the loopback: these ports exist inside the job."""
    access = Access(
        allow=("127.0.0.1:5000", "http://localhost:5001", "http://127.0.0.1", "registry.example:5002", "10.0.0.1:1")
    )
    assert doors(access) == {5000: "127.0.0.1", 5001: "localhost", 80: "127.0.0.1"}


def test_the_job_that_fetches_sees_programs_and_certificates_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that a registry has taken over finds nothing of this machine, and nobody to tell."""
    monkeypatch.setattr(fetch, "skopeo", lambda: "/usr/bin/python3")
    fetcher = Fetcher(parse("registry.example/x"), Access(), tmp_path)
    monkeypatch.setattr(
        jobs, "start", _with_words(jobs.start, ["/usr/bin/python3", "-I", "-S", "-c", LOOK])
    )  # the real job, with a program of ours in the client's place
    said = json.loads(fetcher.manifest())
    system = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr"}
    assert set(said["top"]) - system == {"auth.json", "dev", "etc", "folder"}
    assert set(said["etc"]) <= {"hosts", "nsswitch.conf", "passwd", "ssl", "ca-certificates", "pki", "crypto-policies"}
    assert said["folder"] == ["certificates"]
    assert said["interfaces"] == ["lo"]
    assert (said["uid"], said["pid"], said["fds"], said["new privileges"]) == (0, 1, [0, 1, 2], 1)
    assert said["groups"] in ([], [65534]) or os.geteuid() != 0
    assert (said["chroot"], said["usr"], said["etc/x"], said["own"]) == (
        "PermissionError",
        "OSError",
        "OSError",
        "done",
    )
    assert said["out"] == said["metadata"] == "OSError"
    assert set(said["env"]) <= {*fetcher._environment(), "LC_CTYPE"}


def _with_words(start: Any, words: list[str]) -> Any:
    def started(*args: Any, **more: Any) -> Any:
        return start(*args, **{**more, "argv": words})

    return started


def test_a_job_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing."""
    monkeypatch.setattr(jobs, "start", _with_words(jobs.start, ["/usr/bin/none"]))
    with pytest.raises(PlatformFault, match="No such file") as caught:
        Fetcher(parse("registry.example/x"), Access(bounds=Bounds(ask_seconds=5)), tmp_path).manifest()
    assert caught.value.code == "image_job_refused"
    assert os.listdir(tmp_path) == []
