"""The jail: sandboxes forked from zygotes, fenced by the kernel's own means, at the speed of a fork."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ringfence.claims import Claims
from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.domain.template import ZygoteMode
from ringfence.guest import steps
from ringfence.guest import syscalls as sc
from ringfence.guest.plan import SLOT_SIZE, Plan, plan_to
from ringfence.network.network import NAMESERVER, Network
from ringfence.runtimes import environment
from ringfence.runtimes.base import Capabilities, GroupUsage, Layer, StartSpec
from ringfence.runtimes.grouped import GOVERN_AFTER, Grouped
from ringfence.runtimes.jail.batch import Batch
from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.seccomp.compile import compile_filter
from ringfence.runtimes.jail.zygotes import SLOTS, Fork, Zygote
from ringfence.runtimes.ready import died, ready
from ringfence.runtimes.wired import OnWires, Wired

READY_SECONDS: Final = 20.0
GONE_SECONDS: Final = 30.0
REST_SECONDS: Final = 600.0  # a zygote without sandboxes ends after this; the next request starts another
MOST_PLANS: Final = 256  # kept ready to be sent
ZYGOTE_GONE: Final = frozenset({"zygote_died", "zygote_stuck", "died_in_setup"})
DATA_SPARE: Final = 64 * 1024 * 1024  # what a zygote's imports hold already when the limit is set
GROUP_THREADS: Final = 16  # joining a v1 group can wait 10 ms for the kernel; starts must not queue behind it
SMALL_MEMORY: Final = 256 * 1024 * 1024  # below it, files written at full speed could fill it before then
UID_FLOOR: Final = 0x2000_0000  # above every range a distribution hands out in /etc/subuid by default
UID_BLOCK: Final = SLOTS * SLOT_SIZE
UID_BLOCKS: Final = (0xFFFF_0000 - UID_FLOOR) // UID_BLOCK
_ZYGOTE_LIMITS: Final = Limits(memory_bytes=2 * 1024**3, cpus=64, processes=4096)
T = TypeVar("T")


@dataclass(slots=True)
class Jailed:
    """One live sandbox of this runtime."""

    id: str
    channel: socket.socket
    layers: tuple[str, ...]
    pid: int
    pidfd: int
    slot: int
    zygote: Zygote
    beside: tuple[int, int, int] | None = None

    def hang_up(self) -> None:
        """Close what leads into it."""
        self.channel.close()
        beside, self.beside = self.beside, None
        for fd in beside or ():
            os.close(fd)


class Ends:
    """Both sides of what connects a sandbox: its channel and, for a lone run, its outputs and the page for its fate."""

    def __init__(self, *, lone: bool) -> None:
        """Raises OSError when there are no descriptors left; then none is held."""
        self.host, self._guest = socket.socketpair()
        self.host.setblocking(False)
        self.beside: tuple[int, int, int] | None = None
        self._ours: list[int] = []
        self._theirs: list[int] = []
        if lone:
            try:
                self._open()
            except OSError:
                self.close()
                raise

    def _open(self) -> None:
        for _ in range(2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._ours.append(reader)
            self._theirs.append(writer)
            os.set_blocking(reader, False)
        page = os.memfd_create("fate", os.MFD_CLOEXEC)
        self._ours.append(page)
        os.ftruncate(page, mmap.PAGESIZE)
        self.beside = (self._ours[0], self._ours[1], page)

    @property
    def guests(self) -> list[int]:
        """The descriptors to hand to the zygote."""
        return [self._guest.fileno(), *self._theirs, *self._ours[2:]]

    def give(self) -> None:
        """The sandbox has its own copies now."""
        self._guest.close()
        theirs, self._theirs = self._theirs, []
        for fd in theirs:
            os.close(fd)

    def close(self) -> None:
        """Both sides."""
        self.give()
        self.host.close()
        ours, self._ours = self._ours, []
        for fd in ours:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class ZygoteKey:
    """Sandboxes share a zygote only within one tenant and one template."""

    tenant: str
    template: str
    digest: str


class Jail(OnWires):
    """See runtimes/base.py for what each verb promises.

    `without` and `fault` weaken or break the set-up so that tests can show what each layer holds back; no
    command, file or variable reaches them. `compiled` says where our own code's compiled files are, if anywhere:
    without them each zygote compiles it for itself.
    """

    name = "jail"

    def __init__(
        self,
        groups: Groups,
        *,
        privileged: bool,
        network: Network | None = None,
        compiled: Callable[[], Path | None] = lambda: None,
        rest_seconds: float = REST_SECONDS,
        without: frozenset[str] = frozenset(),
        fault: str = "",
    ) -> None:
        self._groups = groups
        self._privileged = privileged
        self._without = without
        self._fault = fault
        self._wired = Wired(network)
        self._compiled = compiled
        self._seccomp = base64.b64encode(compile_filter()).decode()
        self._zygotes: dict[ZygoteKey, Zygote] = {}
        self._young: set[Zygote] = set()  # not ready yet
        self._retiring: set[asyncio.Task[None]] = set()
        self._rest_seconds = rest_seconds
        self._starting: dict[ZygoteKey, asyncio.Lock] = {}
        self._blocks = Claims("jail", range(UID_BLOCKS))  # one for each zygote, and no other server's
        self._live: dict[str, Jailed] = {}
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(GROUP_THREADS, thread_name_prefix="groups")
        self._plans: dict[tuple[Any, ...], tuple[Plan, bytes]] = {}
        self._joining = Batch(self._threads)
        self._leaving = Batch(self._threads)
        self._grouped = Grouped(groups, self._threads, self._pid_of, without)
        self._can = self._capabilities()

    # -- what it can do -------------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """A shared kernel behind every layer this host has."""
        return self._can

    def _capabilities(self) -> Capabilities:
        users = frozenset({"user", "root"}) if self._privileged else frozenset({"user"})
        return Capabilities(
            isolation="namespaces, seccomp and Landlock on a shared kernel",
            fork_warm=True,
            pty=True,
            users=users,
            enforces=self._groups.enforces,
            limits_by=self._groups.kind,
            lone=True,
            offline=self._wired.offline,
        )

    def layers(self) -> list[Layer]:
        """Every fence, with the reason where one is missing."""
        abi = sc.landlock_abi()
        missing = {f"{name}_limit": reason for name, reason in self._groups.missing.items()}
        if not abi:
            missing["landlock"] = "this kernel has no Landlock (5.13 or newer, lsm=landlock)"
        if not self._privileged:
            missing["uid_range"] = "without root all sandboxes share the host uid of whoever started them"
        names = [*steps.NAMESPACES, "time_namespace", *(n for n in steps.LAYERS if n not in steps.NAMESPACES)]
        names += ["reseed", "memory_limit", "cpu_limit", "pids_limit"]
        return [Layer(name, name not in missing, missing.get(name, "")) for name in names]

    # -- start ----------------------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> Jailed:
        """A ready sandbox. When the zygote dies under it, another is started and the fork tried once more."""
        try:
            return await self._start(spec)
        except SandboxRefused as error:
            if error.code not in ZYGOTE_GONE:
                raise
            return await self._start(spec)

    async def _start(self, spec: StartSpec) -> Jailed:
        """Fork, attach to the limits while nobody waits, let it set up, hear that it is ready."""
        zygote = await self._zygote(spec)
        ends = Ends(lone=spec.lone)
        slot = 0
        fork: Fork | None = None
        try:
            slot = zygote.take_slot()
            limits = self._grouped.limits(spec.limits)
            plan, planned = self._planned(spec)
            fork = await zygote.fork(spec.id, slot, plan, planned, ends.guests)
            pid = fork.pid
            # It waits for our word: nothing of it runs before it is in its group.
            await self._joining.do(lambda: self._into_group(spec.id, pid, limits))
            if spec.networked:
                await self._wired.lay(spec.id, pid)
            ends.give()
            ends.host.send(b"G")
            async with asyncio.timeout(READY_SECONDS):
                inside = await ready(ends.host)
        except BaseException as error:
            ends.close()
            await self._clear(spec.id, fork, slot, zygote)
            if isinstance(error, ConnectionError):
                raise died() from error
            if isinstance(error, TimeoutError | OSError):
                raise SandboxRefused(f"the sandbox did not become ready: {error}", code="not_ready") from error
            raise
        limited = sorted({f"{kind}_limit" for kind in self._groups.enforces} - self._without)
        layers = (*inside, *limited)
        jailed = Jailed(spec.id, ends.host, layers, fork.pid, fork.pidfd, slot, zygote, ends.beside)
        self._live[spec.id] = jailed
        return jailed

    def _into_group(self, sandbox_id: str, pid: int, limits: Limits) -> None:
        self._groups.create(sandbox_id, limits)
        self._groups.attach(sandbox_id, pid)

    def claimed(self, sandbox_id: str, limits: Limits) -> None:
        """Somebody uses it now."""
        self._grouped.govern(sandbox_id, limits, GOVERN_AFTER if limits.memory_bytes >= SMALL_MEMORY else 0.0)

    def _pid_of(self, sandbox_id: str) -> int | None:
        jailed = self._live.get(sandbox_id)
        return jailed.pid if jailed is not None else None

    def _planned(self, spec: StartSpec) -> tuple[Plan, bytes]:
        """The plan and how it is sent; there are far fewer kinds of them than sandboxes."""
        kind = spec.template.zygote, spec.python is not None
        key = (spec.limits, spec.one_shot, spec.lone, kind, spec.networked, spec.writable)
        known = self._plans.get(key)
        if known is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            plan = self._plan(spec)
            known = self._plans[key] = (plan, plan_to(plan))
        return known

    def _plan(self, spec: StartSpec) -> Plan:
        limits = spec.limits
        return Plan(
            root=self._privileged,
            scratch_bytes=limits.scratch_bytes,
            scratch_files=limits.scratch_files,
            processes=limits.processes,
            open_files=limits.open_files,
            cpu_seconds=limits.cpu_seconds,
            data_bytes=0 if "memory" in self._groups.enforces else limits.memory_bytes + DATA_SPARE,
            warm_runner=spec.one_shot,
            lone=spec.lone,
            exec_runner=spec.template.zygote is ZygoteMode.NONE or spec.python is not None,
            time_namespace=True,
            resolver=NAMESERVER if spec.networked else "",
            writable=spec.writable,
            without=self._without,
            fault=self._fault,
        )

    async def _zygote(self, spec: StartSpec) -> Zygote:
        key = ZygoteKey(spec.tenant, spec.template.name, spec.template_digest)
        async with self._starting.setdefault(key, asyncio.Lock()):
            known = self._zygotes.get(key)
            if known is not None:
                if known.alive:
                    return known
                self._blocks.give(known.block)  # what ran there has died with it
            return await self._new_zygote(key, spec)

    async def _new_zygote(self, key: ZygoteKey, spec: StartSpec) -> Zygote:
        block = self._blocks.take() if self._privileged else 0
        try:
            zygote = Zygote.launch(f"zygote-{spec.id}")
        except BaseException:
            self._blocks.give(block)
            raise
        zygote.block = block
        self._young.add(zygote)
        try:
            await self._in_thread(lambda: self._groups.create(zygote.name, _ZYGOTE_LIMITS))
            await self._in_thread(lambda: self._groups.attach(zygote.name, zygote.launcher_pid))
            env = {**environment.BASE, **dict(spec.template.env)}
            compiled = await self._in_thread(self._compiled)
            zygote.configure(
                {
                    "root": self._privileged,
                    "uid_base": UID_FLOOR + block * UID_BLOCK,
                    "uid_count": UID_BLOCK,
                    "template_root": str(spec.template_root),
                    "trusted_root": str(spec.trusted_root or spec.template_root),
                    "compiled": str(compiled or ""),
                    "without": sorted(self._without),
                    "zygote": {
                        "python": spec.python,
                        "seccomp": self._seccomp,
                        "preload": list(spec.template.preload) if spec.template.zygote is ZygoteMode.FORK else [],
                        # A tenant's variables are not for what runs before the fences stand: a linker reads them.
                        "env": environment.BASE if spec.trusted_root else env,
                        "late_env": env if spec.trusted_root else {},
                    },
                }
            )
            await zygote.wait_ready()
            self._zygotes[key] = zygote
        except BaseException:
            zygote.kill()
            await self._end_zygote(zygote)
            raise
        finally:
            self._young.discard(zygote)
        return zygote

    # -- stop -----------------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Kill process 1, and with it the namespace; wait for the kernel to say so; take the groups away."""
        jailed = self._live.pop(sandbox_id, None)
        if jailed is None:
            await self._in_thread(lambda: self._groups.remove(sandbox_id, GONE_SECONDS))
            return
        jailed.hang_up()
        await self._clear(sandbox_id, Fork(jailed.pid, jailed.pidfd), jailed.slot, jailed.zygote)

    async def _clear(self, sandbox_id: str, fork: Fork | None, slot: int, zygote: Zygote) -> None:
        try:
            await self._wired.cut(sandbox_id)  # first: what is about to end talks to nobody any more
        finally:
            await self._end(sandbox_id, fork, slot, zygote)

    async def _end(self, sandbox_id: str, fork: Fork | None, slot: int, zygote: Zygote) -> None:
        if fork is not None:
            await _gone(fork.pidfd)
            os.close(fork.pidfd)
        # All that was in the group has gone with its pid namespace; where the kernel still counts, it is waited for.
        if not await self._leaving.do(lambda: self._groups.remove(sandbox_id, 0.0)):
            await self._in_thread(lambda: self._groups.remove(sandbox_id, GONE_SECONDS))
        if slot:
            zygote.give_slot(slot)
            if zygote.unused:
                self._loop.call_later(self._rest_seconds, self._retire, zygote)

    def _retire(self, zygote: Zygote) -> None:
        """End a zygote that nobody has needed for a while: a tenant who is away costs no memory."""
        for key, known in list(self._zygotes.items()):
            rested = time.monotonic() - zygote.idle_since >= self._rest_seconds
            if known is zygote and zygote.unused and rested:
                del self._zygotes[key]
                zygote.kill()
                ending = self._loop.create_task(self._end_zygote(zygote))
                self._retiring.add(ending)
                ending.add_done_callback(self._retiring.discard)

    def evidence(self, sandbox_id: str) -> GroupUsage:
        """The few counters an answer needs, read cheaply."""
        return self._grouped.evidence(sandbox_id)

    def usage(self, sandbox_id: str) -> GroupUsage:
        """Read the kernel's counters, the group's where there is one."""
        return self._grouped.usage(sandbox_id)

    async def found(self) -> set[str]:
        """Those alive, and groups: all that can outlive a sandbox, for everything else dies with its process 1."""
        seen = await self._in_thread(self._groups.list) | set(self._live)
        return seen - {z.name for z in (*self._zygotes.values(), *self._young) if z.alive}

    async def _end_zygote(self, zygote: Zygote) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                await zygote.dead.wait()
        await self._in_thread(lambda: self._groups.remove(zygote.name, GONE_SECONDS))
        self._blocks.give(zygote.block)

    async def close(self) -> None:
        """Stop every sandbox, then every zygote, then give the groups' parents back."""
        for sandbox_id in list(self._live):
            await self.stop(sandbox_id)
        await self._wired.close()
        while self._zygotes:  # one that rests long enough may go by itself meanwhile
            zygote = self._zygotes.popitem()[1]
            zygote.kill()
            await self._end_zygote(zygote)
        if self._retiring:
            await asyncio.wait(list(self._retiring))
        self._grouped.close()
        self._blocks.close()
        for name in await self._in_thread(self._groups.list):  # of zygotes that died by themselves
            await self._in_thread(lambda name=name: self._groups.remove(name, GONE_SECONDS))  # type: ignore[misc]
        await self._in_thread(self._groups.close)
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _gone(pidfd: int) -> None:
    """Kill and wait: a pid namespace's process 1 ends only after everything in it has."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, _settle, ended)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                await ended
    finally:
        loop.remove_reader(pidfd)
