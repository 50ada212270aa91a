"""What a published port carries: requests, bodies of any size both ways, events, WebSockets, and honest failures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import threading
import time

import msgspec
import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.edge.inside import SETTINGS, Box, EdgeApi, Program, Said, answering, ask, box, plain, read, send, until

HURRY = msgspec.structs.replace(SETTINGS, idle_seconds=0.7)


def test_a_get_is_answered_by_the_program_inside(api: EdgeApi, ada: Box) -> None:
    """Status, headers and body are the program's own."""
    with Program(answering(plain(b"hello", b"X-Mine: 1"))) as program:
        said = ask(api, ada.publish(program, public=True), "/a?b=c")
    assert (said.status, said.body, said.header("x-mine")) == (200, b"hello", "1")
    assert program.heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")


def echo(connection: socket.socket, head: bytes) -> None:
    """Answer with the body, and what the head said of it."""
    top, _, body = head.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in top.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    connection.sendall(plain(body))


def test_a_post_carries_its_body(api: EdgeApi, ada: Box) -> None:
    """Byte for byte."""
    data = os.urandom(300_000)
    with Program(echo) as program:
        said = ask(api, ada.publish(program, public=True), "/", "POST", data)
    assert said.body == data


def test_a_connection_carries_several_requests(api: EdgeApi, ada: Box) -> None:
    """Each has a tunnel of its own; pipelined ones are answered in order."""
    with Program(answering(plain(b"x"))) as program:
        host = ada.publish(program, public=True)
        before = api.inner.tunnels
        with api.open() as connection:
            one = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            connection.sendall(one + one + one)
            connection.settimeout(20)
            got = b""
            while got.count(b"\r\n\r\nx") < 3:  # by hand: a reader that looks ahead would keep the next answer
                piece = connection.recv(65536)
                assert piece, got
                got += piece
    assert api.inner.tunnels - before == 3


def test_a_chunked_body_is_passed_on_in_chunks(api: EdgeApi, ada: Box) -> None:
    """And arrives whole, without the trailers."""

    def whole(connection: socket.socket, head: bytes) -> None:
        got = head.partition(b"\r\n\r\n")[2]
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(65536)
        connection.sendall(plain(got))

    with Program(whole) as program:
        host = ada.publish(program, public=True)
        said = send(
            api,
            f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n",
        )
    assert said.body.endswith(b"0\r\n\r\n")
    assert b"abc" in said.body
    assert b"X-Trailer" not in said.body


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", b""),
    ],
)
def test_every_framing_of_an_answer_is_understood(api: EdgeApi, ada: Box, raw: bytes, body: bytes) -> None:
    """By chunks, by the connection's end, after interim answers, without a body."""
    with Program(answering(raw)) as program:
        said = ask(api, ada.publish(program, public=True))
    assert (said.body, said.whole) == (body, True)


