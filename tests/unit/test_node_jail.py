"""The node over the real jail, at the moments where a runtime with processes can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import MIB, Limits
from ringfence.domain.process import How
from ringfence.domain.template import ZygoteMode
from ringfence.guest import frames
from ringfence.node.isolation import Isolation
from ringfence.node.live import Live
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.grouped import GOVERN_AFTER
from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.templates.catalog import Built, Catalog
from tests.support.nodewire import Node, until
from tests.support.subjects import SUBJECTS, TEMPLATES

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
ROOT = os.geteuid() == 0
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(JAIL.missing()), reason=JAIL.missing() or "-")]
LIMITS = Limits(memory_bytes=128 * MIB)


@asynccontextmanager
async def jailed(instance: str = "") -> AsyncIterator[Node]:
    """A node over a jail of its own."""
    runtime = Jail(detect(instance or f"test-{uuid.uuid4().hex[:12]}", root=ROOT), privileged=ROOT)
    supervisor = Supervisor(Isolation(runtime), Catalog(TEMPLATES), Settings())
    await supervisor.begin()
    try:
        yield Node(runtime, supervisor, Path("/nowhere"))
    finally:
        await supervisor.close()


async def claim(served: Node, tenant: str = "a", template: str = "base") -> Live:
    """A sandbox for a tenant."""
    ask = {"tenant": tenant, "template": template, "wait_seconds": 300.0}  # an emulated machine is slow
    live, _ = await served.supervisor.claim(ask, LIMITS, 300, one_shot=True)
    return live


def groups_left(instance: str) -> set[str]:
    """Names of groups of an instance that a node left, seen by another."""
    groups: Groups = detect(instance, root=ROOT)
    left = groups.list()
    groups.close()
    return left


class Kept:
    """An outlet that keeps what comes, and grants as much again."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []

    def send(self, type_: int, payload: bytes = b"") -> None:
        """Keep it."""
        self.frames.append((type_, payload))

    def throttle(self, link: object) -> None:
        """Never behind."""


@pytest.mark.parametrize("moment", [0, 0.002, 0.01, 0.03, 0.1, 0.2])
async def test_closing_at_any_moment_of_a_start_leaves_nothing(moment: float) -> None:
    """A node that is told to stop while it starts its first sandboxes ends them too, and their zygote."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    async with jailed(instance) as served:
        served.supervisor.warm("a", "base")
        await asyncio.sleep(moment)
    assert groups_left(instance) == set()


async def test_a_sweep_spares_a_zygote_that_is_being_started() -> None:
    """Swept over and over while a zygote imports its packages, the node takes nothing of its own for a leftover."""
    async with jailed() as served:
        claiming = asyncio.ensure_future(claim(served))
        while not claiming.done():
            await served.supervisor.sweep()
            await asyncio.sleep(0)
        assert (await claiming).id
        assert served.supervisor.counters.get("swept", 0) == 0


async def test_a_dead_zygote_is_replaced() -> None:
    """When a zygote dies its sandboxes die with it, are told as lost, and the next request gets a new zygote."""
    async with jailed() as served:
        live = await claim(served)
        relay = served.supervisor.open(live, b'{"op": "exec", "argv": ["sleep", "600"]}', Kept(), program=True)
        zygote = next(iter(served.runtime._zygotes.values()))
        zygote.kill()
        assert (await relay.ended).answer is None
        await until(lambda: live.id not in served.supervisor.table.ids())
        again = await claim(served)
        assert again.id != live.id
        await until(lambda: not served.supervisor._starting)  # a refill under way has a group and no name yet
        await served.supervisor.sweep()
        async with asyncio.timeout(60):  # the pool may be starting one more, which has a group and no name yet
            while await served.runtime.found() != served.supervisor.table.ids() | set(served.supervisor._warm):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)


async def test_a_zygote_nobody_needs_ends_and_comes_back() -> None:
    """A tenant who is away costs nothing; while one sandbox of his lives his zygote stays, and he may always return."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    jail = Jail(detect(instance, root=ROOT), privileged=ROOT, rest_seconds=0.2)
    try:
        kept, ended = await jail.start(JAIL.spec("a", LIMITS)), await jail.start(JAIL.spec("a", LIMITS))
        await jail.stop(ended.id)
        await asyncio.sleep(0.5)
        assert len(jail._zygotes) == 1
        await jail.stop(kept.id)
        await until(lambda: not jail._zygotes and not jail._retiring)
        assert jail._groups.list() == set()
        again = await jail.start(JAIL.spec("a", LIMITS))
        await jail.stop(again.id)
    finally:
        await jail.close()


