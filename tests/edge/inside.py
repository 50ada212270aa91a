"""The real api and edge over a fake node whose sandboxes' ports lead to real servers of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import httpx

from ringfence.api.app import make_app
from ringfence.api.handover import given_to
from ringfence.api.protocol import Clocks
from ringfence.api.server import make_server
from ringfence.config import EdgeSettings
from ringfence.edge.listening import listen
from ringfence.edge.server import Edge, Pairs
from ringfence.engine.engine import Engine
from ringfence.guest import frames
from ringfence.store.sqlite import SqliteStore
from tests.support.fakeapi import FakeApi
from tests.support.fakenode import FakeNode, FakeSandbox, GuestRefusal, Stream
from tests.support.served import free_port

# Far longer than anything takes here, however busy the machine; tests of these clocks set their own.
SETTINGS = EdgeSettings(port=0, header_seconds=60, stall_seconds=60, idle_seconds=60, total_seconds=100)


class InsideNode(FakeNode):
    """A node whose tunnels lead to real sockets: `inside` maps (sandbox, port) to a port of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: dict[tuple[str, int], int] = {}
        self.tunnels = 0
        self.live: set[Stream] = set()

    async def op_tunnel(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        """Both ways, with half-closes and credit, as the agent does it."""
        port = self.inside.get((sandbox.id, words["port"]))
        self.tunnels += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port or 1)
        except OSError:
            raise GuestRefusal("not_listening") from None
        taken = stream.heard

        def heard(frame: frames.Frame) -> None:
            if frame.type == frames.STDIN:
                stream.stdin.put_nowait(frame.payload)  # credit is given when it was written on
            else:
                taken(frame)

        stream.heard = heard  # type: ignore[method-assign]
        stream.control({"started": {}})
        self.live.add(stream)
        rising = asyncio.create_task(self._rise(stream, writer))
        try:
            while data := await reader.read(65536):
                await stream.out(data)
            stream.send(frames.EOF)
            await rising
            self._done(stream)
        except OSError:
            stream.end({}, json.dumps({"error": {"code": "io", "cause": "reset"}}).encode())
        finally:
            self.live.discard(stream)
            rising.cancel()
            writer.close()

    @staticmethod
    async def _rise(stream: Stream, writer: asyncio.StreamWriter) -> None:
        while (piece := await stream.stdin.get()) is not None:
            writer.write(piece)
            with contextlib.suppress(OSError):
                await writer.drain()
            stream.connection.write(frames.credit(stream.id, len(piece)))
        writer.write_eof()

    def lose_tunnels(self) -> None:
        """Every tunnel ends as those of a sandbox that died."""
        error = {"code": "sandbox_lost", "cause": "the sandbox vanished", "remediation": "", "status": 502}
        for stream in list(self.live):
            stream.end({"error": error})
            if stream.task is not None:
                stream.task.cancel()


class EdgeApi(FakeApi):
    """A FakeApi that also serves published ports."""

    def __init__(
        self, settings: EdgeSettings = SETTINGS, certificates: Pairs | None = None, clocks: Clocks | None = None
    ) -> None:
        self.settings = settings
        self.certificates = certificates
        self.edge_port = free_port()  # kept over restarts, so it must not be one that a connection may be given
        super().__init__(clocks=clocks)

    @property
    def inner(self) -> InsideNode:
        """The node, as what it is."""
        assert isinstance(self.node, InsideNode)
        return self.node

    def start_api(self) -> None:
        """See FakeApi; the edge keeps its port over a restart, as the server's parent would have it."""
        if not isinstance(self.node, InsideNode):
            self.do(self.node.stop())
            (self.place / "node.sock").unlink(missing_ok=True)
            self.node = InsideNode()
            self.do(self.node.start(self.place / "node.sock"))
        self.store = SqliteStore(self.database)
        self.store.start()
        self.engine = Engine(self.place / "node.sock", self.store, self._policy)
        self.edge = Edge(self.engine, self.store, self.settings)
        hosts = [f"api.{self.settings.domain}"] if self.settings.serve_api else []
        app = make_app(
            self.engine,
            self.store,
            version="test",
            hosts=hosts,
            body_seconds=self._body_seconds,
            published=self.edge.ports,
        )
        self._server = make_server(app, self.engine.stopping, self._clocks, drain_seconds=2)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        edge_listener = listen(EdgeSettings(port=self.edge_port), 0)
        self.edge_port = edge_listener.getsockname()[1]
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(edge_listener), self.loop)
        self.do(self.engine.node.wait_up(60))
        while not self._server.started:
            time.sleep(0.005)

    async def _serve(self, edge_listener: socket.socket) -> None:
        async with self.edge.serving(edge_listener, api=given_to(self._server), certificates=self.certificates):
            await self._server.serve(sockets=[self.listener])

    def open(self, timeout: float = 60) -> socket.socket:
        """A bare connection to the edge."""
        return socket.create_connection(("127.0.0.1", self.edge_port), timeout=timeout)


