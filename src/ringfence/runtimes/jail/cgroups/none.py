"""No resource groups: every call does nothing, and `missing` says why. The jail's rlimits are all that is left."""

from __future__ import annotations

from ringfence.domain.limits import Limits
from ringfence.runtimes.jail.cgroups.base import Groups, GroupUsage, Pids
from ringfence.runtimes.jail.cgroups.governor import Governor


class NoGroups(Groups):
    """Enforces nothing for a sandbox as a whole: rlimits count per process, or per host uid."""

    kind = "rlimits"

    def __init__(self, reason: str) -> None:
        self.enforces = frozenset()
        self.missing = dict.fromkeys(("memory", "cpu", "pids"), reason)
        self.governor = Governor(None)

    def create(self, name: str, limits: Limits) -> None:
        """Nothing to make."""

    def attach(self, name: str, pid: int) -> None:
        """Nowhere to put it."""

    def usage(self, name: str) -> GroupUsage:
        """Nothing is known."""
        del name
        return GroupUsage()

    def kill(self, name: str) -> None:
        """Leave it to the caller, who ends the sandbox by its process 1."""

    def pids(self, name: str) -> Pids:
        """Nobody is in a group that is not there."""
        del name
        return []

    def remove(self, name: str, deadline_seconds: float) -> bool:
        """Nothing is left of nothing."""
        del name, deadline_seconds
        return True

    def list(self) -> set[str]:
        """No group can be left behind."""
        return set()

    def close(self) -> None:
        """Close the governor's descriptor."""
        self.governor.close()
