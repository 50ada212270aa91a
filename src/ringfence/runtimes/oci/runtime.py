"""The verbs of runtimes/base.py over a container tool: one launcher, one tool, one guest a sandbox."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ringfence.claims import Claims
from ringfence.domain.errors import RingfenceError, SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import ID
from ringfence.domain.template import ZygoteMode
from ringfence.guest import runner
from ringfence.guest import syscalls as sc
from ringfence.guest.boot import GVISOR, PLAIN
from ringfence.guest.plan import HOME, Plan, plan_to
from ringfence.network.network import NAMESERVER, Network
from ringfence.runtimes.base import Capabilities, GroupUsage, Layer, StartSpec
from ringfence.runtimes.grouped import GOVERN_AFTER, Grouped
from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.seccomp.compile import compile_filter
from ringfence.runtimes.oci import bundle, fences
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.versions import Found
from ringfence.runtimes.ready import ready
from ringfence.runtimes.wired import OnWires, Wired

LAUNCHER: Final = "ringfence.runtimes.oci.launcher"
REPORT_SECONDS: Final = 20.0
READY_SECONDS: Final = 60.0  # a template's imports on a cold page cache take seconds, under gVisor more
GONE_SECONDS: Final = 30.0
THREADS: Final = 8
LOG_BYTES: Final = 8192  # of what the tool says, its last words
DATA_SPARE: Final = 64 * 1024 * 1024  # what a template's imports hold already when the limit is set
_PIECE: Final = 65536
T = TypeVar("T")


class Log:
    """The last words of a tool, read whenever it says something, so that it never has to wait for us."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.reader, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self.reader, _PIECE)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self.reader)
        self._kept += data
        del self._kept[:-LOG_BYTES]

    def words(self) -> str:
        """What was said, on one line."""
        self._readable()
        text = self._kept.decode("utf-8", "replace")
        return " ".join(text.split())[-600:]

    def close(self) -> None:
        """Nobody is interested any more."""
        self._loop.remove_reader(self.reader)
        os.close(self.reader)
        self.close_writer()

    def close_writer(self) -> None:
        """The tool has its own copy now."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1


@dataclass(slots=True)
class Boxed:
    """One live sandbox of this runtime."""

    id: str
    channel: socket.socket
    layers: tuple[str, ...]
    pid: int  # of its agent or, under gVisor, of the tool: who is to be looked at from outside
    pidfd: int  # of the tool, process 1 of the outer namespace: with it goes everything
    tool_pid: int
    slot: int
    log: Log  # read for as long as the tool lives: one that cannot write its log is killed by that
    beside: tuple[int, int, int] | None = None  # a lone run has an agent here like any other


@dataclass(eq=False)
class Launch:
    """A start under way: what has been made so far, so that it can be taken away again."""

    slot: int
    log: Log
    host: socket.socket
    guest: socket.socket
    config: tuple[int, int]
    report: tuple[int, int]
    namespace: int = -1  # with its wire laid, where it has one
    launcher: int = 0
    pid: int = 0
    pidfd: int = -1

    @classmethod
    def begin(cls, slot: int) -> Launch:
        """All descriptors that a start needs, or none. Raises OSError."""
        with contextlib.ExitStack() as made:
            host, guest = socket.socketpair()
            made.callback(host.close)
            made.callback(guest.close)
            host.setblocking(False)
            config = os.pipe2(os.O_CLOEXEC)
            made.callback(_close, config)
            report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            made.callback(_close, report)
            launch = cls(slot, Log(), host, guest, config, report)
            made.pop_all()
            return launch

    def close_ends(self) -> None:
        """Close all that only the start needed."""
        self.guest.close()
        _close((*self.config, *self.report, self.namespace))
        self.config, self.report, self.namespace = (-1, -1), (-1, -1), -1

    def take_config(self) -> int:
        """The writing end of the configuration; whoever takes it closes it."""
        writer, self.config = self.config[1], (self.config[0], -1)
        return writer

    def told(self) -> int:
        """The pid that the launcher told; 0 when it did not."""
        data = b""
        if self.report[0] >= 0:
            with contextlib.suppress(BlockingIOError):
                data = os.read(self.report[0], 64)
        return int(data) if data.strip().isdigit() else 0

    def close_report(self) -> None:
        """Our own copy of what the launcher writes to, so that its end is noticed."""
        os.close(self.report[1])
        self.report = (self.report[0], -1)


class Oci(OnWires):
    """See runtimes/base.py for what each verb promises.

    `name` is "container" or "gvisor"; `tool` is the program that makes its sandboxes (versions.py chooses it).
    `without` and `fault` weaken or break the set-up so that tests can show what each layer holds back; no command,
    file or variable reaches them.
    """

    def __init__(
        self,
        tool: Found,
        groups: Groups,
        carried: Carried,
        *,
        network: Network | None = None,
        without: frozenset[str] = frozenset(),
        fault: str = "",
    ) -> None:
        """Needs root and a running loop. Raises SandboxRefused for a tool that may not be used."""
        if not tool.usable:
            raise SandboxRefused(tool.refusal, code="tool_refused", remediation="install a newer version of it")
        self.name = tool.tool.isolation
        self._tool = tool
        self._kernel = GVISOR if self.name == "gvisor" else PLAIN
        self._groups = groups
        self._carried = carried
        self._without = without
        self._fault = fault
        self._seccomp = base64.b64encode(compile_filter()).decode()
        # gVisor's sandboxes take the upper half, so that both runtimes may serve one node.
        half = bundle.SLOTS // 2
        first = half if self._kernel == GVISOR else 0
        self._slots = Claims("oci", range(first, first + half))  # one for each sandbox, and no other server's
        self._live: dict[str, Boxed] = {}
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=self.name)
        self._grouped = Grouped(groups, self._threads, self._pid_of, without)
        self._wired = Wired(network)
        self._can = self._capabilities()

    # -- what it can do -------------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """What the tool and this host's groups let it enforce."""
        return self._can

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=fences.ISOLATION[self._kernel].format(tool=f"{self._tool.tool.name} {self._tool.version}"),
            fork_warm=False,
            pty=True,
            users=frozenset({"user", "root"}),
            enforces=self._groups.enforces,
            limits_by=self._groups.kind,
            # There the host ends a thread of gVisor's, and the program in it is said to have exited.
            sees_oom=self._kernel != GVISOR,
            offline=self._wired.offline,
        )

    def layers(self) -> list[Layer]:
        """Every fence, with the reason where one is missing."""
        return fences.layers(self._kernel, self._groups.missing, sc.landlock_abi())

    # -- start ----------------------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> Boxed:
        """Launch, attach to the limits while nobody waits, send the orders, hear that it is ready."""
        if spec.writable:
            raise SandboxRefused("builds are made in jails", code="build_unsuited")
        carried = await self._in_thread(self._carried.tree)
        slot = self._slots.take()
        try:
            launch = Launch.begin(slot)
        except OSError as error:
            self._slots.give(slot)
            raise SandboxRefused(f"no descriptors for another sandbox: {error}", code="no_descriptors") from error
        try:
            layers = await self._launch(spec, launch, str(carried))
        except BaseException as error:
            words, killed = launch.log.words(), self.evidence(spec.id).oom_kills
            launch.host.close()
            await self._clear(spec.id, launch)
            if killed:
                raise _too_small(spec) from error
            if isinstance(error, TimeoutError | OSError | RingfenceError):
                raise _explained(error, words) from error
            raise
        agent = launch.pid if self._kernel == GVISOR else _child_of(launch.pid)
        boxed = Boxed(spec.id, launch.host, layers, agent, launch.pidfd, launch.pid, launch.slot, launch.log)
        self._live[spec.id] = boxed
        return boxed

    async def _launch(self, spec: StartSpec, launch: Launch, carried: str) -> tuple[str, ...]:
        limits = bundle.group_limits(self._grouped.limits(spec.limits), self._kernel)
        await self._in_thread(lambda: self._groups.create(spec.id, limits))
        if spec.networked:
            launch.namespace = await self._wired.namespace(spec.id)
        launch.launcher = _spawn(launch)
        await self._in_thread(lambda: self._groups.attach(spec.id, launch.launcher))
        config = json.dumps(self._config(spec, launch.slot, carried)).encode()
        writer = launch.take_config()
        await self._in_thread(lambda: _write_all(writer, config))
        async with asyncio.timeout(REPORT_SECONDS):
            pid = await self._report(launch)
        launch.pid, launch.pidfd = pid, os.pidfd_open(pid)
        await self._in_thread(lambda: _bury(launch))
        launch.close_ends()
        launch.log.close_writer()
        await self._loop.sock_sendall(launch.host, runner.encode_order(self._orders(spec)))
        async with asyncio.timeout(READY_SECONDS):
            inside = await ready(launch.host)
        return fences.in_force(self._kernel, set(inside), self._groups.enforces, self._without)

    def _config(self, spec: StartSpec, slot: int, carried: str) -> dict[str, Any]:
        shape = bundle.Shape(self._kernel, slot, self._tool.tool.name, self._without, spec.networked)
        return {
            "bundle": bundle.config(spec.template, spec.limits, shape),
            "command": bundle.command(shape, self._tool.path, spec.id),
            "template_root": str(spec.template_root),
            "carried": carried,
            "uid": shape.uid_base,
            "groups": self._tool.tool.name == "runc",
            "time_namespace": "time_namespace" not in self._without,
            "resolver": NAMESERVER if spec.networked else "",
        }

    def _orders(self, spec: StartSpec) -> dict[str, Any]:
        """What the guest is told over its channel; see guest/boot.py."""
        image = spec.template.image
        return {
            "plan": plan_to(self._plan(spec)).decode(),
            "seccomp": self._seccomp,
            "kernel": self._kernel,
            "preload": list(spec.template.preload),
            "env": bundle.environment(spec.template),
            "python": bundle.PYTHON if image is None else image.python,
            "own": image is None,
            "user": "" if image is None else image.user or "0:0",
            "workdir": HOME if image is None else image.workdir,
        }

    def _plan(self, spec: StartSpec) -> Plan:
        limits = spec.limits
        return Plan(
            root=True,
            scratch_bytes=limits.scratch_bytes,
            scratch_files=limits.scratch_files,
            processes=limits.processes,
            open_files=limits.open_files,
            cpu_seconds=limits.cpu_seconds,
            data_bytes=0 if "memory" in self._groups.enforces else limits.memory_bytes + DATA_SPARE,
            warm_runner=spec.one_shot,
            exec_runner=spec.template.image is not None or spec.template.zygote is ZygoteMode.NONE,
            time_namespace=True,
            resolver=NAMESERVER if spec.networked else "",
            without=self._without,
            fault=self._fault,
        )

    async def _report(self, launch: Launch) -> int:
        """The tool's pid, from its launcher; what the launcher said instead is in the log."""
        launch.close_report()
        told = asyncio.Event()
        self._loop.add_reader(launch.report[0], told.set)
        try:
            await told.wait()
        finally:
            self._loop.remove_reader(launch.report[0])
        pid = launch.told()
        if not pid:
            raise SandboxRefused("the sandbox could not be launched", code="not_launched")
        return pid

    def claimed(self, sandbox_id: str, limits: Limits) -> None:
        """Somebody uses it now: its memory limit begins to make room for files.

        Not under gVisor, where the host cannot tell files from memory: there the limit holds both from the start.
        """
        if self._kernel != GVISOR:
            self._grouped.govern(sandbox_id, limits, GOVERN_AFTER)

    def _pid_of(self, sandbox_id: str) -> int | None:
        boxed = self._live.get(sandbox_id)
        return boxed.tool_pid if boxed is not None else None

    # -- stop -----------------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Kill the tool, and with it its namespaces; wait for the kernel to say so; take the groups away."""
        boxed = self._live.pop(sandbox_id, None)
        if boxed is None:
            await self._remove_group(sandbox_id)
            return
        boxed.channel.close()
        try:
            await self._wired.cut(sandbox_id)  # first: what is about to end talks to nobody any more
        finally:
            await _gone(boxed.tool_pid, boxed.pidfd)
            boxed.log.close()
            await self._remove_group(sandbox_id)
            self._slots.give(boxed.slot)

    async def _clear(self, sandbox_id: str, launch: Launch) -> None:
        """Take away what a failed start had made, from wherever it failed."""
        try:
            await self._wired.cut(sandbox_id)
        finally:
            await self._unmake(sandbox_id, launch)

    async def _unmake(self, sandbox_id: str, launch: Launch) -> None:
        launch.guest.close()
        if launch.launcher > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(launch.launcher, signal.SIGKILL)
            await self._in_thread(lambda: _reap(launch.launcher))
        # The launcher may have died between making the tool and telling of it: then it is known by its group alone.
        strays = [launch.told(), *await self._in_thread(lambda: self._groups.pids(sandbox_id))]
        launch.close_ends()
        launch.log.close()
        if launch.pidfd >= 0:
            await _gone(launch.pid, launch.pidfd)
        await self._remove_group(sandbox_id)
        for pid in filter(None, strays):
            await self._in_thread(lambda pid=pid: _reap(pid))  # type: ignore[misc]
        self._slots.give(launch.slot)

    async def _remove_group(self, sandbox_id: str) -> None:
        await self._in_thread(lambda: self._groups.remove(sandbox_id, GONE_SECONDS))

    def evidence(self, sandbox_id: str) -> GroupUsage:
        """The few counters an answer needs, read cheaply."""
        return self._grouped.evidence(sandbox_id)

    def usage(self, sandbox_id: str) -> GroupUsage:
        """The group's counters where there is one: gVisor's own kernel and the tool are in them too."""
        return self._grouped.usage(sandbox_id)

    async def found(self) -> set[str]:
        """Those alive, and groups: all that can outlive a sandbox, for everything else dies with its tool."""
        groups = await self._in_thread(self._groups.list)
        return {name for name in groups if ID.fullmatch(name)} | set(self._live)

    async def close(self) -> None:
        """Stop every sandbox, then give the groups' parents back."""
        for sandbox_id in list(self._live):
            await self.stop(sandbox_id)
        await self._wired.close()
        self._grouped.close()
        self._slots.close()
        for name in await self.found():
            await self._remove_group(name)
        await self._in_thread(self._groups.close)
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._threads, call)