@dataclass
class Said:
    """An answer of the edge, as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool = True

    def header(self, name: str) -> str:
        """One header's value; empty when it is absent."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def code(self) -> str:
        """The code of a refusal by the edge."""
        return self.header("x-ringfence-error")


def send(api: EdgeApi, data: bytes) -> Said:
    """Send bytes as they are; the first answer."""
    with api.open() as connection:
        connection.sendall(data)
        return read(connection)


def read(connection: socket.socket, method: str = "GET") -> Said:
    """One answer from a connection."""
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    try:
        body, whole = answer.read(), True
    except (http.client.IncompleteRead, ConnectionResetError) as error:
        body, whole = getattr(error, "partial", b""), False
    return Said(answer.status, answer.getheaders(), body, whole)


def ask(
    api: EdgeApi, host: str, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str
) -> Said:
    """An ordinary request; header names are given with underscores."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    with api.open() as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return read(connection, method)


Handler = Callable[[socket.socket, bytes], None]


class Program:
    """A server inside a sandbox: reads one request's head, then does what the test says. Remembers every head."""

    def __init__(self, handler: Handler) -> None:
        self.heads: list[bytes] = []
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            self.heads.append(head)
            self._handler(connection, head)

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def until(check: Callable[[], object]) -> None:
    """Wait for something that happens beside."""
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answering(data: bytes) -> Handler:
    """A program that always says this."""
    return lambda connection, _: connection.sendall(data)


def plain(text: bytes, *headers: bytes) -> bytes:
    """A whole answer."""
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(text), *headers]) + b"\r\n\r\n" + text


@dataclass
class Box:
    """A sandbox of the fake node, with a client of its owner."""

    api: EdgeApi
    client: httpx.Client
    id: str

    def publish(self, program: Program | None = None, port: int = 8000, **how: Any) -> str:
        """Publish a port that leads to a program; its Host, with the edge's port."""
        if program is not None:
            self.lead(program, port)
        answer = self.client.post(f"/v1/sandboxes/{self.id}/ports", json={"port": port, **how})
        assert answer.status_code == 201, answer.text
        url: str = answer.json()["url"]
        return url.removeprefix("http://")

    def lead(self, program: Program, port: int = 8000) -> None:
        """Have a port inside lead to a program."""
        self.api.inner.inside[self.id, port] = program.port

    def link(self, port: int = 8000, **how: Any) -> dict[str, Any]:
        """A link to a published port."""
        answer = self.client.post(f"/v1/sandboxes/{self.id}/ports/{port}/links", json=how)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made


@contextlib.contextmanager
def box(api: EdgeApi, key: str = "") -> Iterator[Box]:
    """A living sandbox, ada's unless told otherwise."""
    with api.client(key) as client:
        made = client.post("/v1/sandboxes", json={"ttl_seconds": 120}).json()["id"]
        try:
            yield Box(api, client, made)
        finally:
            with api.client(key) as last:  # the api may have been started anew
                last.delete(f"/v1/sandboxes/{made}")
