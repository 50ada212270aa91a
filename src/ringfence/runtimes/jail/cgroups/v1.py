"""cgroup v1: the memory, cpu, cpuacct and pids hierarchies, mounted separately or together."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringfence.domain.limits import MIB, Limits
from ringfence.runtimes.jail.cgroups.base import GroupUsage
from ringfence.runtimes.jail.cgroups.governor import Reading, Setting, Traits
from ringfence.runtimes.jail.cgroups.tree import (
    CPU_PERIOD_US,
    OWN_PROCESSES,
    Tree,
    get,
    get_table,
    number_or_0,
    put,
    table_or_empty,
)

#: Socket buffers are counted apart on v1. Ours only ever speak over loopback: an eighth of memory is plenty.
TCP_PART: Final = 8
#: The one threshold rings, in either direction, at half of the memory limit. The kernel compares only every 128
#: pages per processor, so a group counts as quiet not below that half but below a quarter: the fall in between is
#: long enough to have been noticed, and the next rise rings again.
BELL_PART, QUIET_PART = 2, 4


class V1(Tree):
    """One directory per hierarchy; `where` maps a controller to its parent directory."""

    kind = "cgroup v1"
    # Lowering the limit drops page cache on our time: 32 MiB are about 3 ms.
    traits = Traits(quiet_part=QUIET_PART, reclaim_bytes=32 * MIB)

    def __init__(self, where: dict[str, Path], missing: dict[str, str]) -> None:
        """Keep where each controller is; those mounted together share a directory, made only once."""
        self._where = where
        enforces = frozenset({"memory", "cpu", "pids"} & where.keys() - missing.keys())
        super().__init__(tuple(dict.fromkeys(where.values())), enforces, missing)

    def _settings(self, limits: Limits) -> Iterator[tuple[Path, str, int | str, bool]]:
        if "memory" in self.enforces:
            memory = self._where["memory"]
            yield memory, "memory.limit_in_bytes", limits.memory_bytes, True
            # memory plus swap may never be less than memory, hence this order; equal means no swap.
            yield memory, "memory.memsw.limit_in_bytes", limits.memory_bytes, False
            yield memory, "memory.swappiness", 0, False
            yield memory, "memory.kmem.tcp.limit_in_bytes", limits.memory_bytes // TCP_PART, False
        if "cpu" in self.enforces:
            yield self._where["cpu"], "cpu.cfs_period_us", CPU_PERIOD_US, True
            yield self._where["cpu"], "cpu.cfs_quota_us", int(limits.cpus * CPU_PERIOD_US), True
        if "pids" in self.enforces:
            yield self._where["pids"], "pids.max", limits.processes + OWN_PROCESSES, True

    def _file(self, controller: str, name: str, file: str) -> str:
        # A controller that is not there reads as a file that is not there, that is as 0.
        return f"{self._where.get(controller, '/nonexistent')}/{name}/{file}"

    def evidence(self, name: str) -> GroupUsage:
        """Three small reads, about 40 us."""
        return GroupUsage(
            cpu_seconds=number_or_0(self._file("cpuacct", name, "cpuacct.usage")) / 1e9,
            memory_peak=number_or_0(self._file("memory", name, "memory.max_usage_in_bytes")),
            oom_kills=table_or_empty(self._file("memory", name, "memory.oom_control")).get("oom_kill", 0),
        )

    def usage(self, name: str) -> GroupUsage:
        """Six small reads, about 70 us."""
        stat = table_or_empty(self._file("memory", name, "memory.stat"))
        return GroupUsage(
            cpu_seconds=number_or_0(self._file("cpuacct", name, "cpuacct.usage")) / 1e9,
            memory_now=number_or_0(self._file("memory", name, "memory.usage_in_bytes")),
            memory_peak=number_or_0(self._file("memory", name, "memory.max_usage_in_bytes")),
            anon_bytes=stat.get("rss", 0),
            shmem_bytes=stat.get("shmem", 0),
            processes=number_or_0(self._file("pids", name, "pids.current")),
            oom_kills=table_or_empty(self._file("memory", name, "memory.oom_control")).get("oom_kill", 0),
        )

    def bell(self, name: str, limits: Limits) -> tuple[int, int]:
        """Open an eventfd that the kernel rings at the threshold. It waits for one RCU grace period, 12 to 16 ms."""
        path = self._where["memory"] / name
        ring = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            usage = os.open(path / "memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)
            try:
                put(path / "cgroup.event_control", f"{ring} {usage} {limits.memory_bytes // BELL_PART}")
            finally:
                os.close(usage)
        except OSError:
            os.close(ring)
            raise
        return ring, select.EPOLLIN

    def hush(self, fd: int) -> None:
        """Take the eventfd's count."""
        os.eventfd_read(fd)

    def reading(self, name: str) -> Reading:
        """Two reads; OSError when the group is gone."""
        path = self._where["memory"] / name
        usage = int(get(path / "memory.usage_in_bytes"))
        stat = get_table(path / "memory.stat")
        return Reading(usage, stat["shmem"], stat["inactive_file"] + stat["active_file"])

    def turn(self, name: str, setting: Setting, before: int) -> None:
        """Both limits, in the order that keeps memory within memory plus swap."""
        path = self._where["memory"] / name
        files = [
            each for each in (path / "memory.limit_in_bytes", path / "memory.memsw.limit_in_bytes") if each.exists()
        ]
        for file in reversed(files) if setting.hard > before else files:
            put(file, setting.hard)
