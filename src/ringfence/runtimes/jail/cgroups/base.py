"""The promise of a resource group, and the figures it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ringfence.domain.limits import Limits
from ringfence.runtimes.jail.cgroups.governor import Governor

#: Groups has a method called list, which would hide the type in its own annotations.
Pids = list[int]


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a sandbox has used so far, as the kernel counts it from outside.

    `memory_now` is everything charged to the group: programs, files on its tmpfs, kernel objects and page cache.
    `shmem_bytes` are its tmpfs files and its shared memory, which the kernel does not tell apart.
    `processes` counts threads too. A figure the machine cannot give is 0.
    """

    cpu_seconds: float = 0.0
    memory_now: int = 0
    memory_peak: int = 0
    anon_bytes: int = 0
    shmem_bytes: int = 0
    processes: int = 0
    oom_kills: int = 0


class Groups(ABC):
    """One resource group per sandbox, named by the sandbox's id. Calls block; the node makes them in threads.

    `kind` is "cgroup v1", "cgroup v2" or "rlimits". `enforces` holds those of "memory", "cpu" and "pids" that the
    kernel enforces for the whole sandbox; `missing` gives the reason for each of the others.
    """

    kind: str
    enforces: frozenset[str]
    missing: dict[str, str]
    governor: Governor

    @abstractmethod
    def create(self, name: str, limits: Limits) -> None:
        """Make the group and set every limit, before any process is in it.

        Raises SandboxRefused naming the layer on any failure, after removing what it had made. The caller then
        calls `governor.watch(name, limits)`, which may take a kernel grace period (15 ms) on v1 and so is its own
        call: it can run beside the rest of the start.
        """

    @abstractmethod
    def attach(self, name: str, pid: int) -> None:
        """Move the process `pid`, all its threads and so all its future children, into the group.

        Raises SandboxRefused on any failure; the process may then be in some hierarchies, and `remove` ends it.
        """

    @abstractmethod
    def usage(self, name: str) -> GroupUsage:
        """Read what the sandbox has used. All zero for a group that does not exist."""

    def evidence(self, name: str) -> GroupUsage:
        """Read what an ended program's answer needs: CPU time, peak memory, OOM kills. The rest may be 0."""
        return self.usage(name)

    @abstractmethod
    def kill(self, name: str) -> None:
        """Send SIGKILL to every process in the group, also to those forking meanwhile. Does not wait for them.

        The group is then good only for `usage` and `remove`. Harmless for one that does not exist.
        """

    @abstractmethod
    def pids(self, name: str) -> Pids:
        """List the processes in any hierarchy of the group; empty for one that does not exist."""

    @abstractmethod
    def remove(self, name: str, deadline_seconds: float) -> bool:
        """Kill, wait until empty, remove from every hierarchy, from whatever state an earlier crash left.

        True when nothing is left, also when nothing was there; False when something is still busy at the deadline,
        in which case the call may be repeated. A zombie does not keep a group busy.
        """

    @abstractmethod
    def list(self) -> set[str]:
        """Names present in any hierarchy, half-made ones included, so that a sweep finds them after a crash."""

    @abstractmethod
    def close(self) -> None:
        """Stop governing and remove the parent directories that are empty. Groups still there are left alone."""
