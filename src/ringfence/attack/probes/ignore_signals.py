"""Outlive the deadline: ignore what can be ignored, handle SIGTERM with a loop, leave a stopped child behind."""

import os
import signal
import sys
import time

from ringfence.attack.probes.prelude import facts, say


def forever(*_: object) -> None:
    """A handler that never returns."""
    while True:
        time.sleep(0.1)


for number in range(1, 65):
    try:
        signal.signal(number, forever if number == signal.SIGTERM else signal.SIG_IGN)
    except (OSError, ValueError):
        continue
if os.fork() == 0:
    os.setsid()
    os.kill(os.getpid(), signal.SIGSTOP)
    forever()
say(started=True)
sys.stdout.close()
if facts.get("stop"):
    os.kill(os.getpid(), signal.SIGSTOP)
if facts.get("spin"):
    while True:
        pass
forever()
