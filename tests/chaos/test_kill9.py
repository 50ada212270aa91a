"""kill -9 of any process of ours, at any moment, under load (catalogue rows 150 to 154).

Whatever dies: the server comes back by itself, every request that was under way is answered with the truth or with a
fault of ours, nothing is stuck in between, and no process, group or mount is left that nobody owns.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from ringfence.attack.own_server import OwnServer
from tests.chaos.conftest import TEMPLATES
from tests.chaos.load import Load
from tests.support import ledger
from tests.support.scale import ROUNDS

BACK_SECONDS = 30.0
KINDS = ("node", "api", "launcher", "zygote", "agent", "program", "server")


def kind_of(pid: int, instance: str) -> str:
    """Which part of us a process is."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    for part, sign in (("node", "ringfence.node"), ("api", "ringfence.api"), ("launcher", "jail.launcher")):
        if sign in words and name.startswith("python"):
            return part
    group = ledger.group_of(pid)
    if f"/ringfence/{instance}/zygote-" in group:
        return "zygote"
    if f"/ringfence/{instance}/s" in group:
        return "agent" if name == "ringfence" and first_of_its_namespace(pid) else "program"
    return ""


def first_of_its_namespace(pid: int) -> bool:
    """Whether it is a sandbox's process 1; an interpreter that waits for its program has the same name."""
    lines = ledger._text(f"/proc/{pid}/status").splitlines()
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in lines)


def victims(server: OwnServer, kind: str) -> list[int]:
    """Every process of that kind that this server has now."""
    if server.process is None:
        return []
    if kind == "server":
        return [server.process.pid]
    instance = ledger.instance_of(server.state)
    return [pid for pid in ledger.tree(server.process.pid) if kind_of(pid, instance) == kind]


def strike(server: OwnServer, kind: str, dice: random.Random) -> None:
    """Kill one of a kind; when there is none just now, look again for a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = victims(server, kind)
        if found:
            try:
                os.kill(dice.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                continue
            return
        time.sleep(0.005)
    pytest.fail(f"no {kind} was there to be killed")


def restarted(server: OwnServer, load: Load) -> None:
    """An operator's part, when the parent itself was killed: start it again on the same state."""
    if server.process is not None:
        server.process.wait(60)
    until = time.monotonic() + BACK_SECONDS
    while True:  # the lock is free once the last of the old ones is gone
        try:
            server.restart()
            break
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    load.url = server.url


def asker(server: OwnServer) -> httpx.Client:
    """A client."""
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=90)


def back(server: OwnServer) -> None:
    """Return when a run works."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        try:
            with asker(server) as client:
                answer = client.post("/v1/runs", json={"shell": "echo back", "template": "base"})
            if answer.status_code == 200 and answer.json()["stdout"] == "back\n":
                return
            said = answer.text
        except httpx.TransportError as error:
            said = repr(error)
        if time.monotonic() > deadline:
            pytest.fail(f"the server did not come back: {said}\n{server.log.read_text()[-2000:]}")
        time.sleep(0.05)


def unowned(server: OwnServer) -> list[str]:
    """Processes in this server's groups that are no descendants of it."""
    instance = ledger.instance_of(server.state)
    assert server.process is not None
    deadline = time.monotonic() + 60
    while True:
        in_groups = {pid for pid in ledger.pids() if f"/ringfence/{instance}/" in ledger.group_of(pid)}
        left = in_groups - set(ledger.tree(server.process.pid))
        left = {pid for pid in left if "State:\tZ" not in ledger._text(f"/proc/{pid}/status")}
        if not left or time.monotonic() > deadline:
            return [f"{pid} {kind_of(pid, instance)}" for pid in left]
        time.sleep(0.1)


def stuck(client: httpx.Client) -> list[str]:
    """Runs and sandboxes that are neither alive nor ended."""
    deadline = time.monotonic() + 60
    while True:
        runs = client.get("/v1/runs", params={"limit": 100}).json()["runs"]
        boxes = client.get("/v1/sandboxes", params={"limit": 100}).json()["sandboxes"]
        left = [f"run {run['id']} is {run['state']}" for run in runs if run["state"] == "running"]
        left += [f"sandbox {box['id']} is {box['state']}" for box in boxes if box["state"] in {"starting", "stopping"}]
        for box in boxes:
            if box["state"] == "running":
                answer = client.post(f"/v1/sandboxes/{box['id']}/processes", json={"shell": "echo alive"})
                if answer.status_code != 404 and not (answer.status_code == 200 and "alive" in answer.json()["stdout"]):
                    left.append(f"sandbox {box['id']}: {answer.status_code} {answer.text[:200]}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_is_survived(server: OwnServer, kind: str) -> None:
    """One kind of process killed over and over, at random moments of a busy server."""
    dice = random.Random(kind)
    with Load(server.url, server.key, programs_die=kind == "program") as load:
        back(server)
        for _ in range(max(1, ROUNDS // 5) if ROUNDS < 100 else ROUNDS):
            time.sleep(dice.random() * 0.3)
            strike(server, kind, dice)
            if kind == "server":
                restarted(server, load)
            back(server)
    with asker(server) as client:
        assert load.told.wrong == []
        assert load.told.good > 0
        assert stuck(client) == []
    assert unowned(server) == []


def test_everything_killed_at_once_is_survived(server: OwnServer) -> None:
    """SIGKILL to every process of the server in one go, as when the power fails; a new start cleans up."""
    dice = random.Random(154)
    for _ in range(max(1, ROUNDS // 5)):
        with Load(server.url, server.key, programs_die=True) as load:
            back(server)
            time.sleep(dice.random())
            assert server.process is not None
            everything = ledger.tree(server.process.pid)
            dice.shuffle(everything)
            for pid in everything:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            restarted(server, load)
            back(server)
        with asker(server) as client:
            assert load.told.wrong == []
            assert stuck(client) == []
    assert unowned(server) == []


def test_a_second_server_on_the_same_state_is_refused(server: OwnServer) -> None:
    """Two servers never share a state directory: the second says so and leaves the first alone."""
    second = OwnServer(TEMPLATES)
    second.state = server.state
    log, second_log = server.log, server.state / "second.log"
    kept = log.read_bytes()
    with pytest.raises(Exception, match="another server"):
        second._start()
    log.write_bytes(kept)
    second_log.unlink(missing_ok=True)
    back(server)
