"""Pools: every warm sandbox is handed out once, to one tenant, and none is forgotten, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import Overloaded, PlatformFault, SandboxRefused
from ringfence.domain.limits import MIB, Limits
from ringfence.domain.process import How
from ringfence.domain.template import PoolPolicy
from ringfence.node import pools
from ringfence.node.live import Live
from ringfence.node.supervisor import MAX_POOLS
from ringfence.runtimes.base import StartSpec
from ringfence.runtimes.fake import Fake
from tests.support.nodewire import Node, node, until

pytestmark = pytest.mark.anyio
LIMITS = Limits()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that keeps two warm."""
    async with node(tmp_path, pool=PoolPolicy(least=2, most=4)) as made:
        yield made


async def claim(served: Node, tenant: str = "a", limits: Limits = LIMITS, **ask: Any) -> Live:
    """A sandbox for a tenant."""
    wanted = {"tenant": tenant, "template": "base", "wait_seconds": 20, **ask}
    live, _ = await served.supervisor.claim(wanted, limits, 300, one_shot=True)
    return live


async def accounted(served: Node) -> None:
    """Everything the runtime ever started is idle, claimed or ended: nothing fell between."""
    await served.settled()
    known = served.supervisor.table.ids() | set(served.supervisor._warm)
    await until(lambda: served.runtime.host.left == known)
    assert len(served.supervisor._warm) == served.idle


async def test_the_least_is_kept_ready(served: Node) -> None:
    """A pool that was asked for holds its least, and holds it again after each taking."""
    served.supervisor.warm("a", "base")
    await until(lambda: served.idle == 2)
    await claim(served)
    await until(lambda: served.idle >= 2)


async def test_nothing_is_handed_out_twice(served: Node) -> None:
    """Forty at once get forty different sandboxes."""
    got = await asyncio.gather(*[claim(served) for _ in range(40)])
    assert len({live.id for live in got}) == 40
    await accounted(served)


async def test_nothing_goes_to_another_tenant(served: Node) -> None:
    """A warm sandbox of one tenant's is never another's, though it lies there idle."""
    await claim(served, "a")
    await until(lambda: served.idle >= 2)
    got = await asyncio.gather(*[claim(served, tenant) for tenant in "bcbcbcaa"])
    assert [live.spec.tenant for live in got] == list("bcbcbcaa")
    for spec in served.runtime.started:
        assert spec.tenant in "abc"
    await accounted(served)


async def test_a_used_sandbox_never_comes_back(served: Node) -> None:
    """However a sandbox's use ends, the next to ask gets another."""
    seen: set[str] = set()
    for _ in range(10):
        live = await claim(served)
        assert live.id not in seen
        seen.add(live.id)
        served.supervisor.end_beside(live, How.STOPPED, "over")
    await accounted(served)


@pytest.mark.parametrize(
    "other", [{"memory_bytes": 64 * MIB}, {"processes": 9}, {"scratch_bytes": 2 * MIB}, {"cpus": 1.5}]
)
async def test_limits_that_are_built_in_part_pools(served: Node, other: dict[str, Any]) -> None:
    """A sandbox made for other limits is not what was asked for."""
    await claim(served)
    live = await claim(served, limits=replace(LIMITS, **other))
    assert live.spec.limits == replace(LIMITS, **other)


@pytest.mark.parametrize("other", [{"wall_seconds": 5.0}, {"output_bytes": 7}, {"idle_hard_seconds": 9.0}])
async def test_limits_that_the_node_enforces_do_not(served: Node, other: dict[str, Any]) -> None:
    """Limits that need nothing built in share one pool."""
    await claim(served)
    await claim(served, limits=replace(LIMITS, **other))
    assert len(served.supervisor.status()["pools"]) == 1


async def test_a_failing_start_is_told_to_who_waits(served: Node) -> None:
    """The layer's name reaches the asker; when the host is well again, so is the pool."""
    served.runtime.refuse = "seccomp"
    with pytest.raises(SandboxRefused, match="seccomp"):
        await claim(served)
    served.runtime.refuse = ""
    await claim(served)
    await accounted(served)


class NoDescriptors(Fake):
    """A host that has no descriptor left."""

    broken = True

    async def start(self, spec: StartSpec) -> Any:
        """Fail as the kernel does."""
        if self.broken:
            raise OSError(24, "Too many open files")
        return await super().start(spec)


async def test_a_start_that_fails_in_the_kernel_is_told_too(tmp_path: Path) -> None:
    """An OSError becomes our own fault with its words, at once, not a wait until the deadline."""
    runtime = NoDescriptors()
    async with node(tmp_path, runtime) as served:
        with pytest.raises(PlatformFault, match="Too many open files"):
            await claim(served)
        runtime.broken = False
        await claim(served)
        await accounted(served)


async def test_a_deadline_is_kept_and_nothing_is_lost(served: Node) -> None:
    """Who cannot wait is told so; what arrives later is the next one's."""
    served.runtime.start_seconds = 0.2
    with pytest.raises(Overloaded):
        await claim(served, wait_seconds=0.01)
    live = await claim(served)
    assert live.id
    await accounted(served)


async def test_leaving_at_any_moment_loses_nothing(served: Node) -> None:
    """A claim cancelled before, while and after its sandbox arrives leaves no sandbox behind that nobody owns."""
    served.runtime.start_seconds = 0.003
    for turn in range(60):
        task = asyncio.ensure_future(claim(served, tenant=f"t{turn % 3}"))
        for _ in range(turn % 12):
            await asyncio.sleep(0.0005 if turn % 2 else 0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Overloaded)) if not task.done() else _nothing():
            await task
    await accounted(served)


