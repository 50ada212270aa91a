"""What a bench could leave on the machine, looked for after everything was stopped. The answer should be: nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from ringfence.bench.groups import Groups, groups_named
from ringfence.bench.processes import command_line, text, tree

GRACE_SECONDS: Final = 5.0


def left(work: Path, groups: Groups, children_before: frozenset[int]) -> list[str]:
    """Everything still there that this bench made, after a moment's grace; one sentence each."""
    until = time.monotonic() + GRACE_SECONDS
    while True:
        found = _left(work, groups, children_before)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _left(work: Path, groups: Groups, children_before: frozenset[int]) -> list[str]:
    found = [f"process {pid}: {command_line(pid)[:120]}" for pid in tree(os.getpid()) if pid not in children_before]
    if groups.exist():
        found.append(f"control groups of the server: {groups.memory or groups.cpu}")
    found += [f"control group {path}" for path in groups_named(f"ringfence-bench-{work.name[-8:]}-*")]
    found += [f"mount {line.split()[4]}" for line in text("/proc/self/mountinfo").splitlines() if str(work) in line]
    if work.exists():
        found.append(f"directory {work}")
    return found
