"""The bench's own HTTP client."""

from __future__ import annotations

import socket
import threading

import pytest

from ringfence.bench.exchange import Connection, Target
from ringfence.domain.errors import PlatformFault

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42"


def served(listener: socket.socket, *answers: bytes) -> threading.Thread:
    """One connection for each answer, closed behind it."""

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_connection_the_server_let_go_of_is_made_again() -> None:
    """Servers hang up on who is quiet for long; on a machine that stands still that is anybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = served(listener, ANSWER, ANSWER)
        with Connection(Target("127.0.0.1", listener.getsockname()[1], "key")) as connection:
            assert connection.ask("GET", "/") == 42
            while connection._socket.recv(1, socket.MSG_PEEK):  # until it has hung up
                pass
            assert connection.ask("GET", "/") == 42
        thread.join(60)


def test_an_answer_that_breaks_off_is_a_fault() -> None:
    """Half an answer is none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = served(listener, ANSWER[:-1])
        target = Target("127.0.0.1", listener.getsockname()[1], "key")
        with Connection(target) as connection, pytest.raises(PlatformFault, match="hung up"):
            connection.ask("GET", "/")
        thread.join(60)
