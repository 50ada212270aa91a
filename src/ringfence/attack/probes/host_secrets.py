"""Look for the host: its secret files, and the tokens planted in its server's environment, memory and files.

Only digests of the tokens are known here; what looks like one is hashed and compared. A decoy is planted in
our own memory first: a search that does not find it is blind, and says so.
"""

import hashlib
import os
import re
import stat
import time

from ringfence.attack.probes.prelude import facts, libc, say

SHAPE = re.compile(b"RF[C]ANARY-[0-9a-f]{32}")  # the class keeps this pattern from matching its own source
WANTED = set(facts.get("canaries", []))
PATHS = [
    "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ringfence", "/root/.ssh", "/root/.bash_history",
    "/root/.profile", "/var/lib/ringfence", "/var/run/docker.sock", "/run/systemd", "/run/containerd",
    "/home/user/../../root/.bashrc", "/.dockerenv", "/run/netns",
    "/proc/1/root/etc/shadow", "/proc/1/cwd/..", "/proc/self/root/var/lib/ringfence", "/sys/fs/cgroup", "/sys/kernel",
    *facts.get("paths", []),
]  # fmt: skip
BUDGET = 15.0  # seconds for walking files
BIGGEST = 4 << 20
PIECE = 1 << 20

hits: set[str] = set()
decoys: list[str] = []
decoy = bytearray(b"RFC" + b"ANARY-" + os.urandom(16).hex().encode())
DECOY = hashlib.sha256(decoy).hexdigest()


def look(where: str, data: bytes) -> None:
    """Compare everything token-shaped in `data`."""
    for token in set(SHAPE.findall(data)):
        digest = hashlib.sha256(token).hexdigest()
        if digest in WANTED:
            hits.add(where)
        if digest == DECOY:
            decoys.append(where)


def read(path: str) -> bool:
    """Search one file from its start; True when it could be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        with open(fd, "rb", buffering=0) as file:
            for _ in range(BIGGEST // PIECE):
                piece = file.read(PIECE)
                if not piece:
                    break
                look(path, piece)
    except OSError:
        pass
    return True


def memory(pid: str) -> int:
    """Search every readable mapping of a process; how many bytes were read."""
    done = 0
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
            for line in maps:
                span, mode = line.split()[:2]
                start, end = (int(part, 16) for part in span.split("-"))
                if not mode.startswith("r") or start >= 1 << 47:
                    continue
                done += mapping(mem.fileno(), pid, start, end)
    except OSError:
        pass
    return done


def mapping(fd: int, pid: str, start: int, end: int) -> int:
    """Search one mapping, piece by piece, with an overlap so that no token is cut."""
    done = 0
    for at in range(start, min(end, start + (256 << 20)), PIECE):
        try:
            piece = os.pread(fd, min(PIECE + 64, end - at), at)
        except OSError:
            break
        look(f"memory of {pid}", piece)
        done += len(piece)
    return done


def processes() -> list[str]:
    """Every process we can see, ourselves first."""
    return ["self", "1", *(name for name in os.listdir("/proc") if name.isdigit())]


def walk(deadline: float) -> tuple[int, int]:
    """Search every readable regular file until the deadline; how many were opened, how many seen."""
    opened = seen = 0
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if not (top == "/" and name in {"proc", "sys", "dev"})]
        if "site-packages" in top or top.startswith(("/usr/share", "/usr/include")):
            folders.clear()  # the image's own bulk: the same bytes for everyone
            continue
        for name in files:
            path = os.path.join(top, name)
            seen += 1
            if time.monotonic() > deadline:
                return opened, seen
            if regular(path):
                opened += read(path)
    return opened, seen


def regular(path: str) -> bool:
    """True for a plain file we may search."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def shared_memory() -> list[str]:
    """The host's own System V segment, by its key."""
    return ["the host's shared memory"] if libc.shmget(facts.get("shm_key", 1), 1, 0) >= 0 else []


present = [path for path in PATHS if os.path.lexists(path)]
for pid in processes():
    for name in ("environ", "cmdline", "maps", "mountinfo", "stat", "status", "comm"):
        read(f"/proc/{pid}/{name}")
searched = {pid: memory(pid) for pid in processes()}
opened, seen = walk(time.monotonic() + BUDGET)
read("/proc/self/environ")
say(
    found=sorted(hits) + [f"{path} exists" for path in present] + shared_memory(),
    sighted=bool(decoys) and bool(WANTED),
    tried=len(PATHS) + opened,
    searched=searched,
    files=[opened, seen],
    environment=sorted(os.environ),
)
