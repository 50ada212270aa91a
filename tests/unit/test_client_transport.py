"""The transport against a small real server that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ringfence import Client, Sandbox
from ringfence.client import DeadlineExceeded, Unreachable
from ringfence.domain.errors import Forbidden, NotFound, Unauthenticated

Act = Callable[[socket.socket, bytes], None]
RUN = (
    b'{"id":"r1","state":"finished","template":"base","created_at":1,"exit":{"how":"exited","code":0},"stdout":"42\\n"}'
)
SANDBOX = b'{"id":"s1","template":"base","state":"running","created_at":1}'


def answer(status: int, body: bytes, kind: str = "application/json") -> Act:
    """Answer with a status and a body."""

    def act(connection: socket.socket, _request: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(head.encode() + body)

    return act


def hang_up(_connection: socket.socket, _request: bytes) -> None:
    """Close without a word."""


def fall_silent(_connection: socket.socket, _request: bytes) -> None:
    """Take the request and never answer within the test's deadlines."""
    time.sleep(1.5)


def tell(*events: bytes, after: float = 0.0) -> Act:
    """Begin a stream of events after a while, and then have no more of them until the client leaves."""

    def act(connection: socket.socket, _request: bytes) -> None:
        time.sleep(after)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(events))
        with contextlib.suppress(OSError):
            connection.recv(1)

    return act


def stream(*lines: bytes) -> Act:
    """Answer with lines and then hang up."""
    return answer(200, b"".join(line + b"\n" for line in lines), "application/x-ndjson")


