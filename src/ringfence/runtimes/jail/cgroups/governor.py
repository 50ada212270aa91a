"""The memory governor: two limits, for programs and for files, out of the one the kernel has.

The kernel charges a tmpfs file to the memory group of whoever wrote it, so one number would have to hold both the
programs' memory (`memory_bytes`) and the files (`scratch_bytes`). Were it their sum, a program could use the files'
share as memory; were it `memory_bytes`, writing a file that fits in the scratch would end in an OOM kill. So the
limit moves: it is always `memory_bytes` plus what files hold, plus a little for files being written just now.

What is guaranteed (memory = memory_bytes, files = tmpfs and shared memory, which the kernel counts as one):

    both   Everything together stays within memory + scratch + IN_FLIGHT. The kernel enforces it: past the limit in
           force, its OOM killer ends the largest program in the group. The governor only moves that limit.
    both   Without files (less than 1 MiB) programs stay within memory, exactly. With files they stay within
           memory + min(files, IN_FLIGHT). Kernel objects (page tables, pipes, inodes) count as programs' memory.
    both   Freed files lower the limit again at the next look: at most 250 ms later, and sooner the less room
           programs have, so that one that allocates RATE bytes a second meanwhile is still within the line above.
           Should the governor be late, the program keeps what it has got by then, and gets no more.
    v2     A file up to the scratch limit ends in ENOSPC, not in an OOM kill: just below the limit lies
           `memory.high`, where the kernel slows the writer until the governor has raised both.
    v1     The same, provided the governor runs in time (watchman.py), for v1 has nothing that slows a writer. The
           first look comes when half of memory is in use, and each next one before RATE could fill the room left. A
           program whose own memory is within a few MiB of the limit and that writes files at full speed at that
           moment may meet the OOM killer early.

Why not `memory.oom_control` with the killer disabled, so that tasks wait: only page faults of user code wait there.
write(2) into a tmpfs returns ENOMEM at once and read(2) into fresh memory EFAULT, and the agent, being in the same
group, would meet those too. Measured on Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import Final, Protocol

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import MIB, Limits

#: Slack for files being written between two looks: 20 ms of the fastest tmpfs writer measured, with a whole core.
IN_FLIGHT: Final = 64 * MIB
#: No sandbox fills memory faster than this (bytes a second); looks are timed by it.
RATE: Final = 8192 * MIB
#: Bounds of the pause between two looks. A look costs 40 us, so the least pause costs 0.4 % of a core.
LEAST_PAUSE: Final = 0.010
MOST_PAUSE: Final = 0.250
#: A limit is not put closer than this above what is in use, so that setting it never has to wait for the kernel.
MARGIN: Final = 1 * MIB
#: memory.high lies this part below memory.max. The kernel's throttle is quadratic in the relative excess: from 1 %
#: on a writer sleeps, at 6 % a quarter of a second for every 256 KiB. Reaching memory.max, unnoticed by us, so takes
#: 2 s with a limit of 100 MiB, and 10 s with one of 512 MiB.
THROTTLED_PART: Final = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes charged to a group: all of them, its files (shmem), and the page cache the kernel can drop."""

    usage: int
    shmem: int
    cache: int


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the limits go. `throttle` is None where the kernel has no such limit, or it would only hinder."""

    hard: int
    throttle: int | None


@dataclass(frozen=True, slots=True)
class Traits:
    """How one kind of group behaves.

    `quiet_part`: below memory/quiet_part the bell surely rings before it matters, so nobody need look; 0 when the
    bell rings at the throttle. `reclaim_bytes`: how much page cache one lowering of the limit may have to drop.
    """

    quiet_part: int
    reclaim_bytes: int


def settle(limits: Limits, before: int, reading: Reading, traits: Traits) -> tuple[Setting, float | None]:
    """Decide the limits for what is in use now, and the pause before the next look (None: when the bell rings).

    `before` is the hard limit in force.
    """
    used = reading.usage - reading.cache
    throttled = not traits.quiet_part
    start = limits.memory_bytes
    quiet = start - start // THROTTLED_PART if throttled else start // traits.quiet_part
    if used < quiet and reading.usage < start:
        return Setting(start, quiet if throttled else None), None
    files = min(reading.shmem, limits.scratch_bytes) // MIB * MIB
    wanted = start + files + min(files, IN_FLIGHT)
    # Only ever a reason to lower the limit by less: it must not rise because programs have reached it.
    lowest = min(before, max(used, reading.usage - traits.reclaim_bytes) + MARGIN)
    high = wanted - wanted // THROTTLED_PART
    # Above the throttle it is not files that fill the group: slowing it down would only delay the OOM killer.
    setting = Setting(max(wanted, lowest), high if throttled and used < high else None)
    return setting, min(MOST_PAUSE, max(LEAST_PAUSE, (wanted - used) / RATE))


class Dial(Protocol):
    """What the governor needs of one kind of group. All but `bell` return without waiting."""

    traits: Traits

    def bell(self, name: str, limits: Limits) -> tuple[int, int]:
        """Open a descriptor; with it, the epoll events by which it says that memory needs a look."""

    def hush(self, fd: int) -> None:
        """Take note of a bell, so that it can ring again."""

    def reading(self, name: str) -> Reading:
        """Read what is charged now. OSError when the group is gone."""

    def turn(self, name: str, setting: Setting, before: int) -> None:
        """Set the limits; `before` is the hard limit in force. OSError when the kernel refuses."""


@dataclass(slots=True)
class _Watch:
    name: str
    limits: Limits
    fd: int
    setting: Setting
    due: float
    rung: bool = False


class Governor:
    """Watches many groups through one descriptor. `watch` and `forget` may be called from other threads.

    Without a dial (no memory limit to govern) it is a governor with nothing to do.
    """

    def __init__(self, dial: Dial | None) -> None:
        self._dial = dial
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._bells: dict[int, _Watch] = {}
        self._fds: dict[str, int] = {}
        # Only these are looked at by time; the others wait for their bell.
        self._due: dict[str, _Watch] = {}

    @property
    def fd(self) -> int:
        """The one descriptor for the node's event loop; readable when `govern` has something to do."""
        return self._epoll.fileno()

    @property
    def urgent(self) -> bool:
        """Whether a limit that is moved late is met: nothing slows a group down before."""
        return self._dial is not None and bool(self._dial.traits.quiet_part)

    def watch(self, name: str, limits: Limits) -> None:
        """Govern a group just created with these limits. Blocks up to 20 ms on v1. Costs one descriptor.

        Raises SandboxRefused when the kernel offers no way to hear of it.
        """
        if self._dial is None:
            return
        try:
            fd, events = self._dial.bell(name, limits)
        except OSError as error:
            raise SandboxRefused(
                f"layer memory governor: could not watch {name}: {error.strerror}", code="group_refused"
            ) from error
        watch = _Watch(name, limits, fd, Setting(limits.memory_bytes, None), time.monotonic())
        with self._lock:
            # Watched already: the new limits count.
            self._drop(name)
            self._bells[fd] = watch
            self._fds[name] = fd
            # A first look soon: what happened before the bell was there rang nothing.
            self._due[name] = watch
            self._epoll.register(fd, events)

    def forget(self, name: str) -> None:
        """Stop governing; the limit stays where it is. Harmless for a group not watched."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            self._due.pop(name, None)
            del self._bells[fd]
            self._epoll.unregister(fd)
            os.close(fd)

    def govern(self) -> float | None:
        """Look at every group whose bell rang or whose time has come; about 50 us each, never waiting.

        Call it when `fd` is readable, and again after the number of seconds it returns (None: only when readable).
        """
        with self._lock:
            if self._dial is None or self._epoll.closed:
                return None
            now = time.monotonic()
            for fd, _ in self._epoll.poll(0):
                watch = self._bells[fd]
                watch.due, watch.rung = now, True
                self._due[watch.name] = watch
            for watch in [each for each in self._due.values() if each.due <= now]:
                self._look(self._dial, watch, now)
            return min((each.due - now for each in self._due.values()), default=None)

    def _look(self, dial: Dial, watch: _Watch, now: float) -> None:
        try:
            if watch.rung:
                dial.hush(watch.fd)
                watch.rung = False
            setting, pause = settle(watch.limits, watch.setting.hard, dial.reading(watch.name), dial.traits)
            if setting != watch.setting:
                dial.turn(watch.name, setting, watch.setting.hard)
                watch.setting = setting
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                self._drop(watch.name)
                return
            # EBUSY and the like: what is in use grew while we looked.
            pause = LEAST_PAUSE
        if pause is None:
            del self._due[watch.name]
        else:
            watch.due = now + pause

    def close(self) -> None:
        """Forget every group and close the descriptor."""
        with self._lock:
            for name in list(self._fds):
                self._drop(name)
            self._epoll.close()
