# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Take memory until refused or ended, in one of the ways the kernel offers. Bounded at a few times the limit."""

import ctypes
import mmap
import os
import socket

from ringfence.attack.probes.prelude import attempt, call, facts, libc, say, text_of

WAY = facts.get("way", "anonymous")
MOST = facts.get("most", 1 << 28)
PIECE = 4 << 20
kept: list[object] = []


def anonymous() -> int:
    """Plain pages."""
    area = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.write(b"x" * PIECE)
    kept.append(area)
    return PIECE


def written(fd: int) -> int:
    """Fill a descriptor that holds memory."""
    kept.append(fd)
    done = 0
    while done < PIECE:
        done += os.write(fd, b"x" * (PIECE - done))
    return done


def shared_pages() -> int:
    """Pages shared with children, which the kernel counts as a file."""
    area = mmap.mmap(-1, PIECE)
    area.write(b"x" * PIECE)
    kept.append(area)
    return PIECE


def anonymous_file() -> int:
    """A file without a name."""
    return written(os.memfd_create("probe"))


def shared_file() -> int:
    """Files in shared memory."""
    return written(os.open(f"/dev/shm/probe{len(kept)}", os.O_CREAT | os.O_WRONLY))


def scratch_file() -> int:
    """Files in the home directory, which is memory too."""
    return written(os.open(os.path.expanduser(f"~/probe{len(kept)}"), os.O_CREAT | os.O_WRONLY))


def system_v() -> int:
    """Segments that belong to nobody in particular."""
    segment = libc.shmget(0, ctypes.c_size_t(PIECE), 0o1600)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 1, PIECE)
    return PIECE


def pipes() -> int:
    """Bytes in pipes nobody reads."""
    _, write = os.pipe()
    os.set_blocking(write, False)
    call(72, write, 1031, 1 << 20)  # F_SETPIPE_SZ
    done = 0
    try:
        while True:
            done += os.write(write, b"x" * 65536)
    except BlockingIOError:
        return done


def sockets() -> int:
    """Bytes in Unix sockets nobody reads."""
    left, right = socket.socketpair()
    kept.extend((left, right))
    left.setblocking(False)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    done = 0
    try:
        while True:
            done += left.send(b"x" * 65536)
    except BlockingIOError:
        return done


def children() -> int:
    """A copy of everything, touched, in a child that stays."""
    area = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    read, write = os.pipe()
    if os.fork() == 0:
        area.write(b"y" * PIECE)
        os.write(write, b"!")
        stay()
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return PIECE


def stay() -> None:
    """Until killed."""
    while True:
        libc.pause()


ways = {
    "anonymous": anonymous,
    "shared": shared_pages,
    "memfd": anonymous_file,
    "shm": shared_file,
    "scratch": scratch_file,
    "sysv": system_v,
    "pipes": pipes,
    "sockets": sockets,
    "children": children,
}


def one_more(got: list[int]) -> None:
    """Take another piece; its size is added to the list."""
    got.append(ways[WAY]())


taken = 0
refusal = ""
while taken < MOST:
    got: list[int] = []
    refusal = attempt(one_more, got)
    if refusal != "ok":
        break
    taken += got[0]
    if taken % (32 << 20) < PIECE:
        say(taken=taken, way=WAY, refusal="", swap=text_of("/proc/self/status").count("VmSwap"))
say(taken=taken, way=WAY, refusal=refusal if refusal != "ok" else "", bound=MOST)
