"""Sandboxes that live: made, listed, extended, stopped; their processes, files, terminals, tunnels and events."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.fakeapi import FakeApi


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    """One api."""
    with FakeApi() as made:
        yield made


@pytest.fixture
def ada(api: FakeApi) -> Iterator[httpx.Client]:
    """ada's client."""
    with api.client() as client:
        yield client


@pytest.fixture
def box(ada: httpx.Client) -> Iterator[str]:
    """The path of a living sandbox."""
    answer = ada.post("/v1/sandboxes", json={"labels": {"team": "x"}, "ttl_seconds": 60})
    assert answer.status_code == 201, answer.text
    path = answer.headers["location"]
    yield path
    ada.delete(path)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


# --- life ---


def test_a_sandbox_is_shown_as_it_is(ada: httpx.Client, box: str) -> None:
    """Limits, walls, labels, expiry."""
    shown = ada.get(box).json()
    assert (shown["state"], shown["labels"], shown["layers"]) == ("running", {"team": "x"}, ["none"])
    assert shown["expires_at"] > time.time() + 50
    assert shown["usage"]["cpu_seconds"] == 0.5
    listed = ada.get("/v1/sandboxes?label=team=x&state=running").json()["sandboxes"]
    assert shown["id"] in [one["id"] for one in listed]


def test_its_expiry_is_moved(ada: httpx.Client, box: str) -> None:
    """Counted from now."""
    moved = ada.post(f"{box}/extend", json={"ttl_seconds": 600}).json()
    assert moved["expires_at"] > time.time() + 500


