"""Bad input is refused clearly, in one shape, and nothing is started for it."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ringfence.api.protocol import Clocks
from tests.support.fakeapi import FakeApi


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    """One api for all of these: none of them may leave it worse."""
    with FakeApi() as made:
        yield made


@pytest.fixture(scope="module")
def hasty() -> Iterator[FakeApi]:
    """One that waits a second for a body."""
    with FakeApi(body_seconds=1.0) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_started(api: FakeApi) -> Iterator[None]:
    """The node was asked for nothing, and the server still serves."""
    before = api.node.started
    yield
    assert api.node.started == before
    with api.client() as client:
        assert client.get("/health").status_code == 200


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The code of a refusal in our one shape."""
    assert answer.status_code in statuses, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "cause", "remediation"}
    assert "Traceback" not in answer.text
    return str(answer.json()["error"]["code"])


def post(api: FakeApi, body: Any, path: str = "/v1/runs", **more: Any) -> httpx.Response:
    """POST as ada."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with api.client() as client:
        return client.post(path, content=content, **more)


@pytest.mark.parametrize("value", [-1, 0, 1e308, 2**63, 10**30, "1", True, None, [], {}, "NaN"])
@pytest.mark.parametrize("name", ["memory_bytes", "cpus", "wall_seconds", "processes"])
def test_a_limit_out_of_bounds_is_refused_and_named(api: FakeApi, name: str, value: Any) -> None:
    """Nothing is clamped in silence."""
    answer = post(api, {"code": "say x", "limits": {name: value}})
    refused(answer, 400)
    assert name in answer.text or "limit" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"code": NaN}',
        b'{"code": "x", "limits": {"cpus": NaN}}',
        b'{"code": "x", "timeout": Infinity}',
        b'{"code": "x", "timeout": 1e308}',
        b"\xff\xfe\x00",
        b'{"code": "\xff"}',
        b'{"code": "\\ud800"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"limits": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"code": "x", "limits": {"cpus": ' + b"9" * 900_000 + b"}}",
        b'{"code": "x"} {"code": "y"}',
    ],
)
def test_what_is_not_the_json_of_a_run_is_refused(api: FakeApi, body: bytes) -> None:
    """Broken, bottomless, not finite, not text."""
    assert refused(post(api, body), 400) in {"bad_json", "bad_field", "bad_limit", "unknown_limit"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "x", "argv": ["y"]},
        {"code": "say x", "privileged": True},
        {"code": "say x", "limit": {}},
        {"code": "say x", "template": "nope"},
        {"code": "say x", "template": "../base"},
        {"code": "say x", "template": ""},
        {"code": "say x", "isolation": "host"},
        {"code": "say x", "limits": {"memory": 1}},
        {"code": "say x", "labels": {"ringfence.run": "x"}},
        {"code": "say x", "labels": {"a b": "x"}},
        {"code": "say x", "labels": {str(n): "x" for n in range(100)}},
        {"code": "say x", "env": {"A=": "x"}},
        {"code": "say x", "cwd": "../../etc"},
        {"code": "say x", "files": {"../x": "y"}},
        {"code": "say x", "files": {"a\0b": "y"}},
        {"code": "say x", "files": {"": "y"}},
        {"code": "say x", "collect": ["a/../../b"]},
        {"code": "say x", "user": "daemon"},
        {"argv": []},
        {"argv": ["a\0"]},
    ],
)
def test_a_run_that_cannot_be_is_refused(api: FakeApi, body: dict[str, Any]) -> None:
    """Unknown fields, templates and runtimes, and whatever points outside."""
    refused(post(api, body), 400)
    refused(post(api, {**body, "stream": True}), 400)


@pytest.mark.parametrize("ttl", [0, -1, 1e308, "300", True, 86_401])
def test_a_sandbox_cannot_live_for_ever_or_for_less_than_nothing(api: FakeApi, ttl: Any) -> None:
    """Its ttl has bounds."""
    refused(post(api, {"ttl_seconds": ttl}, "/v1/sandboxes"), 400)


def test_a_program_too_large_is_refused(api: FakeApi) -> None:
    """Before a frame is sent for it: 413 with a way out."""
    assert refused(post(api, {"code": "x" * (5 << 20)}), 413) == "too_large"


@pytest.mark.parametrize("path", ["x" * 40_000, "..", "a/../../etc/passwd", "a\0b", ""])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_path_that_is_no_path_is_refused(api: FakeApi, method: str, path: str) -> None:
    """Whatever the sandbox, before anybody looks for it."""
    where = "content" if method != "DELETE" else ""
    url = f"/v1/sandboxes/{'s' + 'a' * 26}/files/{where}".rstrip("/")
    with api.client() as client:
        answer = client.request(method, url, params={"path": path}, content=b"x" if method == "PUT" else None)
    refused(answer, 413 if len(path) > 100 else 400)


def test_a_path_of_a_hundred_kilobytes_is_refused(api: FakeApi) -> None:
    """As part of an address it is not even read to its end; in a body it is too long."""
    with api.raw() as connection:
        connection.sendall(
            b"GET /v1/sandboxes/x/files?path=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert b" 200 " not in assert_closed(connection)
    body = {"path": "x" * 100_000}
    refused(post(api, body, f"/v1/sandboxes/{'s' + 'a' * 26}/files/mkdir"), 413)
    refused(post(api, {"code": "say x", "files": {"x" * 100_000: "y"}}), 413)


def test_an_endless_head_is_cut_off(api: FakeApi) -> None:
    """A head is small and comes soon, or the connection goes."""
    with api.raw() as big:
        with contextlib.suppress(ConnectionError):  # it may be refused while more of it is sent
            big.sendall(b"GET /health HTTP/1.1\r\n" + b"X: " + b"y" * 200_000)
        assert_closed(big)
    with FakeApi(clocks=Clocks(header_seconds=1, stall_seconds=60)) as hasty, hasty.raw() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert_closed(slow)


def assert_closed(connection: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:
        pass
    return got


def request(api: FakeApi, *headers: str, key: str = "", path: str = "/v1/runs") -> bytes:
    """The head of a POST, by hand."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key or api.ada}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_ten_gigabytes_are_refused_when_they_are_announced(api: FakeApi) -> None:
    """Not after they came."""
    with api.raw() as connection:
        connection.sendall(request(api, f"Content-Length: {10 * 2**30}") + b"{" + b" " * 1000)
        assert b" 413 " in assert_closed(connection)


