"""What /proc says of processes and of the machine: who belongs to whom, processor time, shared memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICK: Final = os.sysconf("SC_CLK_TCK")
KIB: Final = 1024
#: Everything of meminfo that a sandbox can cost: its own pages, shared memory, and the kernel's books about it.
COSTS: Final = ("AnonPages", "Shmem", "Slab", "PageTables", "KernelStack", "Percpu")


def text(path: str | Path) -> str:
    """A file of /proc or /sys; empty when it is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` on."""
    return text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """A process's descendants, parents before children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def command_line(pid: int) -> str:
    """Its words, joined by spaces."""
    return text(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads, ended ones included; 0 when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK if len(fields) > 12 else 0.0


def machine_cpu_seconds() -> float:
    """Processor time anybody has used on this machine, interrupts included."""
    numbers = [int(word) for word in text("/proc/stat").split("\n", 1)[0].split()[1:]]
    idle, waiting = numbers[3], numbers[4]
    stolen = sum(numbers[7:])  # by the hypervisor; guests' time is counted twice
    return (sum(numbers) - idle - waiting - stolen) / TICK


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of them all together: a page that n processes share counts once."""
    total = 0
    for pid in pids:
        for line in text(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * KIB
    return total


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            found[name] = int(rest.split()[0]) * KIB
    return found


def machine_cost() -> dict[str, int]:
    """What programs and the kernel's books about them hold on this machine, page cache apart, in bytes by kind."""
    now = meminfo()
    return {name: now.get(name, 0) for name in COSTS}
