"""Usage of a sandbox without a group of its own: add up what /proc says of its processes, from outside.

Weaker than a group: what dies between two looks is not counted, and a limit is only noticed at the next look.
`doctor` says so where this is all a host gives us.
"""

from __future__ import annotations

import os
from typing import Final

from ringfence.runtimes.base import GroupUsage

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
MOST: Final = 8192  # processes looked at, so that a fork bomb cannot hold the node up


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def tree(pid: int) -> list[int]:
    """A process and everything below it; orphans are process 1's children, so nothing of a sandbox is missed."""
    found: list[int] = []
    queue = [pid]
    while queue and len(found) < MOST:
        one = queue.pop()
        found.append(one)
        queue += [int(child) for child in _read(f"/proc/{one}/task/{one}/children").split()]
    return found


def usage_of(pid: int) -> GroupUsage:
    """CPU time and resident memory of a sandbox whose process 1 is `pid`; shared pages count once, roughly."""
    cpu = memory = processes = 0
    for one in tree(pid):
        fields = _read(f"/proc/{one}/stat").rpartition(")")[2].split()
        sizes = _read(f"/proc/{one}/statm").split()
        if len(fields) < 22 or len(sizes) < 3:
            continue
        processes += 1
        cpu += sum(int(x) for x in fields[11:15])  # utime, stime and those of reaped children
        memory += (int(sizes[1]) - int(sizes[2])) * _PAGE  # resident, less what is file-backed
    return GroupUsage(cpu_seconds=cpu / _TICKS, memory_now_bytes=memory, processes=processes)