class Stuck:
    """A network whose wires cannot be taken away."""

    def held(self) -> Stuck:
        """Itself."""
        return self

    async def detach(self, _: str) -> None:
        """Fail, as a router might."""
        raise OSError("the router does not answer")

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_wire_that_stays_does_not_keep_its_sandbox_alive() -> None:
    """Whatever goes wrong with its network, a stopped sandbox is dead, its groups and its range given back."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    network: Any = Stuck()
    jail = Jail(detect(instance, root=ROOT), privileged=ROOT, network=network)
    try:
        started = await jail.start(dataclasses.replace(JAIL.spec("a", LIMITS), lone=True))
        zygote = next(iter(jail._zygotes.values()))
        with pytest.raises(OSError, match="does not answer"):
            await jail.stop(started.id)
        with pytest.raises(ProcessLookupError):
            os.kill(started.pid, 0)
        assert started.id not in await jail.found()
        assert zygote.unused
    finally:
        await jail.close()


async def test_a_killed_agent_takes_its_programs_along() -> None:
    """Process 1 of a sandbox is killed from the host: nothing of the sandbox goes on, and its owner hears of it."""
    async with jailed() as served:
        live, neighbour = await claim(served), await claim(served)
        relay = served.supervisor.open(live, b'{"op": "exec", "shell": "sleep 600 & sleep 600"}', Kept(), program=True)
        other = served.supervisor.open(neighbour, b'{"op": "exec", "shell": "sleep 1; exit 7"}', Kept(), program=True)
        await asyncio.sleep(0.1)
        os.kill(live.started.pid, signal.SIGKILL)
        assert (await relay.ended).answer is None
        await until(lambda: live.id not in served.supervisor.table.ids())
        assert live.id not in await served.runtime.found()
        assert b'"code": 7' in ((await other.ended).answer or b"")


class NoGroup:
    """A runtime's groups on a host that has a bad moment: the named call fails once."""

    def __init__(self, groups: Groups, call: str) -> None:
        self._groups = groups
        self._call = call
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        if name == self._call and not self.failed:
            self.failed = True

            def fail(*_: object) -> None:
                raise SandboxRefused(f"layer {name}: no space left", code="group_refused")

            return fail
        return getattr(self._groups, name)


@pytest.mark.parametrize("call", ["create", "attach"])
async def test_a_group_that_cannot_be_had_refuses_the_sandbox(call: str) -> None:
    """No sandbox runs outside its limits: the start is refused, and nothing of it stays."""
    async with jailed() as served:
        await claim(served)
        await served.settled()
        jail: Any = served.runtime
        jail._groups = broken = NoGroup(jail._groups, call)
        with pytest.raises(SandboxRefused, match="no space left"):
            await jail.start(JAIL.spec("a", LIMITS))
        assert broken.failed
        await served.supervisor.sweep()
        assert await jail.found() == served.supervisor.table.ids() | set(served.supervisor._warm)


async def test_uid_ranges_are_given_back() -> None:
    """Hundreds of sandboxes later, as many ranges are free as before, also after starts that failed."""
    async with jailed() as served:
        first = await claim(served)
        await served.settled()
        zygote = next(iter(served.runtime._zygotes.values()))
        free = len(zygote._slots) + len(served.supervisor._warm)
        for _ in range(20):
            live = await claim(served)
            await served.supervisor.stop(live, How.STOPPED, "over")
        jail: Any = served.runtime
        for call in ("create", "attach"):
            whole, jail._groups = jail._groups, NoGroup(jail._groups, call)
            with contextlib.suppress(SandboxRefused):
                started = await jail.start(JAIL.spec("a", LIMITS))
                await jail.stop(started.id)  # it was a refill that had the bad moment
            jail._groups = whole
        # A refill under way holds a range and no name yet: it is the ranges that never come back that fail this.
        await until(lambda: len(zygote._slots) + len(served.supervisor._warm) == free)
        assert first.id in served.supervisor.table.ids()


async def test_no_descriptor_is_left_by_short_runs() -> None:
    """Runs that end at the very moment their memory begins to be watched leave no descriptor behind."""
    async with jailed() as served:
        for turn in range(-10, 50):
            if not turn:
                before = len(os.listdir("/proc/self/fd"))
            live = await claim(served)
            await asyncio.sleep(GOVERN_AFTER - 0.002 + 0.0005 * (turn * 0.9))
            await served.supervisor.stop(live, How.STOPPED, "over")
            if turn == -1:
                await served.settled()
        await served.settled()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 8)


class Fresh(Catalog):
    """The same templates, each with an interpreter of its own per program (zygote = "none")."""

    def read(self, name: str) -> Built:
        """One template, changed."""
        built = super().read(name)
        return dataclasses.replace(built, template=dataclasses.replace(built.template, zygote=ZygoteMode.NONE))


async def test_without_a_zygote_s_interpreter_no_two_programs_share_a_hash_secret() -> None:
    """With zygote = "none" code runs in an interpreter started for it alone: sources, arguments and exit code hold."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    runtime = Jail(detect(instance, root=ROOT), privileged=ROOT)
    supervisor = Supervisor(Isolation(runtime), Fresh(TEMPLATES), Settings())
    await supervisor.begin()
    try:
        served, hashes = Node(runtime, supervisor, Path("/nowhere")), set()
        for _ in range(3):
            live, kept = await claim(served), Kept()
            order = {"op": "run", "code": "import sys; print(hash('x'), sys.argv[1]); sys.exit(3)", "argv": ["a"]}
            relay = supervisor.open(live, json.dumps(order).encode(), kept, program=True)
            assert b'"code": 3' in ((await relay.ended).answer or b"")
            hashes.add(b"".join(payload for type_, payload in kept.frames if type_ == frames.STDOUT))
        assert len(hashes) == 3
        assert all(line.endswith(b" a\n") for line in hashes)
    finally:
        await supervisor.close()
