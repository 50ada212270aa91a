"""Mistreat the standard streams: never read, close them all, and keep running."""

import os
import time

from ringfence.attack.probes.prelude import facts, say

say(started=True)
for fd in facts.get("close", [0, 1, 2]):
    os.close(fd)
time.sleep(facts.get("seconds", 60))
