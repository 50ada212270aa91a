"""The load generator and its HTTP, against a tiny server on this machine."""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.bench.exchange import Answer, Connection, Target, parse
from ringfence.bench.load import Generator, Load, always
from ringfence.domain.errors import PlatformFault

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"a": 1}'
CHUNKED = b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"


class Tiny(socketserver.ThreadingTCPServer):
    """Gives the same bytes for every request; hangs up after so many on one connection."""

    daemon_threads = True
    answer = PLAIN
    hang_up_after = 10**9
    requests = 0


class Handler(socketserver.BaseRequestHandler):
    """One connection."""

    server: Tiny

    def handle(self) -> None:
        """Answer each head; no request here has a body."""
        buffer = b""
        for _ in range(self.server.hang_up_after):
            while b"\r\n\r\n" not in buffer:
                piece = self.request.recv(4096)
                if not piece:
                    return
                buffer += piece
            buffer = buffer.partition(b"\r\n\r\n")[2]
            self.server.requests += 1
            self.request.sendall(self.server.answer)


@contextlib.contextmanager
def tiny(answer: bytes = PLAIN, hang_up_after: int = 10**9) -> Iterator[tuple[Tiny, Target]]:
    """A tiny server and the way to it."""
    with Tiny(("127.0.0.1", 0), Handler) as server:
        server.answer, server.hang_up_after = answer, hang_up_after
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server, Target("127.0.0.1", server.server_address[1], "rf_none")
        finally:
            server.shutdown()


def drive(target: Target, connections: int, seconds: float = 1.0) -> Load:
    """A short load whose only right answer is PLAIN's."""
    request = target.request("GET", "/")
    orders = always(request, lambda answer: answer == Answer(200, b'{"a": 1}'))
    return Generator(target, orders).drive(connections, seconds)


@pytest.mark.parametrize("whole", [PLAIN, CHUNKED, REFUSED])
def test_an_answer_is_there_only_when_it_is_whole(whole: bytes) -> None:
    """Every part of an answer is not yet one; what follows it is left alone."""
    assert all(parse(whole[:at]) is None for at in range(len(whole)))
    found = parse(whole + b"HTTP/1.1 2")
    assert found is not None
    assert found[1] == len(whole)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_chunks_are_put_together(chunks: list[bytes]) -> None:
    """However a streamed answer was cut, its body is the same."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    found = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert found is not None
    assert found[0] == Answer(200, b"".join(chunks))


def test_a_request_says_what_it_must() -> None:
    """The key, the length and the body are where the server looks for them."""
    request = Target.of("http://127.0.0.1:81", "rf_k").request("POST", "/v1/runs", {"code": "1"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/runs HTTP/1.1\r\nhost: 127.0.0.1:81\r\nauthorization: Bearer rf_k\r\n")
    assert (body, b"content-length: 12" in head) == (b'{"code":"1"}', True)


def test_one_connection_is_kept() -> None:
    """Requests follow each other on the same connection, and the first sight of a marker is timed."""
    with tiny(CHUNKED) as (_, target), Connection(target) as connection:
        request = target.request("GET", "/")
        for _ in range(3):
            answer, whole, first = connection.timed(request, b"abc")
            assert answer == Answer(202, b"abc0123456789")
            assert first is not None
            assert 0 < first <= whole


def test_a_refusal_is_told_in_its_own_words() -> None:
    """An answer that is no success is an error, with what the server said."""
    with (
        tiny(REFUSED) as (_, target),
        Connection(target) as connection,
        pytest.raises(PlatformFault, match="503: busy"),
    ):
        connection.ask("GET", "/")


def test_every_right_answer_is_counted() -> None:
    """The server saw exactly as many requests as the load counts runs, early or late."""
    with tiny() as (server, target):
        load = drive(target, 4)
        assert (load.runs + load.late, load.failures) == (server.requests, 0)
        assert load.latency is not None
        assert load.latency.n == load.runs > 0
        assert load.per_second == round(load.runs / 1.0, 1)


def test_a_wrong_answer_is_a_failure() -> None:
    """A refusal counts against the server, and its words are kept."""
    with tiny(REFUSED) as (server, target):
        load = drive(target, 2)
        assert (load.runs, load.failures) == (0, server.requests)
        assert load.reasons[0] == "503: busy"


def test_each_request_has_its_own_right_answer() -> None:
    """Where every request is another, an answer counts only if it is the answer to that very one."""
    with tiny() as (server, target):
        request = target.request("GET", "/")
        turns = itertools.cycle([b'{"a": 1}', b"another's"])

        def orders() -> tuple[bytes, Callable[[Answer], bool]]:
            body = next(turns)
            return request, lambda answer: answer.body == body

        load = Generator(target, orders).drive(1, 1.0)
        assert load.failures + load.runs + load.late == server.requests
        assert abs(load.failures - load.runs - load.late) <= 1


def test_a_server_that_hangs_up_fails_and_is_tried_again() -> None:
    """A broken connection is one failure and is replaced; the load goes on."""
    with tiny(hang_up_after=3) as (server, target):
        load = drive(target, 2)
        assert load.failures > 0
        assert load.runs + load.late == server.requests > 6
