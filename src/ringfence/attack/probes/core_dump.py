"""Crash with a large heap, again and again: nothing of it may reach the host's disk."""

import mmap
import os
import resource
import signal

from ringfence.attack.probes.prelude import attempt, facts, in_child, say


def crash() -> str:
    """Ask for a core of any size, then abort."""
    attempt(resource.setrlimit, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    area = mmap.mmap(-1, facts.get("bytes", 64 << 20))
    area.write(b"RFCORE" * 1000)
    os.chdir(os.path.expanduser("~"))
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()


fates = [in_child(crash, seconds=30) for _ in range(facts.get("times", 20))]
raised = attempt(resource.setrlimit, resource.RLIMIT_CORE, (1, 1))
say(
    fates=sorted(set(fates)),
    raised=raised,
    left=[n for n in os.listdir(os.path.expanduser("~")) if "core" in n],
    limit=resource.getrlimit(resource.RLIMIT_CORE),
)
