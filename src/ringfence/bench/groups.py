"""The server's control groups, read from outside: memory charged, processor time, and how many there are.

They are found through one of the server's processes, so this works wherever the server was allowed to put them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.bench.processes import text

ZYGOTE: Final = "zygote-"


def _mounts() -> dict[str, Path]:
    """Mount point by controller; `` is the unified hierarchy."""
    found: dict[str, Path] = {}
    for line in text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        if kind == "cgroup2":
            found.setdefault("", where)
        elif kind == "cgroup":
            for controller in options.split(","):
                found.setdefault(controller, where)
    return found


def _places(pid: int) -> dict[str, Path]:
    """The instance's directory by controller, told by one process of a zygote."""
    mounts, found = _mounts(), {}
    for line in text(f"/proc/{pid}/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        head, mark, _ = path.rpartition(f"/{ZYGOTE}")
        for name in names.split(","):
            if mark and name in mounts:
                found[name] = mounts[name] / head.lstrip("/")
    return found


@dataclass(frozen=True, slots=True)
class Groups:
    """One server's groups. Where the machine gives it none, every figure is None."""

    memory: Path | None = None
    cpu: Path | None = None
    unified: bool = False

    @classmethod
    def of(cls, pids: list[int]) -> Groups:
        """The groups to which any of these processes belongs as a zygote."""
        for pid in pids:
            places = _places(pid)
            if "memory" in places:
                return cls(places["memory"], places.get("cpuacct"))
            if "" in places:
                return cls(places[""], places[""], unified=True)
        return cls()

    def charged_bytes(self) -> int | None:
        """Memory charged to the whole hierarchy: every sandbox and zygote, kernel memory and files included."""
        if self.memory is None:
            return None
        return _number(self.memory / ("memory.current" if self.unified else "memory.usage_in_bytes"))

    def cpu_seconds(self) -> tuple[float, float] | None:
        """Processor time of (zygotes, sandboxes) so far; sandboxes that are gone count."""
        if self.cpu is None:
            return None
        zygotes = sum(self._cpu(path) for path in self._below(self.cpu) if path.name.startswith(ZYGOTE))
        return zygotes, self._cpu(self.cpu) - zygotes

    def _cpu(self, path: Path) -> float:
        if not self.unified:
            return (_number(path / "cpuacct.usage") or 0) / 1e9
        fields = dict(line.split() for line in text(path / "cpu.stat").splitlines())
        return int(fields.get("usage_usec", 0)) / 1e6

    @staticmethod
    def _below(path: Path) -> list[Path]:
        try:
            with os.scandir(path) as entries:
                return [Path(entry.path) for entry in entries if entry.is_dir()]
        except OSError:
            return []

    def sandboxes(self) -> int:
        """How many sandboxes have a group now, warm ones and those being taken apart included."""
        below = self._below(self.memory) if self.memory else []
        return sum(not path.name.startswith(ZYGOTE) for path in below)

    def pids(self) -> list[int]:
        """Every process in them."""
        below = self._below(self.memory) if self.memory else []
        return [int(pid) for path in below for pid in text(path / "cgroup.procs").split()]

    def exist(self) -> bool:
        """Whether a directory of them is there."""
        return any(path is not None and path.exists() for path in (self.memory, self.cpu))


def _number(path: Path) -> int | None:
    found = text(path).strip()
    return int(found) if found else None


def dying_groups() -> int | None:
    """Groups that were removed and that the kernel still keeps, machine-wide: what was charged to them is in use."""
    mounts = _mounts()
    if "memory" in mounts:
        for line in text("/proc/cgroups").splitlines():
            fields = line.split()
            if fields[0] == "memory":
                return int(fields[2]) - 1 - sum(len(names) for _, names, _ in os.walk(mounts["memory"]))
    for line in text(mounts.get("", Path("/nonexistent")) / "cgroup.stat").splitlines():
        if line.startswith("nr_dying_descendants "):
            return int(line.split()[1])
    return None


def network_namespaces() -> int | None:
    """Network namespaces the kernel keeps, those it is still taking apart included; None where it does not tell."""
    for line in text("/proc/slabinfo").splitlines():
        if line.startswith("net_namespace "):
            return int(line.split()[1])
    return None


def groups_named(pattern: str) -> list[Path]:
    """Groups at the top of any hierarchy, by a pattern of their name."""
    return [path for mount in set(_mounts().values()) for path in mount.glob(pattern)]
