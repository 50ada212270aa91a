# ruff: noqa: S103, S108, S606 - unsafe on purpose: it runs inside a sandbox
"""Look for what an earlier sandbox left, then leave the same things for the next one."""

import ctypes
import os
import sys

from ringfence.attack.probes.prelude import attempt, call, libc, say

MARK = b"RINGFENCE-" + b"RESIDUE"
PLACES = [
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/run",
    "/home/user",
    "/dev/mqueue",
    "/var/lock",
    "/root",
    "/var/cache",
    "/usr/share",
    "/workspace",
]
KEY = 0x52464E43


def files() -> list[str]:
    """Marked files in every place that can be listed."""
    found = []
    for place in PLACES:
        names = os.listdir(place) if os.path.isdir(place) and os.access(place, os.R_OK) else []
        found += [os.path.join(place, name) for name in names if name.startswith("probe-")]
    return found


def objects() -> list[str]:
    """Named objects of the kernel: System V memory, semaphores and messages, a POSIX queue, a key."""
    found = []
    if libc.shmget(KEY, 16, 0) >= 0:
        found.append("System V memory")
    if libc.semget(KEY, 1, 0) >= 0:
        found.append("System V semaphores")
    if libc.msgget(KEY, 0) >= 0:
        found.append("a System V queue")
    if call(240, ctypes.addressof(QUEUE), os.O_RDONLY, 0, 0) == "ok":
        found.append("a POSIX queue")
    return found


def globals_left() -> list[str]:
    """State of the interpreter itself: a module's attribute, an environment variable, the working directory."""
    found = []
    if hasattr(sys, "ringfence_residue"):
        found.append("an attribute of the sys module")
    if "RESIDUE" in os.environ:
        found.append("an environment variable")
    if os.umask(0o022) != 0o022:
        found.append("a changed umask")
    return found


def processes() -> list[str]:
    """Programs that carry the mark in their arguments."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if MARK in file.read():
                    found.append(f"process {pid}")
        except OSError:
            continue
    return found


def memory() -> list[str]:
    """Freshly allocated pages must be blank."""
    libc.malloc.restype = ctypes.c_void_p
    area = libc.malloc(ctypes.c_size_t(8 << 20))
    return ["the mark in fresh memory"] if MARK[::-1] in ctypes.string_at(area, 8 << 20) else []


def leave() -> list[str]:
    """Leave the mark everywhere it can be left; where it could."""
    left = []
    for place in PLACES:
        path = os.path.join(place, f"probe-{os.getpid()}")
        if attempt(put, path) == "ok":
            left.append(place)
    made = (libc.shmget(KEY, 16, 0o1666), libc.semget(KEY, 1, 0o1666), libc.msgget(KEY, 0o1666))
    left += [str(number >= 0) for number in made]
    left.append(call(240, ctypes.addressof(QUEUE), os.O_RDWR | os.O_CREAT, 0o666, 0))
    sys.ringfence_residue = True  # type: ignore[attr-defined]
    os.environ["RESIDUE"] = "left"
    os.umask(0)
    os.chdir("/")
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable or "/usr/bin/python3", ["python3", "-c", "import time; time.sleep(600)", MARK.decode()])
    return left


def put(path: str) -> None:
    """One marked file, readable by everyone."""
    with open(path, "wb") as file:
        file.write(MARK)
    os.chmod(path, 0o666)


QUEUE = ctypes.create_string_buffer(b"ringfence-probe")
found = files() + objects() + globals_left() + processes() + memory()
say(found=found, left=leave(), tried=len(PLACES) + 9)