def test_a_chunked_body_is_counted_as_it_comes(api: FakeApi) -> None:
    """Without a length there is still a bound, smaller where only little can be meant."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with api.raw() as connection:
        connection.sendall(request(api, "Transfer-Encoding: chunked", path="/v1/sandboxes"))
        try:
            for _ in range(100):
                connection.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in assert_closed(connection)


def test_a_body_shorter_than_announced_starts_nothing(api: FakeApi, hasty: FakeApi) -> None:
    """Whether the client hangs up or just waits."""
    body = json.dumps({"code": "say x"}).encode()
    with api.raw() as connection:
        connection.sendall(request(api, f"Content-Length: {len(body) + 10}") + body)
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in assert_closed(connection)
    with hasty.raw() as connection:
        connection.sendall(request(hasty, f"Content-Length: {len(body) + 10}") + body)
        assert b" 408 " in connection.recv(65536)
    assert hasty.node.started == 0


def test_a_body_longer_than_announced_is_no_second_request(api: FakeApi) -> None:
    """What is left over is not HTTP: the connection is told so and ends."""
    with api.raw() as connection:
        connection.sendall(request(api, "Content-Length: 2") + b"{}" + b"leftover leftover\r\n\r\n")
        got = assert_closed(connection)
    assert got.startswith(b"HTTP/1.1 400")
    assert b" 200 " not in got


def test_a_body_that_never_ends_is_given_up(hasty: FakeApi) -> None:
    """A byte now and then is not enough."""
    began = time.monotonic()
    with hasty.raw() as connection:
        connection.sendall(request(hasty, "Content-Length: 1000"))
        connection.settimeout(0.3)
        got = b""
        while not got and time.monotonic() - began < 60:
            connection.sendall(b" ")
            try:
                got = connection.recv(65536)
            except TimeoutError:
                continue
    assert b" 408 " in got


def test_many_large_bodies_at_once_are_bounded_together(api: FakeApi) -> None:
    """Each is within its bound; one tenant's all together must not take the machine's memory."""
    size = 60 << 20
    connections = [api.raw() for _ in range(5)]
    refusals = 0
    for connection in connections:
        try:
            connection.sendall(request(api, f"Content-Length: {size}") + b" " * (size - 1))
        except OSError:
            refusals += 1
            continue
    for connection in select.select(connections, [], [], 30)[0] if not refusals else []:
        with contextlib.suppress(OSError):
            refusals += b" 429 " in connection.recv(65536)
    for connection in connections:
        connection.close()
    assert refusals >= 1


def test_the_key_is_looked_at_before_the_body(api: FakeApi) -> None:
    """A stranger's ten gigabytes are not read."""
    with api.raw() as connection:
        connection.sendall(request(api, f"Content-Length: {10 * 2**30}", key="rf_wrong"))
        assert b" 401 " in connection.recv(65536)


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"])
def test_what_is_not_http_gets_one_answer(api: FakeApi, data: bytes) -> None:
    """In our shape, then silence."""
    with api.raw() as connection:
        connection.sendall(data)
        got = assert_closed(connection)
    assert b"bad_http" in got


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "99999999999999999999999", "1, 2"])
def test_a_length_that_is_none_is_refused(api: FakeApi, length: str) -> None:
    """The parser says no."""
    with api.raw() as connection:
        connection.sendall(request(api, f"Content-Length: {length}") + b"{}")
        assert b"HTTP/1.1 4" in assert_closed(connection)


