"""The node's handle on one zygote: start it, ask it for forks, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.errors import SandboxRefused
from ringfence.guest.plan import BROKEN, Plan
from ringfence.guest.steps import clone_flags
from ringfence.guest.zygote import FAILED, HEADER, ID_SIZE, RANGE, READY, SINGLE, SPAWNED

MAX_MESSAGE: Final = 64 * 1024
READY_SECONDS: Final = 60.0  # importing pandas on a cold page cache takes seconds
SPAWN_SECONDS: Final = 20.0
SLOTS: Final = 4096  # sandboxes one zygote can have alive at once; slot 0 is the zygote itself
LAUNCHER: Final = "ringfence.runtimes.jail.launcher"


@dataclass(frozen=True, slots=True)
class Fork:
    """A child of the zygote that waits for the node's word."""

    pid: int
    pidfd: int


def pid_of(pidfd: int) -> int:
    """The process id behind a pidfd, in our own pid namespace; -1 once it is reaped."""
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 1024).partition(b"\nPid:")[2].split()[0])
    finally:
        os.close(fd)


def _launch(control: socket.socket, config_fd: int) -> int:
    env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, 2, 1),
        (os.POSIX_SPAWN_DUP2, control.fileno(), 3),
        (os.POSIX_SPAWN_DUP2, config_fd, 4),
    ]
    return os.posix_spawn(sys.executable, [sys.executable, "-B", "-m", LAUNCHER], env, file_actions=actions)


@dataclass(eq=False)
class Zygote:
    """One running zygote."""

    name: str
    control: socket.socket
    launcher_pid: int
    config_writer: int
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    _forks: dict[str, asyncio.Future[Fork]] = field(default_factory=dict)
    _slots: list[int] = field(default_factory=lambda: list(range(SLOTS - 1, 0, -1)))
    _watched: int = -1
    block: int = -1  # of uids, its owner's to give back
    idle_since: float = field(default_factory=time.monotonic)  # means something while it is unused

    @classmethod
    def launch(cls, name: str) -> Zygote:
        """Start the launcher; it waits for configure()."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe()
        try:
            pid = _launch(theirs, reader)
        finally:
            theirs.close()
            os.close(reader)
        zygote = cls(name, ours, pid, writer)
        zygote._watch()
        return zygote

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self.control.setblocking(False)
        loop.add_reader(self.control.fileno(), self._readable)
        self._watched = os.pidfd_open(self.launcher_pid)
        loop.add_reader(self._watched, self._died)

    def configure(self, config: dict[str, Any]) -> None:
        """Send the launcher its configuration (blocking: it is reading)."""
        with os.fdopen(self.config_writer, "w") as file:
            json.dump(config, file)
        self.config_writer = -1

    async def wait_ready(self) -> None:
        """Return when the template's imports are in; raises SandboxRefused with the zygote's own words."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.ready
        except TimeoutError:
            raise SandboxRefused("the template's zygote did not become ready in time", code="zygote_slow") from None

    @property
    def alive(self) -> bool:
        """Whether forks can still be had."""
        return not self.dead.is_set()

    def take_slot(self) -> int:
        """A uid range nobody alive uses. Raises SandboxRefused when all are taken."""
        if not self._slots:
            raise SandboxRefused("every uid range of this zygote is in use", code="no_uid_range")
        return self._slots.pop()

    @property
    def unused(self) -> bool:
        """Whether none of its forks is alive or being made."""
        return len(self._slots) == SLOTS - 1

    def give_slot(self, slot: int) -> None:
        """The range's last process is gone."""
        self.idle_since = time.monotonic()
        self._slots.insert(0, slot)  # the longest unused is taken next

    async def fork(self, sandbox_id: str, slot: int, plan: Plan, planned: bytes, ends: list[int]) -> Fork:
        """A child waiting on the first of `ends`. Raises SandboxRefused."""
        future: asyncio.Future[Fork] = asyncio.get_running_loop().create_future()
        self._forks[sandbox_id] = future
        mapped = (RANGE if plan.root else SINGLE) if "user_namespace" not in plan.without else 0
        header = HEADER.pack(clone_flags(plan), mapped, slot, sandbox_id.encode())
        try:
            socket.send_fds(self.control, [header + planned], ends)
            async with asyncio.timeout(SPAWN_SECONDS):
                return await future
        except (TimeoutError, OSError) as error:
            raise SandboxRefused(f"the zygote does not fork: {error}", code="zygote_stuck") from None
        finally:
            self._forks.pop(sandbox_id, None)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            return
        unclaimed = list(fds)
        try:
            self._heard(data[:1], data[1:], unclaimed)
        finally:
            for fd in unclaimed:
                os.close(fd)

    def _heard(self, word: bytes, rest: bytes, fds: list[int]) -> None:
        """Act on one message; a descriptor handed on is taken out of `fds`.

        A template's packages run in there: anything that is not exactly an answer we wait for changes nothing.
        """
        future = self._forks.get(rest[:ID_SIZE].decode("ascii", "replace"))
        if future is not None and not future.done():
            if word == SPAWNED and fds:
                pidfd = fds.pop()
                future.set_result(Fork(pid_of(pidfd), pidfd))
            elif word == FAILED:
                cause = rest[ID_SIZE:].decode("utf-8", "replace")
                future.set_exception(SandboxRefused(f"fork: {cause:.300}", code="fork_failed"))
        elif word == READY and not self.ready.done():
            self.ready.set_result(None)
        elif word == BROKEN and not self.ready.done():
            self.ready.set_exception(
                SandboxRefused(
                    f"the template's zygote cannot start: {rest.decode('utf-8', 'replace'):.1500}",
                    code="zygote_broken",
                    remediation="run `ringfence doctor`; check the template's preload list",
                )
            )

    def _died(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._watched)
        loop.remove_reader(self.control.fileno())
        os.close(self._watched)
        self.control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.launcher_pid, os.WNOHANG)
        self.dead.set()
        lost = SandboxRefused("the zygote died", code="zygote_died")
        for future in self._forks.values():
            if not future.done():
                future.set_exception(lost)
        if not self.ready.done():
            self.ready.set_exception(lost)
            self.ready.exception()  # marked as seen: nobody may be waiting

    def kill(self) -> None:
        """End it and, through its pid namespace, every sandbox forked from it."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watched, signal.SIGKILL)
        if self.config_writer >= 0:
            os.close(self.config_writer)
            self.config_writer = -1
