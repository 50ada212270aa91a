"""A tunnel is a TCP connection to the inside: its bytes, its two ends, and its patience."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guestharness import Host, Reply, guest


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A served channel."""
    with guest(tmp_path) as served:
        yield served


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A program inside that listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def _joined(host: Host, listener: socket.socket, **options: bool) -> tuple[Reply, socket.socket]:
    """An open tunnel and the program's end of it."""
    reply = host.open("tunnel", port=_port(listener), **options)
    reply.started()
    connection, _ = listener.accept()
    connection.settimeout(10)
    return reply, connection


def _read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(1 << 16):
        data += piece
    return bytes(data)


def _send_all(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_go_both_ways(host: Host, listener: socket.socket) -> None:
    """What is sent arrives, each way, and the stream ends when both said so."""
    reply, connection = _joined(host, listener)
    reply.send(b"question")
    assert connection.recv(100) == b"question"
    connection.sendall(b"answer")
    reply.until(lambda r: r.out == b"answer")
    reply.close_input()
    assert connection.recv(100) == b""
    connection.sendall(b", and more after the question's end")
    connection.close()
    assert reply.answer() == {}
    assert reply.eof
    assert reply.out == b"answer, and more after the question's end"


def test_the_program_may_stop_first(host: Host, listener: socket.socket) -> None:
    """A half-close by the program is told as EOF; the other way stays open."""
    reply, connection = _joined(host, listener)
    connection.shutdown(socket.SHUT_WR)
    reply.until(lambda r: r.eof)
    assert reply.end is None
    reply.send(b"still heard")
    reply.close_input()
    assert _read_all(connection) == b"still heard"
    assert reply.answer() == {}


def test_bytes_sent_before_it_is_connected_are_kept(host: Host, listener: socket.socket) -> None:
    """The opener need not wait for "started", not even with its EOF."""
    reply = host.open("tunnel", port=_port(listener))
    reply.send(b"early")
    reply.close_input()
    connection, _ = listener.accept()
    assert _read_all(connection) == b"early"
    connection.close()
    assert reply.answer() == {}


def test_megabytes_survive_both_ways_at_once(host: Host, listener: socket.socket) -> None:
    """Ten megabytes each way, at the same time, arrive unchanged."""
    data = os.urandom(10_000_000)
    got: list[bytes] = []
    reply, connection = _joined(host, listener)

    def echo() -> None:
        with connection:
            sender = threading.Thread(target=_send_all, args=(connection, data))
            sender.start()
            got.append(_read_all(connection))
            sender.join()

    program = threading.Thread(target=echo)
    program.start()
    reply.send(data)
    reply.close_input()
    assert reply.answer(60) == {}
    program.join(60)
    assert got == [data]
    assert reply.out == data


def test_an_ipv6_listener_is_found(host: Host) -> None:
    """A program that listens on ::1 only is reached too."""
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        reply = host.open("tunnel", port=_port(server))
        reply.started()
        reply.cancel()
        assert reply.answer() == {}


def test_nobody_listening_is_said(host: Host) -> None:
    """A port without a listener is refused, and costs no descriptor."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        before = _descriptors()
        assert host.ask("tunnel", port=_port(placeholder))["error"]["code"] == "not_listening"
        assert _descriptors() == before


@pytest.mark.parametrize("port", [0, -1, 65536, 1.5, "80", None, True, [80], 2**70])
def test_what_is_no_port_is_refused(host: Host, port: object) -> None:
    """Only whole numbers from 1 to 65535."""
    assert host.ask("tunnel", port=port)["error"]["code"] == "bad_request"


def test_a_program_that_does_not_read_holds_the_sender_back(host: Host, listener: socket.socket) -> None:
    """The opener's credit ends: the agent buffers one window, not a gigabyte."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reply, connection = _joined(host, listener)
    sent = 0
    while reply.credit:
        piece = reply.credit
        reply.send(b"x" * piece)
        sent += piece
        host.settle(0.3)
    assert sent < 16_000_000
    reply.close_input()
    assert len(_read_all(connection)) == sent
    connection.close()
    assert reply.answer() == {}


def test_a_reader_that_does_not_read_holds_the_program_back(host: Host, listener: socket.socket) -> None:
    """Without credit nothing more is taken from the program, and it goes on with the next grant."""
    reply, connection = _joined(host, listener, automatic=False)
    connection.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64_000_000:
            sent += connection.send(b"y" * 65536)
    assert sent < 64_000_000
    reply.until(lambda r: len(r.out) >= 256 * 1024)
    host.settle()
    assert len(reply.out) == 256 * 1024
    reply.grant(1000)
    reply.until(lambda r: len(r.out) == 256 * 1024 + 1000)
    connection.close()
    reply.grant(1 << 30)
    reply.until(lambda r: r.eof)
    assert len(reply.out) == sent
    reply.close_input()
    assert reply.answer() == {}


def test_a_reset_is_told(host: Host, listener: socket.socket) -> None:
    """A connection the program resets ends with an error, not with a clean end."""
    reply, connection = _joined(host, listener)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert reply.answer()["error"]["code"] == "io"


def test_a_program_that_closed_does_not_hang_the_sender(host: Host, listener: socket.socket) -> None:
    """Bytes for a program that is gone are dropped; the stream ends, whoever speaks first."""
    reply, connection = _joined(host, listener)
    connection.close()
    reply.until(lambda r: r.eof or r.end is not None)
    reply.send(b"z" * 3_000_000)
    reply.answer()


def test_a_cancelled_tunnel_is_closed(host: Host, listener: socket.socket) -> None:
    """CANCEL closes the program's end, whatever was still to be sent."""
    before = _descriptors()
    reply, connection = _joined(host, listener)
    reply.send(b"x" * 100_000)
    reply.cancel()
    assert reply.answer() == {}
    with connection, contextlib.suppress(ConnectionError):
        _read_all(connection)
    assert _descriptors() == before


def test_a_program_that_resets_at_once(host: Host, listener: socket.socket) -> None:
    """Connections that are reset while they are being made end with one error or the other, and nothing breaks."""
    stop = threading.Event()

    def slam() -> None:
        listener.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    program = threading.Thread(target=slam)
    program.start()
    try:
        for _ in range(300):
            reply = host.open("tunnel", port=_port(listener))
            reply.send(b"hello")
            reply.answer()
            assert reply.error in {"io", "not_listening"}
    finally:
        stop.set()
        program.join()


def test_a_listener_that_never_accepts_can_be_left(host: Host) -> None:
    """While a connection hangs in a full queue, others are served and CANCEL is obeyed."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [host.open("tunnel", port=_port(full)) for _ in range(4)]
        host.settle()
        assert any(not filler.controls for filler in fillers)
        assert "error" not in host.ask("stat", path="/")
        for filler in fillers:
            filler.cancel()
        for filler in fillers:
            assert filler.answer() == {}