class _nothing:  # noqa: N801 - a context manager that expects nothing
    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> bool:
        return True


async def test_cancelled_in_the_moment_of_arrival(served: Node) -> None:
    """The sandbox that was just given to somebody who left in the same turn of the loop is not forgotten."""
    served.runtime.start_seconds = 3600
    task = asyncio.ensure_future(claim(served))
    await until(lambda: served.supervisor.status()["pools"] and served.supervisor.status()["pools"][0]["waiting"])
    (pool,) = served.supervisor._pools.values()
    served.runtime.start_seconds = 0.0
    spare = await pool.start()
    pool._arrived(spare)
    task.cancel()
    await asyncio.wait([task])
    owned = served.supervisor.table.ids()
    assert spare.id in owned or spare in pool.idle or spare.id not in served.supervisor._warm
    for starting in pool._starting:
        starting.cancel()


async def test_warm_ones_that_die_are_dropped(served: Node) -> None:
    """A sandbox that dies while it waits is cleaned up and replaced, and never handed out."""
    served.supervisor.warm("a", "base")
    await until(lambda: served.idle == 2)
    dead = list(served.runtime.live)
    for sandbox_id in dead:
        served.runtime.live[sandbox_id].agent.vanish()
    await until(lambda: not served.idle)
    live = await claim(served)
    assert live.id not in dead
    await until(lambda: not set(dead) & served.runtime.host.left)
    await accounted(served)


async def test_a_dead_one_is_not_forgotten_when_it_is_passed_over(served: Node) -> None:
    """Taken from the pool in the very turn in which it died, it is ended like any other."""
    served.supervisor.warm("a", "base")
    await until(lambda: served.idle == 2)
    (pool,) = served.supervisor._pools.values()
    for live in list(pool.idle):
        live.link.close()
    await claim(served)
    await accounted(served)


async def test_demand_raises_the_target_and_quiet_lowers_it(served: Node) -> None:
    """Recent demand adds warm ones; without it a trim goes back to the least."""
    for _ in range(20):
        served.supervisor.end_beside(await claim(served), How.STOPPED, "over")
    (pool,) = served.supervisor._pools.values()
    assert pool.target() == 3
    await until(lambda: served.idle == 3)
    pool._taken.clear()
    pool.trim()
    assert served.idle == 2
    await accounted(served)


async def test_a_pool_nobody_wants_is_emptied(served: Node) -> None:
    """After a long time without a request its warm ones are given back; the next request opens it anew."""
    await claim(served)
    await until(lambda: served.idle >= 2)
    (pool,) = served.supervisor._pools.values()
    pool._last_used -= pools.UNUSED_SECONDS + 1
    await served.supervisor.watch()
    assert served.supervisor.status()["pools"] == []
    await accounted(served)
    await claim(served)


async def test_many_shapes_do_not_hoard(tmp_path: Path) -> None:
    """A tenant that asks for another limit each time does not make the node keep warm ones for each of them."""
    async with node(tmp_path, pool=PoolPolicy(least=2, most=4)) as served:
        for n in range(60):
            live = await claim(served, limits=replace(LIMITS, memory_bytes=(64 + n) * MIB))
            served.supervisor.end_beside(live, How.STOPPED, "over")
        await served.settled()
        for pool in served.supervisor._pools.values():
            pool._taken.clear()
        await served.supervisor.watch()
        await served.settled()
        assert served.idle <= 4


async def test_too_many_pools_forget_the_longest_unused(tmp_path: Path) -> None:
    """A pool somebody waits for is never the one that has to go, and none is left out of the books."""
    runtime = Fake()
    runtime.start_seconds = 0.5
    async with node(tmp_path, runtime, pool=PoolPolicy(least=0, most=1), starts_at_once=1000) as served:
        tenants = [f"t{n}" for n in range(MAX_POOLS + 20)]
        got = await asyncio.gather(*[claim(served, tenant) for tenant in tenants])
        assert [live.spec.tenant for live in got] == tenants
        runtime.start_seconds = 0.0
        for n in range(40):
            await claim(served, f"late{n}")
        assert len(served.supervisor._pools) <= MAX_POOLS + 20
        await accounted(served)


class Counting(Fake):
    """Counts how many starts are under way."""

    now = most = 0

    async def start(self, spec: StartSpec) -> Any:
        """Count, then start."""
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().start(spec)
        finally:
            self.now -= 1


async def test_starts_are_paced(tmp_path: Path) -> None:
    """However many ask, only so many starts are under way at once."""
    runtime = Counting()
    runtime.start_seconds = 0.01
    async with node(tmp_path, runtime, starts_at_once=3) as served:
        await asyncio.gather(*[claim(served, tenant=f"t{n % 5}") for n in range(30)])
        assert runtime.most <= 3
        await accounted(served)


async def test_closing_while_starts_are_under_way_leaves_nothing(tmp_path: Path) -> None:
    """A node that closes waits for what it began."""
    runtime = Fake()
    runtime.start_seconds = 0.05
    async with node(tmp_path, runtime) as served:
        served.supervisor.warm("a", "base")
        await until(lambda: runtime.host.left)
    await until(lambda: not runtime.host.left)
    assert not runtime.live
