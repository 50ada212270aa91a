"""Multiply until refused: processes, threads, and both at once. Bounded, so that a missing limit harms nobody."""

import contextlib
import os
import signal
import threading
import time

from ringfence.attack.probes.prelude import facts, name_of, say

MOST = facts.get("most", 400)
held: list[int] = []
refusal = ""
started = time.monotonic()


def sleeper() -> None:
    """A child that only takes up its place."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(60)
    signal.pause()
    os._exit(0)


def fork_until_refused() -> str:
    """Fork children that stay; the errno's name when the kernel has had enough."""
    while len(held) < MOST:
        try:
            child = os.fork()
        except OSError as error:
            return name_of(error.errno)
        if child == 0:
            sleeper()
        held.append(child)
    return ""


def threads_until_refused(stop: threading.Event) -> tuple[int, str]:
    """Start threads that stay; how many, and the refusal."""
    count = 0
    while count < MOST:
        try:
            threading.Thread(target=stop.wait, daemon=True).start()
        except RuntimeError as error:
            return count, str(error)
        count += 1
    return count, ""


refusal = fork_until_refused()
peak = len(held)
for child in held:
    os.kill(child, signal.SIGKILL)
for child in held:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
stop = threading.Event()
threads, thread_refusal = threads_until_refused(stop)
stop.set()
say(peak=peak, refusal=refusal, threads=threads, thread_refusal=thread_refusal, most=MOST)
if facts.get("leave"):
    held.clear()
    fork_until_refused()  # and end with all of them alive: the sandbox must take them with it
