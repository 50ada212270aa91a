"""Send SIGKILL and SIGSTOP to every process there is: the parent, process 1, a range of numbers, and everyone.

On a host where the process namespace is missing this would end the host's processes, so it looks first.
"""

import os
import signal

from ringfence.attack.probes.prelude import attempt, facts, say


def own_namespace() -> bool:
    """True only when our process namespace is known not to be the host's."""
    host = facts.get("namespaces", {}).get("pid")
    return bool(host) and os.readlink("/proc/self/ns/pid") not in {host, "pid:[4026531836]"}


def victims() -> list[int]:
    """Process 1, our parent, and every number up to a few thousand but ours."""
    return [pid for pid in (1, os.getppid(), *range(2, 5000)) if pid not in {0, os.getpid()}]


if not own_namespace():
    say(found=["this is the host's process namespace: nothing was signalled"], tried=1)
    raise SystemExit(0)
for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGKILL):
    for pid in victims():
        attempt(os.kill, pid, number)
everyone = attempt(os.kill, -1, signal.SIGKILL)
group = attempt(os.killpg, 1, signal.SIGKILL)
say(found=[], tried=5000, everyone=everyone, group=group, alive_after=True)
