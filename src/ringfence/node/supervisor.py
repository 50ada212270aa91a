"""The node's decisions: who gets a sandbox, how long it lives, and that nothing of it stays.

Every sandbox is started, watched and ended here, whatever its runtime. Times are monotonic except where a user
reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.egress import DEFAULT_FLOOR, Floor, Policy, policy_from
from ringfence.domain.errors import (
    BadRequest,
    OverQuota,
    PlatformFault,
    RingfenceError,
    SandboxLost,
)
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.domain.sandbox import State, new_id
from ringfence.domain.secrets import Trust, trust_from, with_hosts
from ringfence.domain.template import NAME, Template, ZygoteMode
from ringfence.guest import frames
from ringfence.node.building import Works
from ringfence.node.described import runtime_row, template_row, unknown_template, usage_row
from ringfence.node.direct import Direct
from ringfence.node.egress import check_network, policy_of
from ringfence.node.isolation import AUTO, Isolation
from ringfence.node.link import GuestLink, Nobody
from ringfence.node.live import Live, Table
from ringfence.node.lone import LoneRelay
from ringfence.node.pools import Pool, PoolKey, shape_of
from ringfence.node.relay import UNCAPPED, Ended, Outlet, Relay
from ringfence.node.trusted import put_in_force
from ringfence.runtimes.base import GroupUsage, Networked, Runtime, StartSpec
from ringfence.templates.catalog import Both, Built, Catalog

WATCH_SECONDS: Final = 0.5  # how often busy sandboxes' counters are read
SWEEP_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 0.05  # between two looks at whether the last start under way has ended
MAX_TTL: Final = 86_400.0
TEMPLATE_SECONDS: Final = 2.0  # a rebuilt template is seen this late
GRACE_SECONDS: Final = 60.0  # for the api to pause what should not simply end with its time
MAX_POOLS: Final = 256
MAX_ENDING: Final = 64  # teardowns under way before new work waits for them
Event = dict[str, Any]


@dataclass
class Settings:
    """What the operator chose for this node."""

    max_sandboxes: int = 8192
    starts_at_once: int = field(default_factory=lambda: 2 * (os.cpu_count() or 1))
    floor: Floor = DEFAULT_FLOOR  # below every tenant's egress policy
    learn: bool = False  # whether a policy may let everything above it pass
    gateways: frozenset[str] = frozenset()  # by which sandboxes may leave


class Supervisor:
    """All live sandboxes of one node."""

    def __init__(self, isolation: Isolation, catalog: Catalog, settings: Settings) -> None:
        self.isolation = isolation
        self.catalog = catalog
        self.settings = settings
        self.table = Table()
        self.counters: dict[str, int] = {}
        self.started_at = time.time()
        self._templates: dict[str, tuple[float, Built]] = {}
        self._pools: dict[PoolKey, Pool] = {}
        self._claiming = 0
        self._starting: set[str] = set()
        self._warm: dict[str, Live] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self.resets: dict[str, asyncio.Task[bytes]] = {}  # by id, those under way
        self._slots = asyncio.Semaphore(settings.starts_at_once)
        self._listeners: set[Callable[[Event], None]] = set()
        self._relays: set[Relay] = set()
        self._jobs: list[asyncio.Task[None]] = []
        self.works = Works(catalog) if isinstance(catalog, Both) else None
        for runtime in isolation:
            if isinstance(runtime, Networked):
                runtime.on_flow(self._flowed)

    # -- events and counters --------------------------------------------------------------------------------

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call back with every event from now on; returns how to stop."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def emit(self, kind: str, live: Live, **data: Any) -> None:
        """Tell every listener, and count it."""
        self.counters[kind] = self.counters.get(kind, 0) + 1
        event = {"type": kind, "tenant": live.spec.tenant, "sandbox": live.id, "time": time.time(), "data": data}
        for listener in list(self._listeners):
            listener(event)

    def _flowed(self, sandbox_id: str, data: dict[str, Any]) -> None:
        """What came of a sandbox's connection or question; of one that ended meanwhile nobody is told."""
        live = self.table.find(sandbox_id)
        if live is not None:
            told = {k: v for k, v in data.items() if k != "sandbox"}
            if "misdirected" in told:
                self.emit("secret.misdirected", live, secret=told["misdirected"], **told)
            self.emit(f"egress.{data['verdict']:.20}", live, **told)

    # -- starting -------------------------------------------------------------------------------------------

    def built(self, name: str, *, tenant: str, fresh: bool = False) -> Built:
        """A template, as it was a moment ago at most; now, if `fresh`. Raises NotFound, also for another tenant's."""
        known = self._templates.get(name)
        if not fresh and known is not None and time.monotonic() - known[0] < TEMPLATE_SECONDS:
            built = known[1]
        else:
            built = self._read(name)
        if built.owner not in {"", tenant}:
            raise unknown_template(name)
        return built

    def _read(self, name: str) -> Built:
        try:
            built = self.catalog.read(name if NAME.fullmatch(name) else "")
        except RingfenceError:
            self._templates.pop(name, None)
            raise unknown_template(name) from None
        self._templates[name] = (time.monotonic(), built)
        return built

    def _pool(
        self,
        tenant: str,
        template: str,
        limits: Limits,
        *,
        one_shot: bool,
        lone: bool = False,
        asked: str = AUTO,
        networked: bool = False,
    ) -> Pool:
        built = self.built(template, tenant=tenant)
        runtime = self.isolation.choose(asked, built.template, trusted=built.trusted_root is not None)
        if networked:
            check_network(runtime)
        # An interpreter that is exec'd afresh needs an agent to start it.
        forks = built.template.zygote is ZygoteMode.FORK and built.python is None
        lone = lone and forks and runtime.capabilities().lone
        key = PoolKey(tenant, template, built.digest, shape_of(limits), runtime.name, one_shot, lone, networked)
        pool = self._pools.get(key)
        if pool is not None and not pool.closed:
            return pool
        if len(self._pools) >= MAX_POOLS:
            unwanted = [key for key, known in self._pools.items() if not known.wanted]
            self._drop_pools(sorted(unwanted, key=lambda key: self._pools[key].last_used)[:1])
        usual = shape_of(limits) == shape_of(built.template.limits)

        words = tenant, built.template, built.root, built.digest, limits, one_shot, lone, networked

        def spec() -> StartSpec:
            return StartSpec(new_id("s"), *words, trusted_root=built.trusted_root, python=built.python)

        pool = Pool(
            # Limits of somebody's own choice are kept warm only while they are asked for: there are so many of them.
            policy=built.template.pool if usual else dataclasses.replace(built.template.pool, least=0),
            start=lambda: self._start(runtime, spec()),
            end=self._end_warm,
            slots=self._slots,
        )
        self._pools[key] = pool
        return pool

    def _drop_pools(self, keys: list[PoolKey]) -> None:
        for key in keys:
            self._pools.pop(key).close()

    async def _start(self, runtime: Runtime, spec: StartSpec) -> Live:
        while len(self._ending) >= MAX_ENDING:
            await asyncio.wait(list(self._ending.values()), return_when=asyncio.FIRST_COMPLETED)
        self._starting.add(spec.id)
        try:
            started = await runtime.start(spec)
            link = GuestLink()
            Direct(started.channel, link)
            live = Live(spec, started, link, runtime)
            self._warm[live.id] = live
        finally:
            self._starting.discard(spec.id)
        return live

    def _end_warm(self, live: Live) -> None:
        self._warm.pop(live.id, None)
        self._end_soon(live)

    def warm(self, tenant: str, template: str) -> None:
        """Have a pool ready before the first request asks for it."""
        limits = self.built(template, tenant=tenant).template.limits
        self._pool(tenant, template, limits, one_shot=True, lone=True).refill()

    async def claim(
        self, ask: dict[str, Any], limits: Limits, ttl: float, *, one_shot: bool
    ) -> tuple[Live, dict[str, float]]:
        """A sandbox for this request and no other, with the milliseconds it took to get it."""
        if len(self.table) + self._claiming >= self.settings.max_sandboxes:
            raise OverQuota("this node holds as many sandboxes as it may", code="node_full")
        begun = time.monotonic()
        self._claiming += 1
        try:
            lone, asked = one_shot and ask.get("lone") is True, str(ask.get("isolation", AUTO))
            trust = trust_from(ask)
            policy = with_hosts(self.policy(ask), trust)
            kind = {"one_shot": one_shot, "lone": lone, "networked": policy.networked}
            pool = self._pool(ask["tenant"], ask["template"], limits, asked=asked, **kind)
            live = await pool.take(float(ask.get("wait_seconds", 30.0)))
        finally:
            self._claiming -= 1
        taken = time.monotonic()
        await self.give(live, ask, limits, ttl, policy, trust)
        if one_shot:
            self.counters["runs"] = self.counters.get("runs", 0) + 1  # its run is the event; two would say it twice
        else:
            self.emit("sandbox.created", live, template=ask["template"])
        return live, {"queue": (taken - begun) * 1e3, "claim": (time.monotonic() - taken) * 1e3}

    async def made_now(self, runtime: Runtime, spec: StartSpec) -> Live:
        """One of this very description, from no pool; nobody's until it is given."""
        if len(self.table) + self._claiming >= self.settings.max_sandboxes:
            raise OverQuota("this node holds as many sandboxes as it may", code="node_full")
        self._claiming += 1
        try:
            async with self._slots:
                return await self._start(runtime, spec)
        finally:
            self._claiming -= 1

    def knows(self, name: str) -> bool:
        """Whether there is a sandbox of this id, coming or going."""
        there = self.table.ids() | self._starting | set(self._warm) | {key.split("/")[0] for key in self._ending}
        return name in there

    async def give(
        self, live: Live, ask: dict[str, Any], limits: Limits, ttl: float, policy: Policy, trust: Trust | None
    ) -> None:
        """It becomes its tenant's, and may reach what its policy says."""
        self._warm.pop(live.id, None)
        live.claim(dict(ask.get("labels", {})), limits, ttl, ask.get("created_at"))
        template = live.spec.template
        live.on_timeout, live.wake = ask.get("on_timeout") or template.on_timeout, ask.get("wake", template.wake)
        live.by.claimed(live.id, limits)
        self.table.add(live)
        if policy.networked:
            await self._allow_first(live, policy, trust)
        live.link.lost.add_done_callback(lambda _: self._died(live))

    # -- what it may reach ----------------------------------------------------------------------------------

    def policy(self, ask: dict[str, Any], template: Template | None = None) -> Policy:
        """What was asked for, checked again on this side of the socket; else what the template says, judged here."""
        template = template or self.built(ask["template"], tenant=ask["tenant"]).template
        return policy_of(ask, template, self.settings.floor, self.settings.gateways, learn=self.settings.learn)

    async def _allow_first(self, live: Live, policy: Policy, trust: Trust | None) -> None:
        """Nobody gets a sandbox whose policy is not in force: it would have none, or its predecessor's."""
        try:
            await put_in_force(live, policy, trust)
        except BaseException:
            self.end_beside(live, How.STOPPED, "its network policy could not be put in force")
            raise

    async def allow(self, live: Live, wanted: object) -> None:
        """Change what a sandbox may reach; what it may not any more is cut before this returns.

        Raises BadRequest for a bad policy, and for a sandbox that was made without a network.
        """
        policy = policy_from(wanted, self.settings.floor, learn=self.settings.learn)
        policy = dataclasses.replace(policy, gateway=live.egress.gateway)  # which no policy changes
        if not live.spec.networked:
            raise BadRequest(
                "this sandbox was made without a network and cannot get one",
                code="no_network",
                remediation="create one with egress, if only with an empty list",
            )
        await put_in_force(live, policy)
        live.touch()
        self.emit("sandbox.egress", live, rules=[rule.text for rule in policy.rules][:20])

    def forgotten(self, names: list[str]) -> None:
        """Templates that are there no more: nothing is kept warm of them."""
        for name in names:
            self._templates.pop(name, None)
        self._drop_pools([key for key in self._pools if key.template in names])

    # -- ending ---------------------------------------------------------------------------------------------

    def _died(self, live: Live) -> None:
        """The channel broke: if we did not mean it, say what the kernel knows."""
        if live.state is not State.RUNNING:
            return
        live.state = State.FAILED
        verdict = live.doomed or self.verdict(live)
        self.emit(
            "sandbox.failed", live, how=str(verdict[0]) if verdict else None, reason=verdict[1] if verdict else ""
        )
        self._end_soon(live)

    def verdict(self, live: Live) -> tuple[How, str] | None:
        """What the kernel's counters say killed it, if they say anything."""
        with contextlib.suppress(OSError, PlatformFault):
            if live.by.evidence(live.id).oom_kills:
                return How.OUT_OF_MEMORY, f"needed more than the limit of {live.limits.memory_bytes} bytes"
        return None

    def _end_soon(self, live: Live) -> asyncio.Task[None]:
        task = self._ending.get(live.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._end(live))
            self._ending[live.id] = task
            task.add_done_callback(lambda ended: self._ended(live, ended))
        return task

    def _ended(self, live: Live, task: asyncio.Task[None]) -> None:
        """It is nobody's now; were something of it left, the sweep would find it."""
        self._ending.pop(live.id, None)
        self.table.drop(live)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._failed("end", error)
        elif live.tells and live.doomed is not None:
            live.state = State.STOPPED
            self.emit("sandbox.stopped", live, how=str(live.doomed[0]), reason=live.doomed[1])

    def _failed(self, doing: str, error: BaseException) -> None:
        self.counters[f"{doing}_errors"] = self.counters.get(f"{doing}_errors", 0) + 1
        os.write(2, f"ringfence node: {doing}: {type(error).__name__}: {error}\n".encode())

    async def _end(self, live: Live) -> None:
        live.link.close()
        await live.by.stop(live.id)

    async def stop(self, live: Live, how: How, reason: str) -> None:
        """End a sandbox; its open streams hear why. Returns when nothing of it is left."""
        live.doomed, live.tells = live.doomed or (how, reason), True
        live.state = State.STOPPING
        live.link.close()
        await asyncio.shield(self._end_soon(live))  # an asker who leaves stops neither the stopping nor the telling

    def end_beside(self, live: Live, how: How, reason: str) -> None:
        """End a sandbox while its owner already has the answer."""
        live.doomed = live.doomed or (how, reason)
        live.state = State.STOPPING
        self._end_soon(live)

    async def again(self, old: Live) -> Live:
        """Another of the same id, for the same owner, under the same policy, where nothing is left of the old one."""
        async with self._slots:
            new = await self._start(old.by, old.spec)
        self._warm.pop(new.id, None)
        new.succeed(old)
        new.by.claimed(new.id, new.limits)
        if old.spec.networked:  # also of a policy that allows nothing: until it is told one, the gate keeps silent
            await put_in_force(new, old.egress, old.trust)
        self.table.add(new)
        if old.trust != new.trust:  # a secret was changed meanwhile
            await put_in_force(new, old.egress, old.trust)
        new.link.lost.add_done_callback(lambda _: self._died(new))
        return new

    def failed(self, live: Live, reason: str) -> None:
        """It cannot go on; say why, and end what is left of it."""
        live.state = State.FAILED
        self.emit("sandbox.failed", live, how=None, reason=reason[:500])
        self._end_soon(live)

    # -- streams --------------------------------------------------------------------------------------------

    def open(self, live: Live, payload: bytes, outlet: Outlet, *, program: bool, capped: bool = True) -> Relay:
        """Open a guest stream on behalf of its owner, who caps by himself what a program says that is not capped."""
        cap, beside = live.limits.output_bytes if program else None, live.started.beside
        cap = cap if capped else UNCAPPED
        if beside is not None and live.spent:
            raise BadRequest("a sandbox made for one run takes nothing else", code="one_run_only")
        live.spent = True
        relay = Relay(live, outlet, cap) if beside is None else LoneRelay(live, outlet, cap, beside=beside)
        try:
            relay.begin(payload)
        except frames.FrameError as error:
            raise BadRequest(str(error), code="too_many_streams") from None
        self._relays.add(relay)
        relay.ended.add_done_callback(lambda _: self._relays.discard(relay))
        return relay

    def relays_of(self, live: Live) -> list[Relay]:
        """The streams that are open into a sandbox."""
        return [relay for relay in self._relays if relay.live is live]

    def account(self, relay: Relay, ended: Ended, timings: dict[str, float], ran_until: float) -> dict[str, Any]:
        """The node's part of an answer: verdict, usage and timings."""
        live = relay.live
        usage, override = None, ended.override
        with contextlib.suppress(OSError, PlatformFault):
            usage = live.by.evidence(live.id)
        if ended.answer is None and override is None:
            override = self.verdict(live)
            if override is None:
                raise SandboxLost(
                    "the sandbox vanished before the program's fate was known",
                    remediation="run it again; if it repeats, look at `ringfence why` and the node's log",
                )
        started = relay.started_at or relay.opened_at
        return {
            "sandbox": live.id,
            "override": {"how": str(override[0]), "reason": override[1]} if override else None,
            "oom_kills": usage.oom_kills if usage else 0,
            "oom_hidden": not live.by.capabilities().sees_oom,
            "usage": {
                "cpu_seconds": usage.cpu_seconds if usage else 0.0,
                "peak_memory_bytes": usage.memory_peak_bytes if usage else 0,
                "output_bytes": relay.output_bytes,
                "source": live.limits_by,
            },
            "timings": {
                **timings,
                "start": (started - relay.opened_at) * 1e3,
                "run": (ran_until - started) * 1e3,
                "collect": (time.monotonic() - ran_until) * 1e3,
            },
        }

    # -- the watch ------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Remove what an earlier node left, then start watching."""
        await self.sweep()
        if self.works is not None:
            await self.works.begin()
        loop = asyncio.get_running_loop()
        self._jobs = [loop.create_task(self._every(WATCH_SECONDS, self.watch))]
        self._jobs.append(loop.create_task(self._every(SWEEP_SECONDS, self.sweep)))

    async def _every(self, seconds: float, act: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await act()
            except (OSError, RingfenceError) as error:
                self._failed(act.__name__, error)

    async def watch(self) -> None:
        """One look at everything alive: expiry, CPU time, idleness, and the pools' sizes."""
        for live in self.table.of(None):
            if live.state is State.RUNNING:
                self._watch_one(live)
        for pool in list(self._pools.values()):
            pool.trim()
        self._drop_pools([key for key, pool in self._pools.items() if pool.closed])

    def _watch_one(self, live: Live) -> None:
        limits = live.limits
        if live.held is not None:
            return
        if time.monotonic() >= live.deadline:
            self._time_over(live, How.TIMED_OUT, "its time to live is over", kind="sandbox.expired")
            return
        idle = 0.0 if live.programs else time.monotonic() - live.last_active
        if limits.idle_hard_seconds and idle > limits.idle_hard_seconds:
            self._time_over(live, How.STOPPED, f"idle for {limits.idle_hard_seconds:g} seconds", kind="limit")
            return
        live.expiring = 0.0
        if limits.idle_soft_seconds and idle > limits.idle_soft_seconds and not live.warned:
            self._warn_idle(live, idle)
        if live.programs:
            self._watch_usage(live)

    def _time_over(self, live: Live, how: How, reason: str, kind: str) -> None:
        """Stop it; or let the api pause it, and stop it only if that does not happen."""
        if live.on_timeout == "pause" and not live.expiring:
            live.expiring = time.monotonic() + GRACE_SECONDS
            self.emit("sandbox.expired", live, reason=reason, then="pause")
        elif time.monotonic() >= live.expiring:
            self._doom(live, how, reason, kind=kind)

    def _watch_usage(self, live: Live) -> None:
        used, limits = live.by.usage(live.id), live.limits
        if used.cpu_seconds > limits.cpu_seconds:
            self._doom(live, How.TIMED_OUT, f"used its {limits.cpu_seconds:g} seconds of CPU time")
        elif "memory" not in live.by.capabilities().enforces and used.memory_now_bytes > limits.memory_bytes:
            self._doom(live, How.OUT_OF_MEMORY, f"needed more than the limit of {limits.memory_bytes} bytes")

    def _doom(self, live: Live, how: How, reason: str, kind: str = "limit") -> None:
        live.doomed = live.doomed or (how, reason)
        self.emit(kind, live, reason=reason)
        task = asyncio.get_running_loop().create_task(self.stop(live, how, reason))
        self._ending.setdefault(f"{live.id}/stop", task)
        task.add_done_callback(lambda ended: self._stopped(live, ended))

    def _stopped(self, live: Live, task: asyncio.Task[None]) -> None:
        self._ending.pop(f"{live.id}/stop", None)
        if not task.cancelled():
            task.exception()  # told by _ended; looked at, so that nobody complains that nobody looked

    def _warn_idle(self, live: Live, idle: float) -> None:
        """Tell the owner, and whoever sits at a terminal, while there is still time to extend."""
        live.warned = True
        left = max(0.0, live.limits.idle_hard_seconds - idle) if live.limits.idle_hard_seconds else 0.0
        text = f"idle for {idle:.0f} s" + (f"; it stops in {left:.0f} s unless used or extended" if left else "")
        self.emit("sandbox.idle_warning", live, idle_seconds=idle, stops_in_seconds=left)
        with contextlib.suppress(frames.FrameError):
            live.link.open(json.dumps({"op": "notice", "text": text}).encode(), Nobody())

    async def sweep(self) -> None:
        """Remove whatever the kernel still shows of sandboxes that nobody here owns."""
        known = self.table.ids() | self._starting | set(self._warm) | {k.split("/")[0] for k in self._ending}
        for runtime in self.isolation:
            for orphan in await runtime.found() - known:
                if orphan not in self._starting and orphan not in self._warm and orphan not in self.table.ids():
                    await self._sweep_one(runtime, orphan)

    async def _sweep_one(self, runtime: Runtime, orphan: str) -> None:
        try:
            await runtime.stop(orphan)
        except (OSError, RingfenceError) as error:
            self._failed("sweep", error)
        else:
            self.counters["swept"] = self.counters.get("swept", 0) + 1

    async def close(self) -> None:
        """Stop everything; returns when nothing is left."""
        for job in self._jobs:
            job.cancel()
        if self.resets:
            await asyncio.wait(list(self.resets.values()))
        for pool in self._pools.values():
            await pool.finish()
        for live in self.table.of(None):
            if live.state is State.RUNNING:
                with contextlib.suppress(OSError, RingfenceError):  # counted where it failed; the others end too
                    await self.stop(live, How.STOPPED, "the node is shutting down")
        while self._ending or self._starting:
            if self._ending:
                await asyncio.wait(list(self._ending.values()))
            else:
                await asyncio.sleep(CLOSE_SECONDS)
        for runtime in self.isolation:
            await runtime.close()

    # -- what it tells --------------------------------------------------------------------------------------

    def usage(self, live: Live) -> dict[str, Any]:
        """What a sandbox used so far."""
        used = GroupUsage()
        with contextlib.suppress(OSError, PlatformFault):
            used = live.by.usage(live.id)
        return usage_row(used, live.limits_by)

    def templates(self) -> list[dict[str, Any]]:
        """Every built template, with its pools' state."""
        rows = []
        for built in self.catalog.load().values():
            pools = [pool.describe() for key, pool in self._pools.items() if key.template == built.template.name]
            rows.append(template_row(built, pools))
        return rows

    def runtimes(self) -> list[dict[str, Any]]:
        """Every way to isolate: its layers and what it can honour, or why it is absent."""
        absent = [{"name": name, "available": False, "reason": why} for name, why in self.isolation.absent.items()]
        return [*map(runtime_row, self.isolation), *absent]

    def status(self) -> dict[str, Any]:
        """Numbers for operators."""
        pools = [
            {name: getattr(k, name) for name in ("tenant", "template", "runtime", "one_shot", "lone")} | p.describe()
            for k, p in self._pools.items()
        ]
        return {
            "sandboxes": len(self.table),
            "warm": len(self._warm),
            "ending": len(self._ending),
            "pools": pools,
            "uptime_seconds": time.time() - self.started_at,
            "counters": dict(self.counters),
        }
