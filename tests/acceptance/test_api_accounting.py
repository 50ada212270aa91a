"""Every run and every sandbox is accounted for: its own end, or the platform's fault, whatever dies when."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from ringfence import wire
from ringfence.domain.sandbox import new_id
from ringfence.engine.link import CONTROL_HELD
from ringfence.engine.policy import RUN_LABEL
from tests.support.fakeapi import FakeApi
from tests.support.fakenode import DEFAULTS, FakeSandbox, Stream


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An api of each test's own: these break it."""
    with FakeApi() as made:
        yield made


def eventually(check: Callable[[], bool]) -> None:
    """Wait for something that happens beside the answers."""
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def restart_node(api: FakeApi) -> None:
    """The node is killed and comes back with nothing."""
    api.do(api.node.stop())
    (api.place / "node.sock").unlink(missing_ok=True)
    api.do(api.node.start(api.place / "node.sock"))
    api.do(api.engine.node.wait_up(60))


def runs(api: FakeApi) -> list[wire.Run]:
    """Every record of ada's, as the API shows them."""
    with api.client() as client:
        return msgspec.json.decode(client.get("/v1/runs?limit=1000").content, type=wire.RunPage).runs


def start(api: FakeApi, pool: ThreadPoolExecutor, code: str, count: int) -> list[Future[httpx.Response]]:
    """Runs under way, each with a client that waits for it."""

    def one() -> httpx.Response:
        with api.client() as client:
            return client.post("/v1/runs", json={"code": code})

    return [pool.submit(one) for _ in range(count)]


def test_a_killed_node_fails_its_runs_and_invents_no_fate(api: FakeApi) -> None:
    """503 node_lost to whoever waits, failed in the record, and the next run works."""
    with ThreadPoolExecutor(5) as pool:
        waiting = start(api, pool, "hang", 5)
        eventually(lambda: len(api.node.sandboxes) == 5)
        restart_node(api)
        answers = [one.result(60) for one in waiting]
    assert {(one.status_code, one.json()["error"]["code"]) for one in answers} == {(503, "node_lost")}
    assert {(one.state, one.exit, one.error.code if one.error else "") for one in runs(api)} == {
        ("failed", None, "node_lost")
    }
    with api.client() as client:
        assert client.post("/v1/runs", json={"code": "say back"}).json()["stdout"] == "back\n"


def test_a_killed_node_fails_its_sandboxes(api: FakeApi) -> None:
    """What it held is gone, and says why; the quota is free again."""
    with api.client() as client:
        path = client.post("/v1/sandboxes", json={}).headers["location"]
        restart_node(api)
        eventually(lambda: client.get(path).json()["state"] != "running")
        row = client.get(path).json()
        assert (row["state"], row["exit"], row["error"]["code"]) == ("failed", None, "node_lost")
        assert client.get("/v1/status").json()["sandboxes"] == 0
        assert client.delete(path).json()["state"] == "failed"
        assert "fault" in client.get(f"/v1/why/{row['id']}").json()["summary"]


