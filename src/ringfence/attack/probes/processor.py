"""Spin on many processes and threads at once, and see how much processor time the wall clock gave us."""

import os
import threading
import time

from ringfence.attack.probes.prelude import facts, say

SECONDS = facts.get("seconds", 3.0)


def spin(until: float) -> None:
    """Burn."""
    while time.monotonic() < until:
        sum(range(2000))


start = time.monotonic()
until = start + SECONDS
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        workers = [threading.Thread(target=spin, args=(until,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
took = time.monotonic() - start
times = os.times()
used = times.user + times.system + times.children_user + times.children_system
say(used=used, took=took, cores=used / took, visible=os.cpu_count(), affinity=len(os.sched_getaffinity(0)))