def test_it_is_reset_and_its_event_told(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """The same sandbox answers, and no field is taken that means nothing."""
    ada.put(f"{box}/files/content?path=f", content=b"x")
    shown = ada.post(f"{box}/reset").json()
    assert (shown["id"], shown["state"]) == (box.rpartition("/")[2], "running")
    assert code_of(ada.get(f"{box}/files/content?path=f"))[0] == 404
    assert ada.post("/v1/sandboxes/s" + "a" * 26 + "/reset").status_code == 404
    for start in ("true", ["true"], {"argv": ["true"], "detach": True}, {"program": "x"}):
        assert ada.post("/v1/sandboxes", json={"start": start}).status_code == 400


def test_a_stopped_sandbox_says_how_it_ended_and_takes_nothing(ada: httpx.Client, box: str) -> None:
    """Stopping again shows the same; using it is a conflict that says why."""
    first = ada.delete(box).json()
    assert (first["state"], first["exit"]["how"]) == ("stopped", "stopped")
    assert ada.delete(box).json()["state"] == "stopped"
    assert ada.get(box).json()["exit"]["reason"] == "stopped by its owner"
    for answer in (
        ada.post(f"{box}/processes", json={"shell": "say x"}),
        ada.post(f"{box}/processes", json={"shell": "say x", "stream": True}),
        ada.get(f"{box}/files/content?path=x"),
        ada.put(f"{box}/files/content?path=x", content=b"x"),
        ada.post(f"{box}/extend", json={"ttl_seconds": 5}),
    ):
        assert code_of(answer) == (409, "sandbox_ended")
    assert "stopped" in ada.get(f"/v1/why/{box.rpartition('/')[2]}").json()["summary"]


def test_one_that_fails_by_itself_is_marked(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """With the node's verdict when it has one, with an error when nobody knows."""
    api.loop.call_soon_threadsafe(lambda: api.node.fail(box.rpartition("/")[2], how="out_of_memory", reason="too much"))
    wait_until(lambda: ada.get(box).json()["state"] == "failed")
    assert ada.get(box).json()["exit"] == {"how": "out_of_memory", "code": None, "signal": None, "reason": "too much"}
    other = ada.post("/v1/sandboxes", json={}).json()["id"]
    api.loop.call_soon_threadsafe(lambda: api.node.fail(other, how=None, reason=""))
    wait_until(lambda: ada.get(f"/v1/sandboxes/{other}").json()["state"] == "failed")
    lost = ada.get(f"/v1/sandboxes/{other}").json()
    assert (lost["exit"], lost["error"]["code"]) == (None, "sandbox_lost")


def wait_until(check: Any) -> None:
    """Wait for something that happens beside the answer."""
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- processes ---


def test_a_process_runs_to_its_result(ada: httpx.Client, box: str) -> None:
    """By shell, by arguments, by code, with input."""
    for way in ({"shell": "say x; exit 2"}, {"argv": ["say", "x; exit 2"]}, {"code": "say x; exit 2"}):
        body = ada.post(f"{box}/processes", json=way).json()
        assert (body["stdout"], body["exit"]["code"]) == ("x\n", 2)
        assert body["pid"] > 0
    assert ada.post(f"{box}/processes", json={"shell": "echo", "stdin": "abc"}).json()["stdout"] == "abc"


def test_a_process_streams(ada: httpx.Client, box: str) -> None:
    """Its pid first, its result last."""
    answer = ada.post(f"{box}/processes", json={"shell": "say x; exit 2", "stream": True})
    got = [json.loads(line) for line in answer.text.splitlines()]
    assert [next(iter(line)) for line in got] == ["started", "stdout", "process"]
    assert got[0]["started"]["pid"] == got[-1]["process"]["pid"]


def test_a_detached_process_goes_on(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """202 with its pid; it is listed, followed, fed, resized and signalled by that."""
    answer = ada.post(f"{box}/processes", json={"shell": "hang", "detach": True, "tag": "web", "stdin_open": True})
    assert answer.status_code == 202
    pid = answer.json()["pid"]
    row = next(one for one in ada.get(f"{box}/processes").json()["processes"] if one["pid"] == pid)
    assert row["tag"] == "web"
    assert ada.post(f"{box}/processes/{pid}/input?close=true", content=b"data").status_code == 204
    assert ada.post(f"{box}/processes/{pid}/signal", json={"signal": "SIGTERM"}).status_code == 204
    assert ada.post(f"{box}/processes/{pid}/resize", json={"cols": 100, "rows": 30}).status_code == 204
    kept = api.node.sandboxes[box.rpartition("/")[2]].processes[pid]
    assert (kept["input"], kept["signalled"]) == (b"data", 15)
    output = ada.get(f"{box}/processes/{pid}/output").text.splitlines()
    assert json.loads(output[1]) == {"stdout": "the tail\n"}


def test_an_unknown_pid_is_not_found(ada: httpx.Client, box: str) -> None:
    """On every route, before any stream begins."""
    for answer in (
        ada.get(f"{box}/processes/9999/output"),
        ada.post(f"{box}/processes/9999/signal", json={"signal": 9}),
        ada.post(f"{box}/processes/9999/input", content=b"x"),
    ):
        assert code_of(answer) == (404, "guest_not_found")


# --- files ---


def test_a_file_is_written_read_moved_and_removed(ada: httpx.Client, box: str) -> None:
    """Bytes as they are, a megabyte of them."""
    data = bytes(range(256)) * 8192
    assert ada.put(f"{box}/files/content?path=d/a.bin", content=data).json() == {"path": "d/a.bin", "size": len(data)}
    answer = ada.get(f"{box}/files/content?path=d/a.bin")
    assert answer.content == data
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a.bin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ada.get(f"{box}/files/stat?path=d/a.bin").json()["size"] == len(data)
    assert ada.get(f"{box}/files?path=.&depth=3").json()["entries"][0]["path"] == "d/a.bin"
    assert ada.post(f"{box}/files/mkdir", json={"path": "e"}).status_code == 204
    assert ada.post(f"{box}/files/move", json={"source": "d/a.bin", "target": "b"}).status_code == 204
    assert ada.delete(f"{box}/files?path=b").status_code == 204
    assert code_of(ada.get(f"{box}/files/content?path=b")) == (404, "guest_not_found")


def test_an_empty_file_is_a_file(ada: httpx.Client, box: str) -> None:
    """Nothing in, nothing out."""
    assert ada.put(f"{box}/files/content?path=empty", content=b"").json()["size"] == 0
    answer = ada.get(f"{box}/files/content?path=empty")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_streamed_upload_is_not_bounded_by_memory(ada: httpx.Client, box: str) -> None:
    """More than any JSON body may be."""
    pieces = (b"x" * 65536 for _ in range(1100))
    assert ada.put(f"{box}/files/content?path=big", content=pieces).json()["size"] == 1100 * 65536


def test_an_upload_that_breaks_off_is_no_file(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """Half a body is never taken for a whole."""
    with api.raw() as connection:
        head = f"PUT {box}/files/content?path=half HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {api.ada}\r\n"
        connection.sendall(head.encode() + b"Content-Length: 100000\r\n\r\n" + b"x" * 5000)
        time.sleep(0.1)
    before = api.node.cancelled
    wait_until(lambda: api.node.cancelled >= before)
    assert ada.get(f"{box}/files/content?path=half").status_code == 404


@pytest.mark.parametrize("name", ["evil\r\nX-Evil: 1", 'a"b', "ü/é", "a;b=c"])
def test_a_files_name_cannot_write_headers(ada: httpx.Client, box: str, name: str) -> None:
    """It is quoted, whatever it holds."""
    ada.put(f"{box}/files/content", params={"path": name}, content=b"x")
    answer = ada.get(f"{box}/files/content", params={"path": name})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["content-disposition"].isascii()


def test_a_name_that_is_not_text_is_still_listed(ada: httpx.Client, box: str) -> None:
    """With a mark where the byte was."""
    assert ada.get(f"{box}/files?path=strange").json()["entries"][0]["name"] == "a?b"


def test_changes_are_told_as_they_happen(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """As server-sent events; leaving ends the watch."""
    with ada.stream("GET", f"{box}/files/watch?path=.&recursive=true") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        seen = answer.iter_lines()
        assert next(seen) == ": watching"
        with api.client() as other:
            other.put(f"{box}/files/content?path=new", content=b"x")
        event = next(line for line in seen if line.startswith("data:"))
    assert json.loads(event[5:]) == {"type": "create", "path": "new", "from": None}
    sandbox = api.node.sandboxes[box.rpartition("/")[2]]
    wait_until(lambda: not sandbox.watchers)


def test_an_agent_that_never_answers_is_given_up(ada: httpx.Client, box: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be in a hostile program's hands; the sandbox is called lost, the request ends."""
    monkeypatch.setattr("ringfence.engine.sandboxes.ANSWER_SECONDS", 0.2)
    for answer in (ada.get(f"{box}/files/stat?path=mute"), ada.get(f"{box}/files/content?path=mute")):
        assert code_of(answer) == (502, "sandbox_lost")


# --- websockets ---


def dial(api: FakeApi, path: str) -> ClientConnection:
    """A WebSocket as ada."""
    return connect(f"ws://127.0.0.1:{api.port}{path}", additional_headers={"X-API-Key": api.ada}, open_timeout=60)


def test_a_terminal_goes_both_ways_and_ends_with_its_exit(api: FakeApi, box: str) -> None:
    """Binary is the terminal, text is about it."""
    with dial(api, f"{box}/terminal?cols=100&rows=30&shell=echo") as socket:
        assert "pid" in json.loads(socket.recv())["started"]
        socket.send(b"typed \xff")
        assert socket.recv() == b"typed \xff"
        socket.send(json.dumps({"resize": {"cols": 10, "rows": 5}}))
        socket.send(json.dumps({"signal": "INT"}))
        socket.send(json.dumps({"eof": True}))
        assert json.loads(socket.recv())["exit"]["how"] == "exited"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000
    program = list(api.node.sandboxes[box.rpartition("/")[2]].processes.values())[-1]["words"]
    assert program["pty"] == {"cols": 100, "rows": 30}


def test_leaving_a_terminal_ends_it(api: FakeApi, box: str) -> None:
    """The node is told."""
    before = api.node.cancelled
    with dial(api, f"{box}/terminal?shell=hang") as socket:
        socket.recv()
    wait_until(lambda: api.node.cancelled > before)


def test_attaching_shows_what_was_and_what_is(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """To a process that runs already."""
    pid = ada.post(f"{box}/processes", json={"shell": "hang", "detach": True}).json()["pid"]
    with dial(api, f"{box}/processes/{pid}/attach") as socket:
        socket.recv()
        assert socket.recv() == b"the tail\n"
        assert json.loads(socket.recv())["exit"]


def send_in_pieces(socket: ClientConnection, data: bytes) -> None:
    """As a TCP client's bytes would come."""
    for at in range(0, len(data), 9000):
        socket.send(data[at : at + 9000])


def test_a_tunnel_carries_bytes_both_ways(api: FakeApi, box: str) -> None:
    """A megabyte each way, then a half-close."""
    data = b"abc" * 100_000
    with dial(api, f"{box}/tunnel/8000") as socket:
        sender = threading.Thread(target=send_in_pieces, args=(socket, data))
        sender.start()
        got = b""
        while len(got) < len(data):
            piece = socket.recv()
            got += piece if isinstance(piece, bytes) else b""
        sender.join()
        socket.send(json.dumps({"eof": True}))
        with pytest.raises(ConnectionClosed):
            socket.recv()
    assert got == data.upper()


@pytest.mark.parametrize(
    ("path", "status"),
    [("tunnel/1", 409), ("processes/9999/attach", 404), ("tunnel/0", 400), ("tunnel/70000", 400), ("nothing", 404)],
)
def test_a_websocket_that_cannot_be_is_refused_in_its_handshake(api: FakeApi, box: str, path: str, status: int) -> None:
    """With a status, not with a close right after."""
    with pytest.raises(InvalidStatus) as caught:
        dial(api, f"{box}/{path}")
    assert caught.value.response.status_code == status


@pytest.mark.parametrize(
    "message", ["not json", '{"resize": {"cols": 0, "rows": 0}}', '{"unknown": 1}', '{"signal": "NOPE"}', "[" * 50_000]
)
def test_a_bad_message_ends_the_terminal_clearly(api: FakeApi, box: str, message: str) -> None:
    """The last word says what was wrong."""
    with dial(api, f"{box}/terminal?shell=echo") as socket:
        socket.recv()
        socket.send(message)
        assert json.loads(socket.recv())["error"]["code"].startswith("bad_")


def test_a_message_too_large_ends_only_its_connection(api: FakeApi, ada: httpx.Client, box: str) -> None:
    """Two megabytes at once are not taken."""
    with dial(api, f"{box}/terminal?shell=echo") as socket:
        socket.recv()
        with contextlib.suppress(ConnectionClosed):
            socket.send(b"x" * (2 << 20))
        with pytest.raises(ConnectionClosed):
            list(iter(lambda: socket.recv(timeout=60), None))
    assert ada.get(box).json()["state"] == "running"


# --- events ---


def follow(client: httpx.Client, after: int | None, count: int) -> list[dict[str, Any]]:
    """Some events past a cursor."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found: list[dict[str, Any]] = []
    with client.stream("GET", "/v1/events", headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line[5:]))
            if len(found) == count:
                return found
    return found


def test_events_are_followed_from_a_cursor(api: FakeApi, ada: httpx.Client) -> None:
    """Nothing is missed between two connections; ids only grow; nobody else's are among them."""
    api.flush()
    start = api.store.last_event("ada")
    with api.client(api.bob) as bob:
        bob.post("/v1/runs", json={"code": "say x"})
    path = ada.post("/v1/sandboxes", json={}).headers["location"]
    run = ada.post("/v1/runs", json={"code": "say x"}).json()["id"]
    ada.delete(path)
    first = follow(ada, start, 1)
    rest = follow(ada, first[-1]["id"], 2)
    assert [one["type"] for one in first + rest] == ["sandbox.created", "run.finished", "sandbox.stopped"]
    assert rest[0]["run"] == run
    with api.client(api.bob) as bob:
        assert {one["type"] for one in follow(bob, 0, 1)} == {"run.finished"}


def test_events_arrive_live(api: FakeApi, ada: httpx.Client) -> None:
    """Without a cursor, from now on."""
    found: list[dict[str, Any]] = []

    def listen() -> None:
        with api.client() as client:
            found.extend(follow(client, None, 1))

    listener = threading.Thread(target=listen)
    listener.start()
    made: list[str] = []
    while listener.is_alive() and len(made) < 200:  # nothing tells when it has begun to listen
        made.append(ada.post("/v1/runs", json={"code": "say x"}).json()["id"])
        listener.join(0.3)
    assert [one["run"] in made for one in found] == [True]


@pytest.mark.parametrize("cursor", ["x", "-1", "9" * 30, "1.5"])
def test_a_cursor_is_a_number(ada: httpx.Client, cursor: str) -> None:
    """Or it is refused."""
    assert ada.get("/v1/events", headers={"Last-Event-ID": cursor}).status_code == 400
    assert ada.get(f"/v1/events?after={cursor}").status_code == 400


def test_the_machine_is_described(ada: httpx.Client) -> None:
    """Templates, runtimes with the layers not in force, status."""
    assert [one["name"] for one in ada.get("/v1/templates").json()["templates"]] == ["base", "other"]
    layer = ada.get("/v1/runtimes").json()["runtimes"][0]["layers"][0]
    assert layer == {"name": "seccomp", "in_force": False, "reason": "this runs nothing"}
    assert ada.get("/v1/status").json()["ready"] is True


def test_the_published_schema_names_every_route_and_refuses_unknown_fields(ada: httpx.Client) -> None:
    """What a client generator would read."""
    schema = ada.get("/openapi.json").json()
    assert len(schema["paths"]) >= 20
    assert schema["components"]["schemas"]["RunRequest"]["additionalProperties"] is False
    for methods in schema["paths"].values():
        for operation in methods.values():
            assert operation["responses"]["4XX"]
            assert operation["description"]