def test_a_request_waits_a_moment_for_a_node_that_comes_back(api: FakeApi) -> None:
    """And is told clearly when it does not."""
    api.do(api.node.stop())
    (api.place / "node.sock").unlink(missing_ok=True)
    with api.client() as client, ThreadPoolExecutor(1) as pool:
        answer = client.post("/v1/runs", json={"code": "say x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "node_unreachable")
        assert client.get("/health").status_code == 200
        assert client.get("/v1/status").json()["ready"] is False
        waiting = start(api, pool, "say late", 1)
        eventually(lambda: api.engine.admission.runs("ada") == 1)
        api.do(api.node.start(api.place / "node.sock"))
        assert waiting[0].result(60).json()["stdout"] == "late\n"


def test_runs_of_a_dead_api_are_failed_by_the_next(api: FakeApi) -> None:
    """Rows that nobody works on any more."""
    lost = wire.Run(id=new_id("r"), state="running", template="base", created_at=time.time())
    api.store.run_started("ada", lost)
    api.flush()
    api.stop_api()
    api.start_api()
    with api.client() as client:
        record = client.get(f"/v1/runs/{lost.id}").json()
    assert (record["state"], record["exit"], record["error"]["code"]) == ("failed", None, "api_restarted")


def test_a_stopping_api_marks_what_it_cut_off(api: FakeApi) -> None:
    """After its grace, as its own fault; the node is told to stop the program."""
    with ThreadPoolExecutor(1) as pool:
        waiting = start(api, pool, "hang", 1)
        eventually(lambda: len(api.node.sandboxes) == 1)
        api.stop_api()
        answer = waiting[0].result(60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "api_stopping")
    api.start_api()
    assert [(one.state, one.error.code if one.error else "") for one in runs(api)] == [("failed", "api_stopping")]
    assert api.node.sandboxes == {}


def test_a_stop_ends_what_would_never_end(api: FakeApi) -> None:
    """Followers of events and watches are let go in order."""
    with api.client() as client:
        path = client.post("/v1/sandboxes", json={}).headers["location"]
        with (
            client.stream("GET", "/v1/events") as events,
            client.stream("GET", f"{path}/files/watch") as watch,
        ):
            api.stop_api()
            assert [line for stream in (events, watch) for line in stream.iter_lines() if "error" in line] == []
    api.start_api()


def test_sandboxes_outlive_the_api(api: FakeApi) -> None:
    """They are found again, with their quota."""
    with api.client() as client:
        path = client.post("/v1/sandboxes", json={}).headers["location"]
    api.stop_api()
    api.start_api()
    with api.client() as client:
        assert client.get(path).json()["state"] == "running"
        assert client.get("/v1/status").json()["sandboxes"] == 1
        assert client.delete(path).json()["state"] == "stopped"


def test_what_the_node_has_and_the_store_does_not_is_adopted(api: FakeApi) -> None:
    """A sandbox whose making was never recorded appears; a dead run's own sandbox is stopped."""
    ask = {"tenant": "ada", "template": "base", "labels": {"team": "x"}, "limits": DEFAULTS}
    found = FakeSandbox(ask, 100)
    orphan = FakeSandbox({**ask, "labels": {RUN_LABEL: new_id("r")}}, 100)
    api.node.sandboxes.update({found.id: found, orphan.id: orphan})
    api.do(api.engine.ledger.reconcile())
    with api.client() as client:
        listed = client.get("/v1/sandboxes?label=team=x").json()["sandboxes"]
    assert [one["id"] for one in listed] == [found.id]
    assert list(api.node.sandboxes) == [found.id]


def test_a_sandbox_that_ended_unseen_is_marked(api: FakeApi) -> None:
    """The node no longer lists it: failed by the platform, never an invented exit."""
    with api.client() as client:
        path = client.post("/v1/sandboxes", json={}).headers["location"]
        api.node.sandboxes.clear()
        api.do(api.engine.ledger.reconcile())
        assert client.get(path).json()["error"]["code"] == "node_lost"


def test_reconciling_disturbs_nothing_that_lives(api: FakeApi) -> None:
    """A hundred times beside a hundred makings and runs: none is taken for lost."""
    with ThreadPoolExecutor(6) as pool:
        waiting = start(api, pool, "say x", 60)
        with api.client() as client:
            made = []
            for _ in range(40):
                made.append(client.post("/v1/sandboxes", json={}).headers["location"])
                api.do(api.engine.ledger.reconcile())
            assert {one.result(60).status_code for one in waiting} == {200}
            assert {client.get(path).json()["state"] for path in made} == {"running"}
            for path in made:
                client.delete(path)
            api.do(api.engine.ledger.reconcile())
            assert client.get("/v1/status").json()["sandboxes"] == 0
    assert {one.state for one in runs(api)} == {"finished"}


def test_whatever_dies_when_every_run_ends_in_one_way(api: FakeApi) -> None:
    """The node is killed again and again under load; afterwards no record is open."""
    choose = random.Random(7)
    with ThreadPoolExecutor(8) as pool:
        waiting = [start(api, pool, choose.choice(["say x", "sleep 0.2", "flood 500000"]), 1)[0] for _ in range(120)]
        for _ in range(5):
            time.sleep(0.2)
            restart_node(api)
        statuses = {one.result(60).status_code for one in waiting}
    assert statuses <= {200, 503}
    records = runs(api)
    assert len(records) == 120
    for one in records:
        assert (one.state == "finished") == (one.exit is not None)
        assert (one.state == "failed") == (one.error is not None)
    assert api.engine.admission.runs("ada") == 0


def test_more_events_than_can_be_followed_lose_no_sandbox(api: FakeApi) -> None:
    """The follower falls behind, agrees with the node, and follows on."""
    with api.client() as client:
        gone, kept = (client.post("/v1/sandboxes", json={}).json()["id"] for _ in range(2))

        async def burst() -> None:
            sandbox = api.node.sandboxes[gone]
            for _ in range(20_000):
                api.node.emit("limit", sandbox, reason="x" * 100)
            api.node.fail(gone, how=None, reason="")

        api.do(burst())
        eventually(lambda: client.get(f"/v1/sandboxes/{gone}").json()["state"] == "failed")
        eventually(lambda: len(api.node.listeners) == 1)
        api.loop.call_soon_threadsafe(lambda: api.node.fail(kept, how=None, reason=""))
        eventually(lambda: client.get(f"/v1/sandboxes/{kept}").json()["state"] == "failed")


def test_an_answer_of_a_while_ago_revives_nobody(api: FakeApi) -> None:
    """While the node stops an orphan, what it listed before may end: that is not taken for alive once more."""
    ask = {"tenant": "ada", "template": "base", "labels": {RUN_LABEL: new_id("r")}, "limits": DEFAULTS}
    orphan, asked, go, stopping = FakeSandbox(ask, 100), threading.Event(), asyncio.Event(), api.node.verb_stop

    async def slowly(stream: Stream, words: dict[str, Any], guest: bytes) -> None:
        if words["sandbox"] == orphan.id:
            asked.set()
            await go.wait()
        await stopping(stream, words, guest)

    api.node.verb_stop = slowly  # type: ignore[method-assign]
    api.node.sandboxes[orphan.id] = orphan
    with api.client() as client:
        path = client.post("/v1/sandboxes", json={}).headers["location"]
        agreeing = asyncio.run_coroutine_threadsafe(api.engine.ledger.reconcile(), api.loop)
        assert asked.wait(60)
        assert client.delete(path).status_code == 200
        api.loop.call_soon_threadsafe(go.set)
        agreeing.result(60)
        assert client.get("/v1/status").json()["sandboxes"] == 0
        assert client.get(path).json()["state"] == "stopped"


def flood(api: FakeApi) -> None:
    """More words of the node than may wait to be heard; returns when whoever listened has given up."""
    before, about = api.node.cancelled, FakeSandbox({"tenant": "ada", "template": "base", "labels": {}}, 100)
    api.loop.call_soon_threadsafe(lambda: api.node.emit("limit", about, reason="x" * (CONTROL_HELD + 1)))
    eventually(lambda: api.node.cancelled > before)


def test_whoever_fell_behind_listens_before_it_asks(api: FakeApi) -> None:
    """What ends between the node's answer and the next event heard is in neither, and would be missed."""
    listening: list[int] = []
    listing = api.node.verb_list

    async def looked(stream: Stream, ask: dict[str, Any], guest: bytes) -> None:
        listening.append(len(api.node.listeners))
        await listing(stream, ask, guest)

    api.node.verb_list = looked  # type: ignore[method-assign]
    flood(api)
    eventually(lambda: listening)
    assert listening[0] == 1


def test_falling_behind_while_a_node_comes_up_ends_no_listening(api: FakeApi) -> None:
    """Before it may be used by all it is listened to already, and goes on being when that was too much at first."""
    go, listing = asyncio.Event(), api.node.verb_list

    async def slowly(stream: Stream, ask: dict[str, Any], guest: bytes) -> None:
        await go.wait()
        await listing(stream, ask, guest)

    api.node.verb_list = slowly  # type: ignore[method-assign]
    api.do(api.node.stop())
    (api.place / "node.sock").unlink(missing_ok=True)
    eventually(lambda: not api.engine.node.linked)
    api.do(api.node.start(api.place / "node.sock"))
    eventually(lambda: len(api.node.listeners) == 1)
    flood(api)
    time.sleep(0.5)
    api.loop.call_soon_threadsafe(go.set)
    api.do(api.engine.node.wait_up(60))
    eventually(lambda: len(api.node.listeners) == 1)


def test_start_stop_races_have_one_winner(api: FakeApi) -> None:
    """Ten stops of one sandbox: one end, one event, no error."""
    with api.client() as client:
        for _ in range(10):
            path = client.post("/v1/sandboxes", json={}).headers["location"]
            with ThreadPoolExecutor(10) as pool:
                answers = [pool.submit(client.delete, path) for _ in range(10)]
                assert {one.result(60).status_code for one in answers} == {200}
            api.flush()
            events = api.store.events_about("ada", path.rpartition("/")[2], 100)
            assert [one.type for one in events].count("sandbox.stopped") == 1
