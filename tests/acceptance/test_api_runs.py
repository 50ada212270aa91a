"""One-shot runs over HTTP: results, streams, repeats, quotas and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ringfence.api.protocol import Clocks
from ringfence.engine.policy import Ceiling, Policy
from tests.support.fakeapi import FakeApi


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    """One api with small bounds."""
    policy = Policy(
        wait_seconds=30,
        collected_bytes=200_000,
        ceiling=lambda tenant: Ceiling(max_runs=3, max_sandboxes=3, max_requests=20) if tenant == "bob" else Ceiling(),
    )
    with FakeApi(policy) as made:
        yield made


@pytest.fixture
def ada(api: FakeApi) -> Iterator[httpx.Client]:
    """ada's client."""
    with api.client() as client:
        yield client


def run(client: httpx.Client, code: str, **more: Any) -> dict[str, Any]:
    """A run's answer."""
    answer = client.post("/v1/runs", json={"code": code, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def lines(client: httpx.Client, code: str, **more: Any) -> list[dict[str, Any]]:
    """A streamed run's lines."""
    answer = client.post("/v1/runs", json={"code": code, "stream": True, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def eventually(check: Callable[[], bool]) -> None:
    """Wait for something that happens beside the answer."""
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_answers_with_all_of_its_fate(ada: httpx.Client) -> None:
    """Output, exit, timings, usage; a failing program is a result, not an error."""
    body = run(ada, "say hello; warn oops; exit 3", labels={"team": "x"})
    assert (body["stdout"], body["stderr"], body["state"]) == ("hello\n", "oops\n", "finished")
    assert body["exit"] == {"how": "exited", "code": 3, "signal": None, "reason": ""}
    assert set(body["timings"]) == {"queue", "claim", "start", "run", "collect"}
    assert body["usage"]["source"] == "fake"
    assert body["labels"] == {"team": "x"}
    assert body["limits"]["memory_bytes"] == 512 * 1024 * 1024


@pytest.mark.parametrize(
    ("code", "how"),
    [("oom", "out_of_memory"), ("full", "disk_full"), ("capped", "output_capped"), ("crash 11", "signalled")],
)
def test_every_fate_is_a_result(ada: httpx.Client, code: str, how: str) -> None:
    """200 for whatever became of the program."""
    body = run(ada, code)
    assert body["exit"]["how"] == how
    why = ada.get(f"/v1/why/{body['id']}").json()
    assert why["summary"]
    assert why["exit"]["how"] == how


def test_a_timeout_is_the_programs_fate(ada: httpx.Client) -> None:
    """It is told as such."""
    assert run(ada, "hang", timeout=0.1)["exit"]["how"] == "timed_out"


def test_binary_output_is_base64_and_text_beside_it_is_text(ada: httpx.Client) -> None:
    """Neither is bent into the other."""
    body = run(ada, "raw fffe00; warn text")
    assert (body["stdout"], base64.b64decode(body["stdout_base64"])) == (None, b"\xff\xfe\x00")
    assert (body["stderr"], body["stderr_base64"]) == ("text\n", None)
    streamed = [line["stdout_base64"] for line in lines(ada, "raw fffe") if "stdout_base64" in line]
    assert base64.b64decode(streamed[0]) == b"\xff\xfe"


def test_more_output_than_is_kept_is_marked(ada: httpx.Client) -> None:
    """The run goes on to its end all the same."""
    body = run(ada, "flood 1048576; exit 4")
    assert (len(body["stdout"]), body["truncated"], body["exit"]["code"]) == (200_000, True, 4)


def test_input_text_and_bytes_reach_the_program(ada: httpx.Client) -> None:
    """And come back."""
    assert run(ada, "echo", stdin="héllo")["stdout"] == "héllo"
    data = bytes(range(256)) * 512
    body = run(ada, "echo", stdin={"base64": base64.b64encode(data).decode()})
    assert base64.b64decode(body["stdout_base64"]) == data


def test_files_go_in_and_out(api: FakeApi, ada: httpx.Client) -> None:
    """What cannot be collected says why; the sandbox is gone afterwards."""
    body = run(ada, "say x", files={"a.txt": "text", "b": {"base64": "/w=="}}, collect=["a.txt", "b", "none"])
    assert base64.b64decode(body["files"]["a.txt"]["base64"]) == b"text"
    assert base64.b64decode(body["files"]["b"]["base64"]) == b"\xff"
    assert body["files"]["none"]["error"]["code"] == "guest_not_found"
    eventually(lambda: body["sandbox"] not in api.node.sandboxes)
    assert ada.get("/v1/sandboxes").json()["sandboxes"] == []


def test_a_file_that_cannot_be_written_refuses_the_run(api: FakeApi, ada: httpx.Client) -> None:
    """Nothing was run, and the sandbox made for it is gone."""
    answer = ada.post("/v1/runs", json={"code": "say x", "files": {"/etc/passwd": "x"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "guest_permission")
    eventually(lambda: not api.node.sandboxes)


def test_a_stream_tells_as_it_happens(ada: httpx.Client) -> None:
    """Started, pieces in order, and last the run."""
    got = lines(ada, "say one; warn two; say three; exit 7")
    assert [next(iter(line)) for line in got] == ["started", "stdout", "stderr", "stdout", "run"]
    assert got[0]["started"]["id"] == got[-1]["run"]["id"]
    assert got[-1]["run"]["exit"]["code"] == 7
    assert got[-1]["run"]["stdout"] is None


def test_the_first_piece_does_not_wait_for_the_last(ada: httpx.Client) -> None:
    """Read while it runs."""
    body = {"code": "say early; sleep 30", "stream": True}
    with ada.stream("POST", "/v1/runs", json=body) as answer:
        seen = answer.iter_lines()
        assert "started" in next(seen)
        assert json.loads(next(seen)) == {"stdout": "early\n"}


def test_a_streamed_run_with_files_collects_too(ada: httpx.Client) -> None:
    """The last line holds them."""
    last = lines(ada, "say x", files={"f": "y"}, collect=["f"])[-1]["run"]
    assert base64.b64decode(last["files"]["f"]["base64"]) == b"y"


@pytest.mark.parametrize(("code", "status"), [("lose", 502), ("lie", 502), ("liar; hang", 200), ("chatter; hang", 502)])
def test_a_sandbox_that_breaks_is_our_fault_and_no_fate(ada: httpx.Client, code: str, status: int) -> None:
    """An error with a code; the record has an error and no exit."""
    answer = ada.post("/v1/runs", json={"code": code, "timeout": 0.3})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "sandbox_lost"
        record = ada.get("/v1/runs?limit=1").json()["runs"][0]
        assert (record["state"], record["exit"], record["error"]["code"]) == ("failed", None, "sandbox_lost")
        assert "not known" in ada.get(f"/v1/why/{record['id']}").json()["summary"]


@pytest.mark.parametrize("code", ["say x; lose", "say x; lie", "liar; hang"])
def test_a_stream_that_breaks_ends_in_an_error_line(ada: httpx.Client, code: str) -> None:
    """The status was sent; the last line says what went wrong."""
    answer = ada.post("/v1/runs", json={"code": code, "stream": True})
    last = json.loads(answer.text.splitlines()[-1])
    assert last["error"]["code"] == "sandbox_lost"


def test_no_capacity_is_told_before_a_stream_begins(api: FakeApi, ada: httpx.Client) -> None:
    """With a status, and when to try again."""
    api.node.overloaded = True
    try:
        for stream in (False, True):
            answer = ada.post("/v1/runs", json={"code": "say x", "stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
            assert answer.headers["retry-after"]
    finally:
        api.node.overloaded = False


def test_records_are_kept_without_output(ada: httpx.Client) -> None:
    """By id, by label, page by page, newest first."""
    ids = [run(ada, "say secret", labels={"batch": "b1", "n": str(n)})["id"] for n in range(5)]
    record = ada.get(f"/v1/runs/{ids[0]}").json()
    assert (record["state"], record["stdout"], record["exit"]["code"]) == ("finished", None, 0)
    seen: list[str] = []
    cursor = ""
    while True:
        page = ada.get(f"/v1/runs?label=batch=b1&limit=2{cursor}").json()
        seen += [one["id"] for one in page["runs"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ids[::-1]
    narrow = ada.get("/v1/runs?label=batch=b1&label=n=3").json()["runs"]
    assert [one["id"] for one in narrow] == [ids[3]]


# --- clients that leave, clients that do not read ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_run(api: FakeApi, ada: httpx.Client, stream: bool) -> None:
    """The node is told, and the record says stopped."""
    before, started = api.node.cancelled, api.node.started
    with api.raw() as connection:
        body = json.dumps({"code": "say x; hang", "stream": stream, "labels": {"leaves": str(stream)}}).encode()
        head = (
            f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {api.ada}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        eventually(lambda: api.engine.admission.runs("ada") == 1)
        eventually(lambda: api.node.started == started + 2)
    eventually(lambda: api.node.cancelled == before + 1)
    eventually(lambda: api.engine.admission.runs("ada") == 0)
    record = ada.get(f"/v1/runs?label=leaves={stream}").json()["runs"][0]
    assert (record["state"], record["exit"]["how"]) == ("finished", "stopped")
    assert "disconnected" in record["exit"]["reason"]


def test_a_client_that_never_reads_is_dropped_and_harms_nobody() -> None:
    """Its run is stopped after the deadline; meanwhile others are served."""
    with FakeApi(clocks=Clocks(header_seconds=60, stall_seconds=1)) as api, api.client() as ada:
        body = json.dumps({"code": "flood 1073741824", "stream": True, "labels": {"deaf": "yes"}}).encode()
        head = f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {api.ada}\r\n"
        deaf = [api.raw() for _ in range(5)]
        for connection in deaf:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert run(ada, "say fine")["stdout"] == "fine\n"
        eventually(lambda: len(ada.get("/v1/runs?label=deaf=yes").json()["runs"]) == 5)
        eventually(lambda: api.engine.admission.runs("ada") == 0)
        records = ada.get("/v1/runs?label=deaf=yes").json()["runs"]
        assert [record["exit"]["how"] for record in records] == ["stopped"] * 5
        for connection in deaf:
            connection.close()


# --- quotas ---


def test_a_tenant_gets_no_more_runs_than_its_own_maximum(api: FakeApi, ada: httpx.Client) -> None:
    """Exactly that many of a hundred at once; another tenant notices nothing."""

    refused = threading.Event()

    def one(_: int) -> int:
        body = {"code": "say x; hang", "stream": True}
        with api.client(api.bob) as client, client.stream("POST", "/v1/runs", json=body) as answer:
            if answer.status_code == 200:
                refused.wait(60)  # it has its place for as long as it is listened to
            return answer.status_code

    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(one, n) for n in range(20)]
        eventually(lambda: sum(each.done() for each in waiting) == 17)
        assert run(ada, "say fine")["stdout"] == "fine\n"
        refused.set()
        statuses = [each.result(60) for each in waiting]
    assert (statuses.count(200), statuses.count(429)) == (3, 17)
    eventually(lambda: api.engine.admission.runs("bob") == 0)
    with api.client(api.bob) as client:
        assert run(client, "say again")["stdout"] == "again\n"


def test_over_quota_says_when_to_try_again(api: FakeApi) -> None:
    """429 with Retry-After; a stopped sandbox makes room."""
    with api.client(api.bob) as client:
        made = [client.post("/v1/sandboxes", json={}).json()["id"] for _ in range(3)]
        answer = client.post("/v1/sandboxes", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "over_quota")
        assert answer.headers["retry-after"]
        assert client.delete(f"/v1/sandboxes/{made[0]}").status_code == 200
        assert client.post("/v1/sandboxes", json={}).status_code == 201
        for box in client.get("/v1/sandboxes?state=running").json()["sandboxes"]:
            client.delete(f"/v1/sandboxes/{box['id']}")


def test_one_tenants_streams_do_not_take_all_places(api: FakeApi, ada: httpx.Client) -> None:
    """Requests at once are bounded per tenant, endless ones included."""
    head = f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {api.bob}\r\n\r\n".encode()
    following = [api.raw() for _ in range(20)]
    for connection in following:
        connection.sendall(head)
    with api.client(api.bob) as bob:
        eventually(lambda: bob.get("/v1/status").status_code == 429)
        assert ada.get("/v1/status").status_code == 200
        for connection in following:
            connection.close()
        eventually(lambda: bob.get("/v1/status").status_code == 200)


# --- repeats ---


def keyed(client: httpx.Client, key: str, **body: Any) -> httpx.Response:
    """A run with an idempotency key."""
    return client.post("/v1/runs", json=body, headers={"Idempotency-Key": key})


def test_a_repeat_gets_the_first_answer(api: FakeApi, ada: httpx.Client) -> None:
    """Byte for byte, without a second execution."""
    first = keyed(ada, "k1", code="say one")
    before = api.node.started
    api.flush()
    again = keyed(ada, "k1", code="say one")
    assert (again.status_code, again.content) == (200, first.content)
    assert api.node.started == before


def test_many_at_once_are_one_execution(api: FakeApi) -> None:
    """Concurrent duplicates wait for the first."""
    before = len([ask for ask in api.node.asks if ask["verb"] == "run"])

    def one(_: int) -> bytes:
        with api.client() as client:
            return keyed(client, "k2", code="sleep 2; say x").content

    with ThreadPoolExecutor(10) as pool:
        answers = set(pool.map(one, range(10)))
    assert len(answers) == 1
    assert len([ask for ask in api.node.asks if ask["verb"] == "run"]) == before + 1


def test_a_key_means_one_request(api: FakeApi, ada: httpx.Client) -> None:
    """Another body is a conflict; another tenant's key is another key; another route too."""
    first = keyed(ada, "k3", code="say one").json()
    answer = keyed(ada, "k3", code="say two")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_mismatch")
    with api.client(api.bob) as bob:
        assert keyed(bob, "k3", code="say one").json()["id"] != first["id"]
    assert ada.post("/v1/sandboxes", json={}, headers={"Idempotency-Key": "k3"}).status_code == 201


def test_a_refusal_is_not_kept(ada: httpx.Client) -> None:
    """The same key may try again, better."""
    assert keyed(ada, "k4", code="say x", template="nope").status_code == 400
    assert keyed(ada, "k4", code="say x").status_code == 200


def test_a_run_whose_client_left_may_be_repeated(api: FakeApi, ada: httpx.Client) -> None:
    """It was stopped, so its repeat runs."""
    body = json.dumps({"code": "sleep 0.7; say done"}).encode()
    head = "POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k5\r\n"
    before = api.node.started
    with api.raw() as connection:
        more = f"X-API-Key: {api.ada}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + more.encode() + body)
        eventually(lambda: api.node.started == before + 2)
    answer = ada.post("/v1/runs", content=body, headers={"Idempotency-Key": "k5"})
    assert answer.json()["stdout"] == "done\n"


def test_a_repeated_stream_gets_the_record(api: FakeApi, ada: httpx.Client) -> None:
    """The pieces are gone, the fate is not."""
    headers, body = {"Idempotency-Key": "k6"}, {"code": "say x", "stream": True}
    first = ada.post("/v1/runs", json=body, headers=headers).text.splitlines()
    api.flush()
    again = ada.post("/v1/runs", json=body, headers=headers).text.splitlines()
    assert again == first[-1:]


def test_a_sandbox_is_made_once(api: FakeApi, ada: httpx.Client) -> None:
    """The same id and place."""
    made = [ada.post("/v1/sandboxes", json={}, headers={"Idempotency-Key": "k7"}) for _ in range(3)]
    assert {one.status_code for one in made} == {201}
    assert len({one.json()["id"] for one in made}) == len({one.headers["location"] for one in made}) == 1
    assert ada.delete(made[0].headers["location"]).status_code == 200


def test_a_thousand_runs_leave_nothing_behind(api: FakeApi) -> None:
    """No stream, no task, no place counted."""

    def some(_: int) -> None:
        with api.client() as client:
            for _ in range(50):
                run(client, "say x")

    some(0)
    tasks, sandboxes = api.do(count_tasks()), len(api.node.sandboxes)
    threads = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, range(8)))
    eventually(lambda: api.do(count_tasks()) <= tasks)
    assert threading.active_count() <= threads
    assert api.engine.admission.runs("ada") == 0
    assert len(api.node.sandboxes) == sandboxes


async def count_tasks() -> int:
    """How many tasks the server's loop has."""
    return len(asyncio.all_tasks())
