# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Walk above our root: by dots, links, the kernel's magic links, open directories, and directories that are gone.

CVE-2024-21626 was a directory left open; CVE-2021-30465 and its kin were links in the way of a mount.
"""

import contextlib
import ctypes
import os
import socket

from ringfence.attack.probes.prelude import attempt, call, facts, in_child, libc, say, text_of

UP = "/.." * 24
OPENAT2 = 437
HOST = ["/etc/shadow", "/var/lib/ringfence", "/root/.ssh", *facts.get("paths", [])]
SOCKETS = facts.get("sockets", [])
ROOT = (os.stat("/").st_dev, os.stat("/").st_ino)


def prefixes() -> list[str]:
    """Ways to say "the root, or what is above it"."""
    found = [UP, f"/proc/self/root{UP}", f"/proc/thread-self/root{UP}", f"/proc/1/root{UP}", f"/proc/self/cwd{UP}"]
    found += [f"/proc/1/cwd{UP}", f"/dev/fd/0/..{UP}", f"/home/user{UP}", f"/dev/shm{UP}", f"/proc{UP}"]
    for pid in ("self", "1", str(os.getppid())):
        found += [f"/proc/{pid}/fd/{number}{UP}" for number in range(24)]
    return found


def reached(prefix: str) -> list[str]:
    """The host's files and sockets by way of this prefix."""
    wrong = [prefix + path for path in HOST if os.path.lexists(prefix + path)]
    for path in SOCKETS:
        with socket.socket(socket.AF_UNIX) as sock:
            if attempt(sock.connect, (prefix + path)[-107:]) == "ok":
                wrong.append(prefix + path)
    return wrong


def leads_elsewhere(prefix: str) -> list[str]:
    """A prefix that ends somewhere that is not our root."""
    with contextlib.suppress(OSError):
        seen = os.stat(prefix)
        if (seen.st_dev, seen.st_ino) != ROOT:
            return [f"{prefix[:60]} is another root"]
    return []


def links() -> list[str]:
    """Links of our own that point far above."""
    home = "/tmp/links"
    os.makedirs(home, exist_ok=True)
    wrong = []
    for number, path in enumerate(HOST):
        for kind, target in (("absolute", path), ("relative", "../" * 30 + path.lstrip("/"))):
            link = f"{home}/{kind}{number}"
            os.symlink(target, link)
            if os.path.exists(link):
                wrong.append(f"a {kind} link to {path}")
    return wrong


def by_directories() -> list[str]:
    """Open directories and a lost working directory: each step up must end at our own root."""
    wrong = []
    for start in ("/", "/home/user", "/proc/self", "/dev", "/usr"):
        fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(40):
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = above
        seen = os.fstat(fd)
        os.close(fd)
        if (seen.st_dev, seen.st_ino) != ROOT:
            wrong.append(f"40 steps up from {start} is another directory")
    return wrong + [f"the working directory is {place}" for place in lost_directory()]


def lost_directory() -> list[str]:
    """Where we are when the directory we stand in is gone: outside of everything is outside of the root."""
    gone = "/tmp/gone"
    os.makedirs(gone, exist_ok=True)
    place = in_child(stand_in, gone)
    return [] if place in {"ENOENT", "/"} else [place]


def stand_in(folder: str) -> str:
    """Remove the directory we are in, and ask where we are and what is above."""
    os.chdir(folder)
    os.rmdir(folder)
    for _ in range(10):
        if attempt(os.chdir, "..") != "ok":
            break
    return os.getcwd()


def by_openat2() -> list[str]:
    """openat2 without any of its restrictions."""
    wrong = []
    how = (ctypes.c_uint64 * 3)(os.O_PATH, 0, 0)
    for path in HOST:
        name = ctypes.create_string_buffer((UP + path).encode())
        if call(OPENAT2, -100, ctypes.addressof(name), ctypes.addressof(how), 24) == "ok":
            wrong.append(f"openat2 {path}")
    return wrong


def uncovered() -> list[str]:
    """Take mounts away: what they cover would show."""
    places = [line.split()[4] for line in text_of("/proc/self/mountinfo").splitlines()]
    return [f"took {place} away" for place in places if libc.umount2(place.encode(), 2) == 0]


tries = prefixes()
found = [wrong for prefix in tries for wrong in [*reached(prefix), *leads_elsewhere(prefix)]]
found += links() + by_directories() + by_openat2() + uncovered()
say(found=sorted(set(found)), tried=len(tries) * len(HOST) + len(HOST) * 3 + 6)
