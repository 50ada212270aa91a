"""SIGKILL in the middle of things: whatever dies, its sandboxes die with it, the server recovers, nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ringfence.attack.own_server import OwnServer
from ringfence.network import rules
from tests.attacks.conftest import TEMPLATES
from tests.support import ledger

pytestmark = [
    pytest.mark.row(150, 152),
    pytest.mark.skipif(os.geteuid() != 0, reason="the control groups to look into are root's"),
    pytest.mark.skipif(not (TEMPLATES / "index" / "base.json").exists(), reason="no built template"),
]

NOWHERE = Path("/nonexistent/ringfence-ledger")


@pytest.fixture
def own() -> Iterator[OwnServer]:
    """A server of the test's own, whose ledger must be even when it has stopped."""
    before = ledger.snapshot(NOWHERE)
    with OwnServer(TEMPLATES) as server:
        yield server
    assert ledger.settle(server.state, before) == []


def named(server: OwnServer, word: str) -> list[int]:
    """The server's processes whose command line or name has this word."""
    assert server.process is not None
    found = []
    for pid in ledger.tree(server.process.pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
            if word.encode() in line:
                found.append(pid)
    return found


def begin(server: OwnServer) -> threading.Thread:
    """A run that lasts, in the background; what becomes of it is not asked here."""
    body = {"argv": ["sleep", "4711"], "timeout": 120}
    headers = {"Authorization": f"Bearer {server.key}"}

    def post() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{server.url}/v1/runs", json=body, headers=headers, timeout=60, trust_env=False)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    wait_for(lambda: bool(sleepers(server)))
    return thread


def sleepers(server: OwnServer) -> list[int]:
    """The tenant's programs that are alive."""
    instance = ledger.instance_of(server.state)
    found = []
    for pid in ledger.pids():
        with contextlib.suppress(OSError):
            if b"4711" in Path(f"/proc/{pid}/cmdline").read_bytes() and f"/ringfence/{instance}" in ledger.group_of(
                pid
            ):
                found.append(pid)
    return found


def wait_for(condition: object, seconds: float = 120) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def works(server: OwnServer) -> bool:
    """Whether a program can be run now."""
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        answer = httpx.post(
            f"{server.url}/v1/runs", json={"code": "print(6 * 7)"}, headers=headers, timeout=60, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["stdout"] == "42\n"


@pytest.mark.parametrize("victim", ["ringfence.node", "ringfence.api", "launcher"])
def test_a_killed_part_takes_its_sandboxes_along_and_the_server_recovers(own: OwnServer, victim: str) -> None:
    """After SIGKILL to the node, the api or a zygote's launcher, no program of a tenant's runs on, and new ones run."""
    begin(own)
    victims = named(own, victim)
    assert victims
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):  # one may be another's child
            os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not sleepers(own))
    assert wait_for(lambda: works(own))


def networked(server: OwnServer) -> bool:
    """Make a sandbox that has a wire, and see that the gate stands behind it."""
    headers = {"Authorization": f"Bearer {server.key}"}
    body = {"egress": ["api.example.com"], "ttl_seconds": 300}
    try:
        made = httpx.post(f"{server.url}/v1/sandboxes", json=body, headers=headers, timeout=60, trust_env=False)
    except httpx.HTTPError:
        return False
    return made.status_code == 201


@pytest.mark.row(150)
@pytest.mark.skipif(not os.access(rules.NFT, os.X_OK), reason="needs nftables")
@pytest.mark.parametrize("victim", [ledger.GATE, "ringfence.node", "ringfence serve"])
def test_a_killed_part_leaves_no_gate_and_no_router(victim: str) -> None:
    """The gate, the node or all of it: no gate outlives its node, no namespace its gate; the next take over."""
    before = ledger.snapshot(NOWHERE)
    with OwnServer(TEMPLATES) as server:
        instance = ledger.instance_of(server.state)
        assert networked(server)
        (gate,) = ledger.gates_of(instance)
        # While wires are laid, a pool's next sandboxes among them, the node holds their namespaces for a moment.
        assert wait_for(lambda: len(ledger.routers_of(server.state)) == 1)
        assert server.process is not None
        for pid in [server.process.pid] if victim == "ringfence serve" else named(server, victim):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: gate not in ledger.gates_of(instance))
        if victim == "ringfence serve":
            server.process.wait(60)
            assert wait_for(lambda: not ledger.routers_of(server.state))
            server.restart()
        assert wait_for(lambda: networked(server))
        assert wait_for(lambda: len(ledger.gates_of(instance)) == 1)
    assert ledger.settle(server.state, before) == []


def test_a_killed_server_leaves_no_program_behind() -> None:
    """After SIGKILL to the parent of all, everything of it is gone; the next server sweeps what only it could."""
    before = ledger.snapshot(NOWHERE)
    with OwnServer(TEMPLATES) as server:
        begin(server)
        assert server.process is not None
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        assert wait_for(lambda: not sleepers(server))
        server.restart()
        assert wait_for(lambda: works(server))
    assert ledger.settle(server.state, before) == []


@pytest.mark.row(150)
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_a_node_killed_while_it_starts_sandboxes_leaves_nothing(own: OwnServer, delay: float) -> None:
    """SIGKILL to the node at several moments of a burst of starts: it comes back, and nothing of the first is left."""
    threads = [threading.Thread(target=works, args=(own,), daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(delay)
    for pid in named(own, "ringfence.node"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: works(own))
    for thread in threads:
        thread.join(60)
