"""The posture of a live sandbox as the host sees it: every process, every thread, every field."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.attack.host import namespaces
from ringfence.domain.errors import SandboxLost
from ringfence.domain.limits import Limits
from ringfence.guest import frames
from ringfence.node.live import Live
from tests.support import expected, ledger, outside
from tests.support.node import Node

pytestmark = pytest.mark.row(83, 113)

LINGER = "import threading, time; threading.Thread(target=time.sleep, args=(30,)).start(); print('x'); time.sleep(30)"


@pytest.fixture
def live(node: Node) -> Iterator[Live]:
    """A sandbox of its own for each test."""
    sandbox = node.claim()
    yield sandbox
    node.release(sandbox)


def start(node: Node, sandbox: Live, request: dict[str, object]) -> threading.Thread:
    """Begin a program that stays; the test looks while it runs."""

    def perform() -> None:
        with contextlib.suppress(SandboxLost):  # some tests end the sandbox under it
            node.perform(sandbox, request)

    thread = threading.Thread(target=perform, daemon=True)
    thread.start()
    return thread


def settled(sandbox: Live, tenants: int) -> list[outside.Seen]:
    """The posture once that many tenant threads are there."""
    deadline = time.monotonic() + 10
    while True:
        seen = outside.everyone(sandbox.started.pid)
        mature = sum(one.who == "tenant" and one.oom_score_adj == 1000 for one in seen)
        if mature >= tenants or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def wrong_with(sandbox: Live, seen: list[outside.Seen]) -> list[str]:
    """Complaints about one sandbox."""
    settings = outside.group_settings(seen[0].groups)
    return expected.complaints(seen, namespaces(), Limits(), settings, lone=sandbox.spec.lone)


def test_the_first_program_runs_under_every_layer(node: Node, live: Live) -> None:
    """A program forked from the warm interpreter, with two threads, and the agent have the expected posture."""
    node.perform(live, {"op": "run", "code": "print('first')"})
    start(node, live, {"op": "run", "code": LINGER})
    assert wrong_with(live, settled(live, 2)) == []


def test_a_lone_run_is_under_every_layer(node: Node) -> None:
    """An interpreter without an agent beside it: its process 1 may do even less."""
    sandbox = node.claim(lone=True)
    try:
        start(node, sandbox, {"op": "run", "code": LINGER})
        seen = settled(sandbox, 2)
        assert wrong_with(sandbox, seen) == []
        assert {one.who for one in seen} == {"agent", "tenant"}
    finally:
        node.release(sandbox)


def test_a_second_program_runs_under_every_layer(node: Node, live: Live) -> None:
    """A program that is exec'd later has the same posture, and so has the first one's successor."""
    node.perform(live, {"op": "exec", "argv": ["true"]})
    start(node, live, {"op": "exec", "argv": ["sleep", "30"]})
    start(node, live, {"op": "exec", "shell": "sleep 30; true"})
    assert wrong_with(live, settled(live, 3)) == []


def test_a_program_on_a_terminal_runs_under_every_layer(node: Node, live: Live) -> None:
    """A terminal adds its own descriptors and nothing else."""
    start(node, live, {"op": "exec", "argv": ["sleep", "30"], "pty": {"cols": 80, "rows": 24}})
    assert wrong_with(live, settled(live, 1)) == []


def test_two_sandboxes_share_nothing(node: Node, live: Live) -> None:
    """Two live sandboxes of one tenant have different users, groups and namespaces on the host."""
    other = node.claim()
    try:
        for sandbox in (live, other):
            start(node, sandbox, {"op": "exec", "argv": ["sleep", "30"]})
        first, second = settled(live, 1), settled(other, 1)
        assert expected.shared(first[-1], second[-1]) == []
    finally:
        node.release(other)


def test_only_the_loopback_is_in_the_network_namespace(node: Node, live: Live) -> None:
    """Seen from outside, a sandbox's network namespace holds one interface, and no packet can leave it."""
    with open(f"/proc/{live.started.pid}/net/dev") as file:
        names = [line.split(":")[0].strip() for line in file.readlines()[2:]]
    assert names == ["lo"]
    with open(f"/proc/{live.started.pid}/net/route") as file:
        assert file.readlines()[1:] == []


@pytest.mark.row(25)
def test_a_setuid_copy_helps_nobody_on_the_host(node: Node, live: Live) -> None:
    """A setuid shell made inside belongs, on the host, to a user of this sandbox alone, on a nosuid mount."""
    node.perform(live, {"op": "exec", "shell": "cp /bin/sh s && chmod 4755 s"})
    copy = Path(f"/proc/{live.started.pid}/root/home/user/s")
    first = int(Path(f"/proc/{live.started.pid}/uid_map").read_text().split()[1])
    assert copy.stat().st_mode & 0o4000
    assert first <= copy.stat().st_uid < first + 2048
    assert os.statvfs(copy).f_flag & os.ST_NOSUID


@pytest.mark.row(152)
def test_a_sandbox_dies_with_its_agent(node: Node) -> None:
    """Killing process 1 from the host takes every program of the sandbox with it."""
    sandbox = node.claim()
    start(node, sandbox, {"op": "exec", "argv": ["sleep", "60"]})
    members = [pid for pid in outside.members(sandbox.started.pid) if settled(sandbox, 1)]
    os.kill(sandbox.started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in members) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in members if os.path.exists(f"/proc/{pid}")] == []


def test_nothing_is_left_of_a_stopped_sandbox(node: Node) -> None:
    """When stop has answered, its processes and its control groups are gone."""
    sandbox = node.claim()
    start(node, sandbox, {"op": "exec", "argv": ["sleep", "60"]})
    members = [one.status["Pid"] for one in settled(sandbox, 1)]
    node.release(sandbox)
    assert [pid for pid in members if os.path.exists(f"/proc/{pid}")] == []
    assert ledger.groups_called(sandbox.id) == set()


def test_an_agent_that_breaks_protocol_costs_only_its_own_sandbox(node: Node, live: Live) -> None:
    """A frame no guest may send ends that sandbox's link; another sandbox goes on."""
    other = node.claim()
    lie = frames.HEADER.pack(0, frames.OPEN, 7)
    node.do(_hear(other, lie))
    assert other.link.lost.done()
    assert node.perform(live, {"op": "run", "code": "print(6 * 7)"}).said == {"text": "42\n"}


async def _hear(sandbox: Live, data: bytes) -> None:
    sandbox.link.data_received(data)