def test_two_lengths_are_refused(api: FakeApi) -> None:
    """Nobody may disagree about where a request ends."""
    with api.raw() as connection:
        connection.sendall(request(api, "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n")
        assert b"HTTP/1.1 400" in assert_closed(connection)


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=1001", "cursor=x", "cursor=", "label=x"])
def test_a_list_is_asked_for_within_bounds(api: FakeApi, query: str) -> None:
    """Or not at all."""
    with api.client() as client:
        refused(client.get(f"/v1/runs?{query}"), 400)
        refused(client.get(f"/v1/sandboxes?{query}"), 400)


def test_unknown_routes_and_methods_have_the_same_shape(api: FakeApi) -> None:
    """404 and 405 are ours too."""
    with api.client() as client:
        assert refused(client.get("/v2/runs"), 404) == "not_found"
        assert refused(client.delete("/v1/runs"), 405) == "method_not_allowed"
        assert refused(client.get("/v1/sandboxes/../../etc/passwd"), 404) == "not_found"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\u00e9", "a b\tc"])
def test_an_idempotency_key_is_plain(api: FakeApi, key: str) -> None:
    """Printable, and not long."""
    answer = post(api, {"code": "say x"}, headers={b"Idempotency-Key": key.encode("latin-1")})
    assert refused(answer, 400) == "bad_idempotency"


def test_duplicate_names_in_json_are_tolerated_not_merged(api: FakeApi) -> None:
    """The last one counts, as everywhere; here it is a bad one."""
    refused(post(api, b'{"code": "say x", "limits": {"cpus": 1, "cpus": -1}}'), 400)


def test_base64_that_is_none_is_refused(api: FakeApi) -> None:
    """Half of it decodes to nothing."""
    good = base64.b64encode(b"xyz").decode()
    refused(post(api, {"code": "say x", "files": {"a": {"base64": good[:-1]}}}), 400)


@pytest.mark.parametrize("signal", [0, 99, "NOPE", 1.5, None])
def test_a_signal_that_is_none_is_refused(api: FakeApi, signal: Any) -> None:
    """By name or number."""
    refused(post(api, {"signal": signal}, f"/v1/sandboxes/{'s' + 'a' * 26}/processes/5/signal"), 400)
