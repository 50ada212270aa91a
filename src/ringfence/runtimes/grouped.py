"""What every runtime with groups does with them: limits as tests leave them, counters, and the governor's turns."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.runtimes.base import GroupUsage
from ringfence.runtimes.jail import walk
from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.cgroups.watchman import Watchman

GOVERN_AFTER: Final = 0.05  # seconds of use: shorter runs cannot write enough for their limit to need moving
#: A layer left out by a test becomes a limit nobody reaches.
_LIFTED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("memory_limit", {"memory_bytes": 16 * 1024**3}),
    ("cpu_limit", {"cpus": 64.0}),
    ("pids_limit", {"processes": 4096}),
)


class Grouped:
    """The groups of one runtime, on the node's loop."""

    def __init__(
        self, groups: Groups, threads: Executor, pid_of: Callable[[str], int | None], without: frozenset[str]
    ) -> None:
        """`pid_of` gives the first process of a sandbox that lives, None of any other."""
        self._groups = groups
        self._threads = threads
        self._pid_of = pid_of
        self._without = without
        self._loop = asyncio.get_running_loop()
        self._watchman = Watchman(groups.governor, ahead=groups.governor.urgent)

    def limits(self, limits: Limits) -> Limits:
        """The limits for a group."""
        lifted: dict[str, Any] = {}
        for layer, wide in _LIFTED:
            if layer in self._without:
                lifted.update(wide)
        return dataclasses.replace(limits, **lifted)

    # -- counters -------------------------------------------------------------------------------------------

    def evidence(self, sandbox_id: str) -> GroupUsage:
        """The few counters an answer needs, read cheaply."""
        if not self._groups.enforces:
            return self.usage(sandbox_id)
        seen = self._groups.evidence(sandbox_id)
        return GroupUsage(cpu_seconds=seen.cpu_seconds, memory_peak_bytes=seen.memory_peak, oom_kills=seen.oom_kills)

    def usage(self, sandbox_id: str) -> GroupUsage:
        """The group's counters; where there is no group, those of the sandbox's processes one by one."""
        if not self._groups.enforces:
            pid = self._pid_of(sandbox_id)
            return walk.usage_of(pid) if pid is not None else GroupUsage()
        seen = self._groups.usage(sandbox_id)
        return GroupUsage(
            cpu_seconds=seen.cpu_seconds,
            memory_now_bytes=seen.memory_now,
            memory_peak_bytes=seen.memory_peak,
            processes=seen.processes,
            oom_kills=seen.oom_kills,
        )

    # -- the governor ---------------------------------------------------------------------------------------

    def govern(self, sandbox_id: str, limits: Limits, after: float) -> None:
        """Have its memory limit make room for files from so many seconds on; until then it is merely hard."""
        self._watchman.begin()
        self._loop.call_later(after, self._watch, sandbox_id, limits)

    def _watch(self, sandbox_id: str, limits: Limits) -> None:
        if self._pid_of(sandbox_id) is not None:
            self._threads.submit(self._watch_quietly, sandbox_id, limits)

    def _watch_quietly(self, sandbox_id: str, limits: Limits) -> None:
        with contextlib.suppress(OSError, SandboxRefused):  # it ended meanwhile
            self._groups.governor.watch(sandbox_id, limits)
            self._watchman.look()

    def close(self) -> None:
        """Stop governing; the groups themselves are their owner's to close."""
        self._watchman.close()
