"""Take the kernel's own memory: descriptors, watches, timers, queued signals, names that do not exist."""

import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from ringfence.attack.probes.prelude import call, libc, name_of, say

MOST = 20_000
SECONDS = 6.0


def until_refused(make: Callable[[], Any], most: int = MOST) -> tuple[int, str]:
    """Call it until it refuses; how often it did not."""
    kept: list[Any] = []
    deadline = time.monotonic() + SECONDS
    refusal = ""
    while len(kept) < most and time.monotonic() < deadline:
        try:
            kept.append(make())
        except OSError as error:
            refusal = name_of(error.errno)
            break
    count = len(kept)
    for thing in kept:
        if isinstance(thing, int):
            os.close(thing)
        elif hasattr(thing, "close"):
            thing.close()
    return count, refusal


def checked(number: int) -> int:
    """A descriptor from the C library, or its error."""
    if number < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return number


def watches() -> tuple[int, str]:
    """Inotify watches on directories of our own."""
    fd = checked(libc.inotify_init1(0))
    home = os.path.expanduser("~/watched")
    os.makedirs(home, exist_ok=True)
    count, refusal = 0, ""
    for index in range(MOST):
        path = f"{home}/{index}"
        try:
            os.mkdir(path)
        except OSError as error:
            refusal = name_of(error.errno)
            break
        if libc.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
            refusal = name_of(ctypes.get_errno())
            break
        count += 1
    os.close(fd)
    return count, refusal


def signals() -> tuple[int, str]:
    """Queued real-time signals that are never taken."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    for count in range(100_000):
        if libc.sigqueue(os.getpid(), signal.SIGRTMIN, None) != 0:
            return count, name_of(ctypes.get_errno())
    return 100_000, ""


def timers() -> tuple[int, str]:
    """POSIX timers."""
    timer = ctypes.c_void_p()
    for count in range(100_000):
        if libc.timer_create(1, None, ctypes.byref(timer)) != 0:
            return count, name_of(ctypes.get_errno())
    return 100_000, ""


def names() -> tuple[int, str]:
    """Look up names that do not exist: each leaves an entry in the kernel's cache."""
    deadline = time.monotonic() + SECONDS
    count = 0
    home = os.path.expanduser("~")
    while time.monotonic() < deadline and count < 200_000:
        os.access(f"{home}/{count:0200d}", os.F_OK)
        count += 1
    return count, "done"


def in_flight() -> tuple[int, str]:
    """Descriptors hidden inside sockets, where no table counts them."""
    read, write = os.pipe()
    left, right = socket.socketpair()
    left.setblocking(False)
    count, refusal = 0, ""
    try:
        while count < MOST:
            socket.send_fds(left, [b"x"], [read] * 200)
            count += 200
    except OSError as error:
        refusal = name_of(error.errno)
    for fd in (read, write):
        os.close(fd)
    left.close()
    right.close()
    return count, refusal


took = {
    "epoll": until_refused(select.epoll),
    "eventfd": until_refused(lambda: os.eventfd(0)),
    "timerfd": until_refused(lambda: checked(libc.timerfd_create(1, 0))),
    "socket": until_refused(lambda: socket.socket(socket.AF_UNIX)),
    "open file": until_refused(lambda: os.open("/dev/null", os.O_RDONLY)),
    "inotify instance": until_refused(lambda: checked(libc.inotify_init1(0))),
    "inotify watch": watches(),
    "descriptor in flight": in_flight(),
    "timer": timers(),
    "queued signal": signals(),
    "absent name": names(),
}
pipe = os.pipe()
size = call(72, pipe[1], 1031, 64 << 20)
say(took=took, pipe_64_mib=size, most=MOST)
