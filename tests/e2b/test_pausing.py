"""Pause and resume through E2B's face: files alone, by hand, on timeout, and by being used."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.e2b.server import Served, serving
from tests.e2b.wire import Box, make

NOT_FOUND = "The sandbox was not found"


def state(box: Box) -> str:
    """Its state as info tells it."""
    with box.server.client() as client:
        answer = client.get(f"/sandboxes/{box.id}")
        return answer.json()["state"] if answer.status_code == 200 else str(answer.status_code)


def test_a_paused_sandbox_is_there_but_not_running(server: Served) -> None:
    """Its services say 502, the control plane knows it, and connect brings it back with its token and its files."""
    box = make(server, metadata={"who": "paused"})
    with server.client() as client:
        box.run("echo kept > file; sleep 60 & disown")
        assert client.post(f"/sandboxes/{box.id}/pause", json={}).status_code == 400
        assert (
            client.post(f"/sandboxes/{box.id}/pause", json={"memory": True}).json()["error_code"]
            == "pause_memory_unsupported"
        )
        assert client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).status_code == 204
        assert client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).status_code == 409
        assert state(box) == "paused"
        with box.client() as inside:
            for path in ("/health", "/files?path=file", "/envs"):
                answer = inside.get(path)
                assert (answer.status_code, answer.json()["message"]) == (502, NOT_FOUND), path
            assert inside.post("/process.Process/List", json={}).status_code == 502
        listed = client.get("/v2/sandboxes", params={"state": "paused", "metadata": "who=paused"}).json()
        assert [each["sandboxID"] for each in listed] == [box.id]
        assert client.get("/v2/sandboxes", params={"state": "running", "metadata": "who=paused"}).json() == []
        with server.client(server.other_key) as other:
            assert other.post(f"/v2/sandboxes/{box.id}/connect", json={}).status_code == 404
        again = client.post(f"/v2/sandboxes/{box.id}/connect", json={"timeout": 60})
        assert (again.status_code, again.json()["envdAccessToken"]) == (201, box.made["envdAccessToken"])
        assert box.run("cat file") == "kept\n"
        assert client.post(f"/v2/sandboxes/{box.id}/connect", json={"timeout": 60}).status_code == 200
        assert client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).status_code == 204
        assert client.post(f"/sandboxes/{box.id}/resume", json={"timeout": 60}).status_code == 201
        assert client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).status_code == 204
        assert client.delete(f"/sandboxes/{box.id}").status_code == 204
        assert client.get(f"/sandboxes/{box.id}").status_code == 404


@pytest.mark.parametrize("resumes", [True, False])
def test_its_time_over_it_sleeps_and_wakes_when_it_may(server: Served, resumes: bool) -> None:
    """autoPause with files alone; autoResume has the next call wake it."""
    options = {
        "timeout": 120,
        "autoPause": True,
        "autoPauseMemory": False,
        **({"autoResume": {"enabled": True}} if resumes else {}),
    }
    box = make(server, **options)
    try:
        box.run("echo kept > file")
        with server.client() as client:
            assert client.post(f"/sandboxes/{box.id}/timeout", json={"timeout": 0}).status_code == 204
            deadline = time.time() + 60
            while state(box) != "paused":
                assert time.time() < deadline
                time.sleep(0.05)
            info = client.get(f"/sandboxes/{box.id}").json()
            assert info["lifecycle"] == {"onTimeout": "pause", "autoResume": resumes}
        with box.client() as inside:
            answer = inside.get("/files?path=file")
        assert (answer.status_code, answer.text == "kept\n") == ((200, True) if resumes else (502, False))
        if resumes:  # it was given no time at last, and lives on for what it had at first
            time.sleep(1)
            assert state(box) == "running"
            with server.client() as client:
                left = datetime.fromisoformat(client.get(f"/sandboxes/{box.id}").json()["endAt"]).timestamp()
            assert 250 < left - time.time() < 301
    finally:
        box.kill()


def test_a_client_that_always_says_memory_has_its_files_kept_on_timeout(server: Served) -> None:
    """The first create route: what it says of memory nobody said. A pause by hand is refused there too."""
    asked = {"templateID": "base", "autoPause": True, "autoPauseMemory": True, "autoResume": {"enabled": True}}
    with server.client() as client:
        assert client.post("/v2/sandboxes", json=asked).status_code == 400
        made = client.post("/sandboxes", json=asked)
        assert made.status_code == 201, made.text
        box = Box(server, made.json())
        try:
            assert client.get(f"/sandboxes/{box.id}").json()["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
            refused = client.post(f"/sandboxes/{box.id}/pause", json={"memory": True})
            assert (refused.status_code, refused.json()["error_code"]) == (400, "pause_memory_unsupported")
        finally:
            box.kill()


def test_an_operator_may_take_every_pause_for_one_of_files() -> None:
    """With files_only_pause, for whoever does not say that memory is to be kept; who does say so is refused."""
    with serving("[e2b]\nfiles_only_pause = true\n") as server, server.client() as client:
        for path, body, status in (
            ("/v2/sandboxes", {}, 204),
            ("/v2/sandboxes", {"memory": True}, 400),
            ("/sandboxes", {"memory": True}, 204),
        ):
            made = client.post(path, json={"templateID": "base"}).json()
            assert client.post(f"/sandboxes/{made['sandboxID']}/pause", json=body).status_code == status, (path, body)
            assert client.delete(f"/sandboxes/{made['sandboxID']}").status_code == 204