def _close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


def _spawn(launch: Launch) -> int:
    """Start the launcher from this thread: its parent-death signal is this thread's, which lives as long as we do."""
    # Pipes all three, never a device or a file: tools give their standard streams to the container's root, and crun
    # gave away the host's own /dev/null (CVE-2026-88265).
    empty, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    actions = [
        (os.POSIX_SPAWN_DUP2, empty, 0),
        (os.POSIX_SPAWN_DUP2, launch.log.writer, 1),
        (os.POSIX_SPAWN_DUP2, launch.log.writer, 2),
        (os.POSIX_SPAWN_DUP2, launch.guest.fileno(), 3),
        (os.POSIX_SPAWN_DUP2, launch.config[0], 4),
        (os.POSIX_SPAWN_DUP2, launch.report[1], 5),
    ]
    if launch.namespace >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, launch.namespace, 6))
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    try:
        return os.posix_spawn(sys.executable, [sys.executable, "-B", "-S", "-m", LAUNCHER], env, file_actions=actions)
    finally:
        os.close(empty)


def _child_of(tool: int) -> int:
    """The process a tool made, as the host counts; the tool itself while it is not to be seen."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{tool}/task"):
            # Its threads come and go: one that is gone is no reason to look at no other.
            with contextlib.suppress(OSError), open(f"/proc/{tool}/task/{thread}/children") as file:
                if children := file.read().split():
                    return int(children[0])
    return tool


def _write_all(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as file:  # its log says why
        file.write(data)


def _explained(error: Exception, words: str) -> SandboxRefused:
    said = f" ({words})" if words else ""
    if isinstance(error, RingfenceError):
        return SandboxRefused(error.cause + said, code=error.code, remediation=error.remediation)
    return SandboxRefused(f"the sandbox did not become ready: {error or type(error).__name__}{said}", code="not_ready")


def _too_small(spec: StartSpec) -> SandboxRefused:
    return SandboxRefused(
        f"{spec.limits.memory_bytes // 1024**2} MiB of memory are too little to start template {spec.template.name} in",
        code="memory_too_small",
        remediation="ask for more memory_bytes, or for a template that imports less at its start",
    )


def _reap(pid: int, options: int = 0) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, options)


def _bury(launch: Launch) -> None:
    """The launcher has said its word: forget it, and wait for its end.

    Both at once: a start that is given up before this was begun waits for it itself, and one that is given up
    meanwhile does not kill who has its number by then.
    """
    launcher, launch.launcher = launch.launcher, 0
    _reap(launcher)


async def _gone(pid: int, pidfd: int) -> None:
    """Kill and wait: a pid namespace's process 1 ends only after everything in it has."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                await ended.wait()
        _reap(pid, os.WNOHANG)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
