"""Attacks over the network: without a policy that allows it, nothing but the sandbox's own loopback exists."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.attacks.conftest import Box, Held, Run, output


@pytest.mark.row(86, 87, 88, 89, 94, 96, 97)
def test_nothing_outside_can_be_reached(held: Held) -> None:
    """Metadata services, the host, private ranges, resolvers, Unix sockets: all absent; and no wire can be added."""
    held("network")


@pytest.mark.row(86, 87, 88, 89, 97)
def test_nothing_outside_can_be_reached_as_root(held: Held) -> None:
    """The same as the sandbox's own root."""
    held("network-root")


@pytest.mark.row(88)
def test_two_sandboxes_cannot_talk(boxes: Callable[..., Box]) -> None:
    """A listener in one sandbox, on every address it has, does not exist in another."""
    first, second = boxes(), boxes()
    serve = "import socket, time; s = socket.create_server(('0.0.0.0', 8000)); time.sleep(60)"
    first.start({"code": serve, "detach": True})
    probe = "import socket\nfor _ in range(20):\n    print(socket.socket().connect_ex(('127.0.0.1', 8000)))"
    assert set(output(second.run(probe)).split()) == {b"111"}


@pytest.mark.row(100)
def test_a_listener_is_not_reachable_from_the_host(box: Box) -> None:
    """A program may bind port 80, and the host sees nothing of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import socket, time; kept = [socket.create_server(('', p)) for p in (80, {port})]; time.sleep(60)"
    started = box.start({"code": code, "detach": True})
    assert started.status_code == 202
    with socket.socket() as caller:
        caller.settimeout(30)
        assert caller.connect_ex(("127.0.0.1", port)) == 111


@pytest.mark.row(100)
def test_the_loopback_is_the_programs_own(run: Run) -> None:
    """Programs may serve and connect on 127.0.0.1, low ports included."""
    code = """
import socket
server = socket.create_server(("127.0.0.1", 80))
client = socket.create_connection(("127.0.0.1", 80))
server.accept()[0].send(b"hello")
print(client.recv(5).decode())
"""
    assert output(run(code)) == b"hello\n"
