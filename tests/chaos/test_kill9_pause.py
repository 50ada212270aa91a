"""kill -9 while sandboxes are paused and resumed: each is running or paused with what it had, or lost and says so."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time

import httpx
import pytest

from ringfence.attack.own_server import OwnServer
from tests.chaos.test_kill9 import asker, back, strike, unowned
from tests.support import ledger
from tests.support.scale import ROUNDS

SIZE = 3_000_000
TOLD = {"sandbox_busy", "sandbox_paused", "sandbox_running", "sandbox_ended", "not_found"}
FAULTS = {
    "node_lost",
    "node_unreachable",
    "sandbox_lost",
    "sandbox_not_found",
    "platform_fault",
    "internal",
    "draining",
}
LOST = {"node_lost", "sandbox_lost"}


def made(server: OwnServer, data: bytes) -> str:
    """A sandbox with a file in it, once the server is there."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with asker(server) as client:
                name = client.post("/v1/sandboxes", json={"template": "base"}).json()["id"]
                client.put(f"/v1/sandboxes/{name}/files/content?path=data", content=data).raise_for_status()
                return str(name)
        except (httpx.HTTPError, KeyError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def goes_to_and_fro(server: OwnServer, name: str, stop: threading.Event, wrong: list[str]) -> None:
    """Pause and resume it, over and over; only the truth may be answered."""
    turn = 0
    while not stop.is_set():
        verb = ("pause", "resume")[turn % 2]
        turn += 1
        try:
            with asker(server) as client:
                answer = client.post(f"/v1/sandboxes/{name}/{verb}", json={})
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        code = "" if answer.status_code < 300 else str(answer.json()["error"]["code"])
        if code and code not in TOLD | FAULTS:
            wrong.append(f"{verb}: {answer.status_code} {answer.text[:200]}")


def settled(client: httpx.Client, name: str, data: bytes) -> str:
    """What became of it: with its file, or with a reason."""
    deadline = time.monotonic() + 60
    while True:
        found = client.get(f"/v1/sandboxes/{name}").json()
        if found["state"] == "paused":
            client.post(f"/v1/sandboxes/{name}/resume", json={})
        elif found["state"] == "failed":
            return "lost" if (found["error"] or {}).get("code") in LOST else f"failed without a reason: {found}"
        else:
            answer = client.get(f"/v1/sandboxes/{name}/files/content?path=data")
            if answer.status_code == 200:
                return "whole" if answer.content == data else f"half: {len(answer.content)} bytes"
        if time.monotonic() > deadline:
            return f"stuck: {found}"
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["api", "node", "agent"])
def test_a_kill_while_pausing_leaves_no_half(server: OwnServer, kind: str) -> None:
    """One kind of process killed over and over while sandboxes go to and fro between running and paused."""
    dice, data = random.Random(kind), os.urandom(SIZE)
    fates: list[str] = []
    for _ in range(max(2, ROUNDS // 3)):
        names, wrong, stop = [made(server, data) for _ in range(2)], list[str](), threading.Event()
        threads = [threading.Thread(target=goes_to_and_fro, args=(server, name, stop, wrong)) for name in names]
        for thread in threads:
            thread.start()
        time.sleep(dice.random() * 0.4)
        strike(server, kind, dice)
        time.sleep(dice.random() * 0.2)
        stop.set()
        for thread in threads:
            thread.join(60)
        back(server)
        assert wrong == []
        with asker(server) as client:
            fates += [settled(client, name, data) for name in names]
            for name in names:
                client.delete(f"/v1/sandboxes/{name}")
    assert set(fates) <= {"whole", "lost"}
    assert kind != "api" or "lost" not in fates, "an api's death costs no sandbox"
    assert list((server.state / "paused").iterdir()) == []
    assert unowned(server) == []


def test_what_is_paused_outlives_everything(server: OwnServer) -> None:
    """Every process killed at once, as when the power fails: what was paused is paused, and whole."""
    data = os.urandom(SIZE)
    name = made(server, data)
    with asker(server) as client:
        assert client.post(f"/v1/sandboxes/{name}/pause", json={}).status_code == 200
    assert server.process is not None
    for pid in ledger.tree(server.process.pid):
        with contextlib.suppress(ProcessLookupError):  # its parent's death was its own
            os.kill(pid, 9)
    server.process.wait(60)
    until = time.monotonic() + 60
    while True:  # the lock is free once the last of the old ones is gone
        try:
            server.restart()
            break
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    back(server)
    with asker(server) as client:
        assert client.get(f"/v1/sandboxes/{name}").json()["state"] == "paused"
        assert settled(client, name, data) == "whole"
        client.delete(f"/v1/sandboxes/{name}")