def test_a_head_has_no_body_but_its_length(api: EdgeApi, ada: Box) -> None:
    """And the connection is good for another request."""
    with Program(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as program:
        said = ask(api, ada.publish(program, public=True), method="HEAD")
    assert (said.status, said.header("content-length"), said.body) == (200, "5", b"")


def test_a_client_of_http_1_0_is_served(api: EdgeApi, ada: Box) -> None:
    """Without chunks, by the connection's end."""
    with Program(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            said = read(connection)
    assert (said.body, said.header("transfer-encoding")) == (b"abc", "")


def test_a_client_that_expects_100_is_told_to_go_on(api: EdgeApi, ada: Box) -> None:
    """By the edge, once the program was reached; an expectation nobody knows is refused."""
    with Program(echo) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(
                f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(b"ok")
            assert read(connection).body == b"ok"
        assert b"xpect" not in program.heads[0]
        assert ask(api, host, Expect="coffee").status == 417


# --- large bodies -----------------------------------------------------------------------------------------------------

MIB = 1024 * 1024
SIZE = 50 * MIB


def test_fifty_megabytes_come_down(api: EdgeApi, ada: Box) -> None:
    """All of them, unchanged."""
    piece = os.urandom(MIB)

    def pour(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(50):
            connection.sendall(piece)

    with Program(pour) as program:
        said = ask(api, ada.publish(program, public=True))
    assert hashlib.sha256(said.body).digest() == hashlib.sha256(piece * 50).digest()


def test_fifty_megabytes_go_up(api: EdgeApi, ada: Box) -> None:
    """All of them, unchanged."""
    piece = os.urandom(MIB)

    def count(connection: socket.socket, head: bytes) -> None:
        seen, total = hashlib.sha256(), 0
        data = head.partition(b"\r\n\r\n")[2]
        while True:
            seen.update(data)
            total += len(data)
            if total == SIZE:
                break
            data = connection.recv(MIB)
        connection.sendall(plain(seen.hexdigest().encode()))

    with Program(count) as program:
        said = ask(api, ada.publish(program, public=True), method="POST", body=piece * 50)
    assert said.body.decode() == hashlib.sha256(piece * 50).hexdigest()


def test_a_slow_reader_holds_the_program_back(api: EdgeApi, ada: Box) -> None:
    """What the client does not read, the program cannot send: nobody in between holds more than windows."""
    sent = 0

    def pour(connection: socket.socket, _: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)
            sent += 65536

    with Program(pour) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(1)
            seen = -1
            while seen != sent:
                seen = sent
                time.sleep(0.7)
            assert sent < 24 * MIB  # the kernel's own buffers on four sockets are most of it


def fill(connection: socket.socket) -> int:
    """Send until nothing more is taken for a second; how much was."""
    total = 0
    with contextlib.suppress(TimeoutError):
        while total < 200 * MIB:
            total += connection.send(b"x" * 65536)
    return total


def test_a_slow_program_holds_the_client_back(api: EdgeApi, ada: Box) -> None:
    """What the program does not read, the client cannot send."""
    stop = threading.Event()
    with Program(lambda *_: stop.wait(60) and None) as program:
        host = ada.publish(program, public=True)
        with api.open(timeout=1.0) as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**9}\r\n\r\n".encode())
            total = fill(connection)
        stop.set()
    assert total < 24 * MIB


# --- streams ----------------------------------------------------------------------------------------------------------


def test_an_event_is_seen_when_it_is_sent(api: EdgeApi, ada: Box) -> None:
    """Not when the stream ends, and not when a buffer is full."""
    go = threading.Event()

    def events(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        connection.sendall(b"data: 1\n\n")
        go.wait(60)
        connection.sendall(b"data: 2\n\n")

    with Program(events) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            got = b""
            while b"data: 1" not in got:  # the program says no more until this was seen
                got += connection.recv(1000)
            go.set()
            while b"0\r\n\r\n" not in got:
                got += connection.recv(1000)
            assert b"data: 2" in got


def test_a_websocket_carries_messages_both_ways(api: EdgeApi, ada: Box) -> None:
    """Text, binary, a megabyte, and the goodbye."""

    def handler(socket_: ServerConnection) -> None:
        for message in socket_:
            socket_.send(message)

    with serve(handler, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = ada.publish(public=True)
        api.inner.inside[ada.id, 8000] = server.socket.getsockname()[1]
        raw = api.open()
        with connect(f"ws://{host}/chat", sock=raw, compression=None, max_size=2 * MIB) as client:
            client.send("hello")
            assert client.recv() == "hello"
            data = os.urandom(MIB)
            client.send(data)
            assert client.recv() == data
        server.shutdown()


def test_a_change_of_protocol_nobody_asked_for_is_none(api: EdgeApi, ada: Box) -> None:
    """101 to a plain request, or without the handshake's proof, or to h2c, opens no tunnel for whatever follows."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    with Program(answering(switching + b"Sec-WebSocket-Accept: wrong\r\n\r\n")) as program:
        host = ada.publish(program, public=True)
        asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
        for headers in ({}, {**asked, "Sec_WebSocket_Key": key}, {"Connection": "Upgrade", "Upgrade": "h2c"}):
            said = ask(api, host, **headers)
            assert (said.status, said.code) == (502, "bad_upstream")
    assert b"pgrade" not in program.heads[2]


# --- when it breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n", b""], ids=["length", "chunks", "close"]
)
def test_a_sandbox_that_dies_leaves_a_broken_answer(api: EdgeApi, ada: Box, head: bytes) -> None:
    """A client can tell half an answer from a whole one, however its end was to be told."""
    stop = threading.Event()

    def half(connection: socket.socket, _: bytes) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + (b"4\r\nhalf\r\n" if b"chunked" in head else b"half")
        )
        stop.wait(60)

    with Program(half) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            while b"half" not in connection.recv(64 * 1024, socket.MSG_PEEK):
                time.sleep(0.01)  # an answer that has not begun would end as a whole one of ours
            api.loop.call_soon_threadsafe(api.inner.lose_tunnels)
            said = read(connection)
        stop.set()
    assert not said.whole


def test_a_connection_reset_inside_is_not_an_end(api: EdgeApi, ada: Box) -> None:
    """A program that resets has not finished."""
    seen = threading.Event()

    def reset(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        seen.wait(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Program(reset) as program, api.open() as connection:
        host = ada.publish(program, public=True)
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        while b"half" not in connection.recv(64 * 1024, socket.MSG_PEEK):
            time.sleep(0.01)  # a reset takes with it what was not read yet
        seen.set()
        assert not read(connection).whole


def pausing(connection: socket.socket, _: bytes) -> None:
    """Begin an answer, and say nothing for a while."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")
    with contextlib.suppress(OSError):  # until whoever asked is gone, or what is between
        connection.settimeout(60)
        connection.recv(1)


def silent(connection: socket.socket, _: bytes) -> None:
    """Never answer."""
    with contextlib.suppress(OSError):
        connection.settimeout(60)
        connection.recv(1)


def first_bytes(connection: socket.socket) -> None:
    """Read until an answer's body has begun."""
    got = b""
    while not got.partition(b"\r\n\r\n")[2]:
        piece = connection.recv(1000)
        assert piece, got
        got += piece


def drained(connection: socket.socket) -> str:
    """Read to the end; which kind of end it was."""
    try:
        while connection.recv(1000):
            continue
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_a_stopped_sandbox_cuts_what_is_under_way_and_is_published_no_more(api: EdgeApi) -> None:
    """At once, and the name says nothing of what was there."""
    with box(api) as mine, Program(pausing) as program:
        host = mine.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            first_bytes(connection)
            mine.client.delete(f"/v1/sandboxes/{mine.id}")
            assert drained(connection) == "reset"
        assert (ask(api, host).status, ask(api, host).code) == (404, "not_published")


@pytest.mark.parametrize(("end", "status", "code"), [("node", 503, "node_lost"), ("sandbox", 502, "sandbox_lost")])
def test_what_broke_before_an_answer_is_named(end: str, status: int, code: str) -> None:
    """Our own failures are not the program's: its client is told which it was."""
    stop = threading.Event()
    with EdgeApi() as api, box(api) as mine, Program(lambda *_: stop.wait(60) and None) as program:
        host = mine.publish(program, public=True)

        def die() -> None:
            until(lambda: program.heads)
            if end == "node":
                asyncio.run_coroutine_threadsafe(api.node.stop(), api.loop)
            else:
                api.loop.call_soon_threadsafe(api.inner.lose_tunnels)

        dying = threading.Thread(target=die)
        dying.start()
        said = ask(api, host)
        stop.set()
        dying.join(60)
        assert (said.status, said.code) == (status, code)
        if end == "node":
            (api.place / "node.sock").unlink(missing_ok=True)
            api.do(api.node.start(api.place / "node.sock"))
            api.do(api.engine.node.wait_up(60))


def test_a_client_that_leaves_ends_the_tunnel(api: EdgeApi, ada: Box) -> None:
    """An event stream nobody listens to costs nothing."""
    with Program(pausing) as program:
        host = ada.publish(program, public=True)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            connection.recv(1000)
            assert api.inner.live
        until(lambda: not api.inner.live)


@pytest.mark.parametrize(
    "raw",
    [
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"",
    ],
)
def test_an_answer_that_is_not_http_is_the_programs_fault(api: EdgeApi, ada: Box, raw: bytes) -> None:
    """A hostile program's bytes never reach the client as something else than an answer."""
    with Program(answering(raw)) as program:
        said = ask(api, ada.publish(program, public=True))
    assert (said.status, said.code) == (502, "bad_upstream")


# --- readiness --------------------------------------------------------------------------------------------------------


def test_a_request_waits_for_the_port_to_accept(api: EdgeApi, ada: Box) -> None:
    """A server that needs a second to start loses no request."""
    host = ada.publish(public=True, wait_seconds=60)
    before = api.inner.tunnels
    late: list[Program] = []

    def start() -> None:
        late.append(Program(answering(plain(b"up"))))
        ada.lead(late[0])

    said: list[Said] = []
    threads = [threading.Thread(target=lambda: said.append(ask(api, host))) for _ in range(10)]
    for thread in threads:
        thread.start()
    until(lambda: api.inner.tunnels >= before + 10)  # all have tried in vain at least once, or one often
    start()
    for thread in threads:
        thread.join(60)
    assert [one.body for one in said] == [b"up"] * 10
    late[0].close()


def test_a_port_where_nothing_listens_says_so(api: EdgeApi, ada: Box) -> None:
    """After the wait that was asked for, as JSON or as a page, with what to do."""
    host = ada.publish(port=9, public=True, wait_seconds=0.5)
    began = time.monotonic()
    said = ask(api, host)
    assert time.monotonic() - began > 0.4
    assert (said.status, said.code) == (502, "port_not_listening")
    assert b"nothing listens on port 9 inside the sandbox; waited 0.5 s" in said.body
    page = ask(api, host, Accept="text/html,*/*")
    assert page.header("content-type").startswith("text/html")
    assert b"nothing listens on port 9" in page.body
    assert "default-src 'none'" in page.header("content-security-policy")


def test_a_program_that_never_answers_is_given_up() -> None:
    """With 504, when it was quiet for as long as the operator allows."""
    with EdgeApi(HURRY) as api, box(api) as mine, Program(silent) as program:
        said = ask(api, mine.publish(program, public=True))
        assert (said.status, said.code) == (504, "upstream_timeout")


def test_a_stream_that_falls_silent_is_broken_off() -> None:
    """Its client is told by a broken connection, not by an end."""
    with EdgeApi(HURRY) as api, box(api) as mine, Program(pausing) as program:
        assert not begun(api, mine.publish(program, public=True)).whole


def begun(api: EdgeApi, host: str) -> Said:
    """An answer of the program, whatever became of it; on a busy machine the clock may run out before it began."""
    return next(said for said in (ask(api, host) for _ in range(20)) if said.code != "upstream_timeout")


def test_no_answer_goes_on_for_ever() -> None:
    """However lively it is, it is broken off after the time in all."""

    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(600):  # a minute, if it is let
            connection.sendall(b"x")
            time.sleep(0.1)

    short = msgspec.structs.replace(SETTINGS, total_seconds=1.5)
    with EdgeApi(short) as api, box(api) as mine, Program(drip) as program:
        said = begun(api, mine.publish(program, public=True))
        assert not said.whole
