"""Tell whoever waits on a leftover descriptor that we have ended, and run on past the deadline."""

import os
import time

from ringfence.attack.probes.prelude import attempt, say

extra = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
told = [fd for fd in extra if attempt(os.write, fd, b"\0") == "ok"]
say(told=told)
path = os.path.expanduser("~/beat")
while True:
    with open(path, "w") as file:
        file.write(str(time.monotonic()))
    time.sleep(0.05)
