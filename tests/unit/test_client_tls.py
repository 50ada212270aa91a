"""The synchronous WebSocket over TLS, against a real server: read by one thread while another writes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.client import connect

from ringfence.client._sync.link import Link
from ringfence.client.errors import Unreachable
from ringfence.client.links import LinkSpec
from ringfence.edge.authority import Authority
from tests.support.tls import trusting

MESSAGES = 20
SIZE = 50_000  # bytes: some records of TLS each
SAID, PIECE = 160, 65_536  # ten megabytes: more than a connection holds


class Crowded(ssl.SSLObject):
    """TLS that takes its time, and sees whether somebody else comes in meanwhile."""

    inside = 0
    most = 0

    def _alone(self, work: Any, *args: Any) -> Any:
        self.inside += 1
        Crowded.most = max(Crowded.most, self.inside)
        time.sleep(0.002)
        try:
            return work(*args)
        finally:
            self.inside -= 1

    def read(self, *args: Any) -> Any:
        """See SSLObject."""
        return self._alone(super().read, *args)

    def write(self, data: Any) -> int:
        """See SSLObject."""
        written: int = self._alone(super().write, data)
        return written


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of our own."""
    made = Authority(tmp_path_factory.mktemp("ca"), "sbx.test")
    made.ensure()
    return made


async def talk(line: ServerConnection) -> None:
    """Say something nobody asked for; between the words return what comes, and leave when told so."""

    async def chatter() -> None:
        for number in range(MESSAGES):
            await line.send(number.to_bytes(2) * SIZE)

    chattering = asyncio.create_task(chatter())
    async for message in line:
        if message == "leave":
            line.transport.abort()
            break
        await line.send(f"{len(message)}")
    chattering.cancel()


async def serving(context: ssl.SSLContext, told: list[int], ready: threading.Event, over: asyncio.Event) -> None:
    """Until it is over."""
    async with serve(talk, "127.0.0.1", 0, ssl=context) as server:
        told.append(server.sockets[0].getsockname()[1])
        ready.set()
        await over.wait()


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    """Where it listens."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server, authority.server_key)
    told: list[int] = []
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serving(context, told, ready, over),))
    thread.start()
    assert ready.wait(60)
    yield told[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(60)
    loop.close()


@pytest.fixture
def spec(port: int, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> LinkSpec:
    """A link to it that is trusted as users have theirs trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    return LinkSpec(f"wss://localhost:{port}/", {}, None)


def conversation(link: Link) -> None:
    """Send while it talks; everything comes, whole and in order."""
    for size in range(MESSAGES):
        link.send(b"x" * (size * SIZE))
    heard = [link.receive(60) for _ in range(2 * MESSAGES)]
    assert [data for data in heard if isinstance(data, bytes)] == [
        number.to_bytes(2) * SIZE for number in range(MESSAGES)
    ]
    assert [data for data in heard if isinstance(data, str)] == [f"{size * SIZE}" for size in range(MESSAGES)]


def test_both_directions_pass_at_once(spec: LinkSpec) -> None:
    """A hundred and sixty megabytes in all, over eight connections beside each other."""

    def one(_: int) -> None:
        link = Link.open(spec, 60)
        conversation(link)
        link.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))


def test_openssl_never_meets_two_threads(port: int, authority: Authority) -> None:
    """Not when a server's first words arrive while ours are written, nor at any time after."""
    context = trusting(authority.certificate)
    context.sslobject_class = Crowded
    with connect(f"wss://localhost:{port}/", ssl=context, proxy=None, max_size=None) as line:
        for _ in range(MESSAGES):
            line.send(b"x" * SIZE)
        for _ in range(2 * MESSAGES):
            line.recv(60)
    assert Crowded.most == 1


@pytest.mark.timeout(120)
def test_the_reader_never_waits_for_an_end_that_does_not_read(authority: Authority) -> None:
    """It says all it has to say before it reads a word, while ours fill what the kernel holds. Of sixteen, each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server, authority.server_key)

    def stubborn(listener: socket.socket) -> None:
        with context.wrap_socket(listener.accept()[0], server_side=True) as line:
            line.settimeout(30)
            for _ in range(SAID):
                line.sendall(b"y" * PIECE)
            heard = 0
            while heard < SAID * PIECE:
                heard += len(line.recv(PIECE))

    def one(_: int) -> None:
        ours = trusting(authority.certificate)
        ours.sslobject_class = Crowded
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
            server = pool.submit(stubborn, listener)
            with socket.create_connection(listener.getsockname(), 30) as raw:
                line = ours.wrap_socket(raw, server_hostname="localhost")
                writing, heard = pool.submit(line.sendall, b"x" * (SAID * PIECE)), 0
                while heard < SAID * PIECE:
                    heard += len(line.recv(PIECE))
                writing.result(30)
                server.result(30)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))


def test_its_goodbye_is_heard(spec: LinkSpec) -> None:
    """The end of TLS that comes in one piece with the last words is an end: nobody waits for more until a deadline."""
    for _ in range(20):
        link = Link.open(spec, 60)
        link.send("hello")
        for _ in range(MESSAGES + 1):
            link.receive(60)
        before = time.monotonic()
        link.close()
        assert time.monotonic() - before < 9  # the library's own patience is ten


def test_a_stranger_s_certificate_is_refused(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of an authority that nobody trusts."""
    other = Authority(tmp_path / "other", "sbx.test")
    other.ensure()
    monkeypatch.setenv("SSL_CERT_FILE", str(other.certificate))
    with pytest.raises(Unreachable, match="certificate"):
        Link.open(LinkSpec(f"wss://localhost:{port}/", {}, None), 60)


def test_a_certificate_of_another_name_is_refused(spec: LinkSpec) -> None:
    """It was made for localhost, and not for this address."""
    with pytest.raises(Unreachable, match=r"127\.0\.0\.2"):
        Link.open(LinkSpec(spec.url.replace("localhost", "127.0.0.2"), {}, None), 60)


def test_a_server_that_hangs_up_is_told_as_lost(spec: LinkSpec) -> None:
    """Without a word of TLS or of WebSocket, as one does that was killed."""
    link = Link.open(spec, 60)
    link.send("leave")
    with pytest.raises(Unreachable, match="lost the connection"):
        list(iter(lambda: link.receive(60), None))
