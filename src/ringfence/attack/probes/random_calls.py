"""Make system calls at random with random arguments for a few seconds; whatever becomes of us, nothing else may."""

import ctypes
import os
import random
import signal
import time

from ringfence.attack.probes.prelude import facts, libc, say

SECONDS = facts.get("seconds", 3.0)
EACH = 60  # calls of one child
# What would only end this program or wait: exit, exit_group, pause, kill and its kin, and fork without end.
LEFT_OUT = {34, 39, 56, 57, 58, 60, 62, 129, 130, 200, 231, 234, 297, 424, 435}
NUMBERS = [number for number in range(470) if number not in LEFT_OUT and not 335 <= number < 424]
BUFFER = ctypes.create_string_buffer(65536)
PATH = ctypes.create_string_buffer(b"/proc/self/exe")


def argument(dice: random.Random) -> int:
    """Something a kernel has been known to mind."""
    address = ctypes.addressof(BUFFER)
    kinds = (
        0, 1, 2, 3, -1, 7, 4096, 1 << 31, (1 << 63) - 1, address, address + 8, address + 65536, ctypes.addressof(PATH),
        dice.getrandbits(8), dice.getrandbits(32), dice.getrandbits(63), 0x7FFF_FFFF_F000,
    )  # fmt: skip
    return dice.choice(kinds)


def child(seed: int) -> None:
    """A burst of calls; a timer ends those that wait."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    BUFFER.raw = dice.randbytes(65536)
    for _ in range(EACH):
        arguments = (ctypes.c_long(argument(dice)) for _ in range(6))
        libc.syscall(ctypes.c_long(dice.choice(NUMBERS)), *arguments)
    os._exit(0)


def ended(pid: int) -> bool:
    """Wait for a child for a moment, then make it end."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


seed = facts.get("seed", 1)
children = 0
forced = 0
deadline = time.monotonic() + SECONDS
while time.monotonic() < deadline:
    pid = os.fork()
    if pid == 0:
        try:
            child(seed + children)
        finally:
            os._exit(1)
    children += 1
    forced += not ended(pid)
say(tried=children * EACH, found=[], forced=forced)
