"""Fork twice, leave the session, close everything, ignore every signal, and let the parent end well."""

import contextlib
import os
import signal
import time

from ringfence.attack.probes.prelude import say


def survive() -> None:
    """A daemon that nothing in this sandbox is left to stop."""
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    os.closerange(3, 256)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.write(1, b"still here\n")
        time.sleep(0.05)
    os._exit(0)


first = os.fork()
if first == 0:
    survive()
os.waitpid(first, 0)
say(ended=True)
