"""cgroup v2: one directory in the unified hierarchy, at its top or below a group delegated to us."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

from ringfence.domain.limits import Limits
from ringfence.runtimes.jail.cgroups.base import GroupUsage
from ringfence.runtimes.jail.cgroups.governor import THROTTLED_PART, Reading, Setting, Traits
from ringfence.runtimes.jail.cgroups.tree import (
    CPU_PERIOD_US,
    OWN_PROCESSES,
    Tree,
    checked,
    get,
    get_table,
    number_or_0,
    put,
    table_or_empty,
)


class V2(Tree):
    """One directory per sandbox."""

    kind = "cgroup v2"
    # The tasks themselves drop page cache at memory.high. memory.max is never set below what is in use: the kernel
    # would at once kill for it.
    traits = Traits(quiet_part=0, reclaim_bytes=0)

    def __init__(self, parent: Path, missing: dict[str, str]) -> None:
        self._parent = parent
        super().__init__((parent,), frozenset({"memory", "cpu", "pids"} - missing.keys()), missing)

    def _settings(self, limits: Limits) -> Iterator[tuple[Path, str, int | str, bool]]:
        for file, value, needed in self._values(limits):
            yield self._parent, file, value, needed

    def _values(self, limits: Limits) -> Iterator[tuple[str, int | str, bool]]:
        if "memory" in self.enforces:
            yield "memory.max", limits.memory_bytes, True
            yield "memory.high", limits.memory_bytes - limits.memory_bytes // THROTTLED_PART, True
            yield "memory.swap.max", 0, False
            # Only the offending program dies; the agent survives and reports it.
            yield "memory.oom.group", 0, False
        if "cpu" in self.enforces:
            yield "cpu.max", f"{int(limits.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}", True
        if "pids" in self.enforces:
            yield "pids.max", limits.processes + OWN_PROCESSES, True
        # No groups below a sandbox's, should one ever reach a cgroup mount.
        yield "cgroup.max.descendants", 0, False

    def kill(self, name: str) -> None:
        """One write since Linux 5.14; before, signal by signal."""
        try:
            put(self._parent / checked(name) / "cgroup.kill", 1)
        except FileNotFoundError:
            super().kill(name)

    def usage(self, name: str) -> GroupUsage:
        """Six small reads, about 70 us."""
        path = self._parent / name
        stat = table_or_empty(path / "memory.stat")
        now = number_or_0(path / "memory.current")
        return GroupUsage(
            cpu_seconds=table_or_empty(path / "cpu.stat").get("usage_usec", 0) / 1e6,
            memory_now=now,
            # memory.peak came with Linux 5.19.
            memory_peak=number_or_0(path / "memory.peak") or now,
            anon_bytes=stat.get("anon", 0),
            shmem_bytes=stat.get("shmem", 0),
            processes=number_or_0(path / "pids.current"),
            oom_kills=table_or_empty(path / "memory.events").get("oom_kill", 0),
        )

    def bell(self, name: str, limits: Limits) -> tuple[int, int]:
        """Open memory.events, which says EPOLLPRI whenever the throttle or the limit was met since it was read."""
        fd = os.open(self._parent / name / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
        os.pread(fd, 4096, 0)
        return fd, select.EPOLLPRI

    def hush(self, fd: int) -> None:
        """Read it."""
        os.pread(fd, 4096, 0)

    def reading(self, name: str) -> Reading:
        """Two reads; OSError when the group is gone."""
        path = self._parent / name
        usage = int(get(path / "memory.current"))
        stat = get_table(path / "memory.stat")
        return Reading(usage, stat["shmem"], stat["inactive_file"] + stat["active_file"])

    def turn(self, name: str, setting: Setting, before: int) -> None:
        """Both limits, so ordered that the throttle is never above the limit for long enough to matter."""
        path = self._parent / name
        values = {"memory.max": setting.hard, "memory.high": setting.throttle or "max"}
        for file in values if setting.hard > before else reversed(values):
            put(path / file, values[file])