class Server:
    """A listener that plays one act per connection and remembers what it was asked."""

    def __init__(self, *acts: Act) -> None:
        self.requests: list[bytes] = []
        self._acts = list(acts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for act in self._acts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = _read(connection)
                self.requests.append(request)
                act(connection, request)

    def close(self) -> None:
        """Stop."""
        self._listener.close()


def _read(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def playing(*acts: Act) -> Iterator[tuple[Server, Client]]:
    """A server that plays these acts, and a client of it."""
    server = Server(*acts)
    try:
        with Client(server.url, "rf_key", timeout=60) as client:
            yield server, client
    finally:
        server.close()


def key_of(request: bytes) -> bytes:
    """The idempotency key a request carried."""
    lines = [line for line in request.split(b"\r\n") if line.lower().startswith(b"idempotency-key:")]
    return lines[0]


def test_a_run_is_repeated_after_a_broken_connection_with_the_same_key() -> None:
    """The repeat can be told from a second run, so the program runs once."""
    with playing(hang_up, answer(200, RUN)) as (server, client):
        assert client.run("print(42)").stdout == "42\n"
    assert key_of(server.requests[0]) == key_of(server.requests[1])


def test_a_process_is_not_repeated_after_a_broken_connection() -> None:
    """The program may have run; only the caller can decide to run it again."""
    with playing(answer(200, SANDBOX), hang_up, answer(200, b"{}")) as (server, client):
        place = Sandbox.connect("s1", client=client)
        with pytest.raises(Unreachable, match="lost the connection"):
            place.run("print(42)")
    assert len(server.requests) == 2


def test_nobody_listening_is_unreachable_with_advice() -> None:
    """A connection refused is reported as such, after a second's patience."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", timeout=60) as client, pytest.raises(Unreachable) as raised:
        client.status()
    assert "ringfence serve" in raised.value.remediation


def test_a_silent_server_meets_the_deadline() -> None:
    """A call given a deadline does not wait longer for a server that never answers."""
    with playing(fall_silent) as (_, client), pytest.raises(DeadlineExceeded):
        client.status(deadline=0.2)


def test_silence_counts_once_an_answer_has_begun() -> None:
    """Who asks for what is kept gets it from a busy server too, and hears after a moment that there was no more."""
    event = b'id: 1\ndata: {"id": 1, "type": "run.finished", "time": 0}\n\n'
    with playing(tell(event, after=1.0)) as (_, client):
        assert [each.id for each in client.events("0", quiet=0.3)] == [1]


def test_the_key_is_sent_and_a_refusal_comes_back_as_its_class() -> None:
    """The header carries the key; 401 is Unauthenticated with the server's own words."""
    refusal = b'{"error":{"code":"unauthenticated","cause":"wrong key","remediation":"make one"}}'
    with playing(answer(401, refusal)) as (server, client), pytest.raises(Unauthenticated, match="wrong key") as raised:
        client.status()
    assert raised.value.remediation == "make one"
    assert b"Authorization: Bearer rf_key" in server.requests[0]


def test_a_stream_yields_chunks_and_ends_in_a_result() -> None:
    """Output comes in order, text or bytes, and the fate last."""
    acts = stream(
        b'{"started":{"id":"r1","sandbox":"s1"}}',
        b'{"stdout":"a"}',
        b'{"stderr_base64":"/w=="}',
        b'{"run":' + RUN + b"}",
    )
    with playing(acts) as (_, client):
        with client.stream_run("x") as running:
            seen = [(chunk.stream, chunk.data) for chunk in running]
        assert seen == [("stdout", b"a"), ("stderr", b"\xff")]
        assert running.started.sandbox == "s1"
        assert running.result.exit.ok


def test_a_stream_that_is_cut_is_never_a_success() -> None:
    """Output without a fate is an error: the fate is not known."""
    with playing(stream(b'{"started":{"id":"r1"}}', b'{"stdout":"a"}')) as (_, client), pytest.raises(Unreachable):
        list(client.stream_run("x"))


def test_a_fault_inside_a_stream_is_raised() -> None:
    """Our own failure midway is an error of its class, not an end of output."""
    with playing(stream(b'{"error":{"code":"not_found","cause":"gone"}}')) as (_, client), pytest.raises(NotFound):
        list(client.stream_run("x"))


def test_callbacks_hear_text_and_the_result_has_it_all() -> None:
    """Streaming to callbacks loses nothing from the result."""
    heard: list[str] = []
    acts = stream(b'{"stdout":"a"}', b'{"stdout":"b"}', b'{"stderr":"e"}', b'{"run":' + RUN + b"}")
    with playing(acts) as (_, client):
        result = client.run("x", on_stdout=heard.append)
    assert heard == ["a", "b"]
    assert (result.stdout, result.stderr) == ("ab", "e")


def test_events_resume_after_a_broken_connection_from_the_last_one_seen() -> None:
    """Nothing is lost and nothing is told twice when the stream breaks."""

    def event(number: int) -> bytes:
        return b'id: %d\ndata: {"id":%d,"type":"t","time":1}\n\n' % (number, number)

    acts = [answer(200, event(1), "text/event-stream"), answer(200, event(2), "text/event-stream"), tell()]
    with playing(*acts) as (server, client):
        seen = [event.id for event in client.events(quiet=0.3)]
    assert seen == [1, 2]
    assert b"after=1" in server.requests[1]
    assert b"after=2" in server.requests[2]


def test_lists_follow_their_cursor() -> None:
    """A list is walked page by page to its end."""
    first = b'{"sandboxes":[' + SANDBOX + b'],"next_cursor":"c1"}'
    last = b'{"sandboxes":[' + SANDBOX + b"]}"
    with playing(answer(200, first), answer(200, last)) as (server, client):
        assert len(list(Sandbox.list({"a": "b"}, client=client))) == 2
    assert b"cursor=c1" in server.requests[1]
    assert b"label=a%3Db" in server.requests[1]


def test_leaving_a_created_sandbox_stops_it_and_a_connected_one_lives_on() -> None:
    """Who made it ends it; who only visited does not."""
    with playing(answer(201, SANDBOX), answer(200, SANDBOX)) as (server, client):
        with Sandbox.create(client=client):
            pass
        assert server.requests[-1].startswith(b"DELETE /v1/sandboxes/s1")
    with playing(answer(200, SANDBOX)) as (server, client):
        with Sandbox.connect("s1", client=client):
            pass
        assert len(server.requests) == 1


def test_a_sandbox_that_expired_meanwhile_does_not_spoil_the_leaving() -> None:
    """Its end was the wish; that it came sooner is no error."""
    gone = answer(404, b'{"error":{"code":"not_found","cause":"no such sandbox"}}')
    with playing(answer(201, SANDBOX), gone) as (_, client), Sandbox.create(client=client) as place:
        assert place.id == "s1"


def test_an_error_in_a_stream_of_events_is_raised() -> None:
    """A watch or an event stream that fails midway says why."""
    body = b'event: error\ndata: {"error":{"code":"forbidden","cause":"key revoked"}}\n\n'
    with playing(answer(200, body, "text/event-stream")) as (_, client), pytest.raises(Forbidden, match="key revoked"):
        list(client.events())
