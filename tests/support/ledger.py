"""The leak ledger: everything a server could leave on a host, counted before and after; nothing may be left over.

Other servers may live on the same machine, so a kernel object is ours when its name, its control group or its
owner says so.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

GRACE_SECONDS = 60.0
UID_FLOOR = 0x2000_0000  # sandboxes' users on the host are above it
NAMESPACES = ("net", "mnt", "user", "pid", "ipc", "uts", "cgroup")


@dataclass(frozen=True)
class Ledger:
    """One count: each kind is a set of names, so that a difference says what, not only how many."""

    processes: frozenset[str] = frozenset()
    zombies: frozenset[str] = frozenset()
    cgroups: frozenset[str] = frozenset()
    mounts: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    system_v: frozenset[str] = frozenset()
    shared_memory: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()
    temporary: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    kernel: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Process:
    """What the ledger notes of one process of a server."""

    pid: int
    descriptors: int
    resident_bytes: int
    threads: int
    kinds: dict[str, int] = field(default_factory=dict)


def instance_of(state: Path) -> str:
    """The name a server gives its kernel objects."""
    return hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def pids() -> Iterator[int]:
    """Every process of the host."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def parent_of(pid: int) -> int:
    """A process's parent; 0 when it is gone."""
    fields_ = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields_[1]) if len(fields_) > 1 else 0


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {pid: parent_of(pid) for pid in pids()}
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def group_of(pid: int) -> str:
    """The control groups of a process, as one text."""
    return _text(f"/proc/{pid}/cgroup")


def group_roots() -> list[Path]:
    """Where control groups are mounted, every hierarchy."""
    found = []
    for line in _text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in {"cgroup", "cgroup2"}:
            found.append(Path(left.split()[4]))
    return found


def groups_of(instance: str) -> set[str]:
    """Directories of this instance, in every hierarchy; groups that vanish meanwhile are not there."""
    found = set()
    for root in group_roots():
        for folder, names, _ in os.walk(root):
            if os.path.basename(folder) == "ringfence":
                names[:] = [name for name in names if name == instance or name.startswith(f"{instance}-")]
            if f"/ringfence/{instance}" in folder:
                found.add(folder)
    return found


def groups_called(name: str) -> set[str]:
    """Directories of this name, in every hierarchy and at any depth."""
    return {folder for root in group_roots() for folder, _, _ in os.walk(root) if os.path.basename(folder) == name}


def _others(pid: int, instance: str) -> bool:
    group = group_of(pid)
    return "/ringfence/" in group and f"/ringfence/{instance}" not in group


GATE = "ringfence.network.gate"


def gates_of(instance: str) -> set[int]:
    """The gates of this server: each has its name on its command line, and a user that is no sandbox's."""
    return {pid for pid in pids() if _text(f"/proc/{pid}/cmdline").endswith(f"{GATE}\0{instance}\0")}


def _other_servers(pid: int, state: Path) -> bool:
    """Whether a process is another server's gate or opener, or the node from which its router hangs."""
    words = _text(f"/proc/{pid}/cmdline")
    gate = "ringfence.network." in words and f"\0{instance_of(state)}\0" not in words
    return gate or ("-m\0ringfence.node" in words and str(state) not in words)


def routers_of(state: Path) -> set[str]:
    """Network namespaces that threads of this server's own processes are in, or hold by a descriptor."""
    found, host = set(), os.readlink("/proc/self/ns/net")
    for pid in pids():
        words = _text(f"/proc/{pid}/cmdline")
        if str(state) not in words and f"{GATE}\0{instance_of(state)}\0" not in words:
            continue
        # Not by pathlib, whose search raises when a process ends meanwhile.
        for place in (*glob.glob(f"/proc/{pid}/task/*/ns/net"), *glob.glob(f"/proc/{pid}/fd/*")):
            with contextlib.suppress(OSError):
                found.add(os.readlink(place))
    return {name for name in found if name.startswith("net:[")} - {host}


def _ringfences(pid: int) -> bool:
    """Whether a process is some server's or some sandbox's: by its name, its arguments or its user."""
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}").st_uid >= UID_FLOOR:
            return True
    ours = ("ringfence.node", "ringfence.api", "ringfence.runtimes", "ringfence.network")
    return _text(f"/proc/{pid}/comm").startswith("ringfence") or any(w in _text(f"/proc/{pid}/cmdline") for w in ours)


def _namespaces(state: Path) -> set[str]:
    """Namespaces, other than the host's, that processes hold which could be ours; the router's among them."""
    instance = instance_of(state)
    host = {os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    found = set()
    for pid in pids():
        if _ringfences(pid) and not _others(pid, instance) and not _other_servers(pid, state):
            for kind in NAMESPACES:
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return (found | routers_of(state)) - host


def _system_v() -> set[str]:
    rows = set()
    for kind in ("shm", "sem", "msg"):
        for line in _text(f"/proc/sysvipc/{kind}").splitlines()[1:]:
            key, ident = line.split()[:2]
            rows.add(f"{kind} key {key} id {ident}")
    return rows


def _names(folder: str, start: str = "") -> set[str]:
    with contextlib.suppress(OSError):
        return {f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(start)}
    return set()


def _mounts() -> set[str]:
    """The host's mounts, without those of other isolation tools that a comparison may be running meanwhile."""
    lines = (" ".join(line.split()[3:]) for line in _text("/proc/1/mountinfo").splitlines())
    return {line for line in lines if not any(word in line for word in ("firejail", "containerd", "/run/runc"))}


def _sockets(state: Path) -> set[str]:
    paths = (line.split()[-1] for line in _text("/proc/net/unix").splitlines()[1:] if len(line.split()) > 7)
    return {path for path in paths if path.startswith(str(state))}


def snapshot(state: Path) -> Ledger:
    """Count everything that belongs to the server of this state directory, and what anybody could leave."""
    instance = instance_of(state)
    ours = {
        pid
        for pid in pids()
        if f"/ringfence/{instance}" in group_of(pid) or str(state) in _text(f"/proc/{pid}/cmdline")
    } | gates_of(instance)
    zombies = {pid for pid in ours if "State:\tZ" in _text(f"/proc/{pid}/status")}
    return Ledger(
        processes=frozenset(f"process {pid} {_text(f'/proc/{pid}/comm').strip()}" for pid in ours - zombies),
        zombies=frozenset(f"zombie {pid}" for pid in zombies),
        cgroups=frozenset(groups_of(instance)),
        mounts=frozenset(_mounts()),
        namespaces=frozenset(_namespaces(state)),
        system_v=frozenset(_system_v()),
        shared_memory=frozenset(_names("/dev/shm")),
        queues=frozenset(_names("/dev/mqueue")),
        temporary=frozenset({str(state)} if state.exists() else ()),
        sockets=frozenset(_sockets(state)),
        links=frozenset(name for _, name in socket.if_nameindex()),
        kernel=frozenset({f"tainted {_text('/proc/sys/kernel/tainted').strip()}"}),
    )


def diff(before: Ledger, after: Ledger) -> list[str]:
    """What is there now and was not before, in plain sentences."""
    sentences = []
    for each in fields(Ledger):
        extra = getattr(after, each.name) - getattr(before, each.name)
        sentences += [f"{each.name}: {name} is left" for name in sorted(extra)]
    return sentences


def settle(state: Path, before: Ledger, seconds: float = GRACE_SECONDS) -> list[str]:
    """Wait, within a deadline, for the ledger to return to `before`; what is left then."""
    deadline = time.monotonic() + seconds
    while True:
        left = diff(before, snapshot(state))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def process(pid: int) -> Process:
    """Descriptors by kind, memory and threads of one process of a server."""
    kinds: dict[str, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            kind = target.split(":")[0] if not target.startswith("/") else "file"
            kinds[kind] = kinds.get(kind, 0) + 1
    status = dict(line.split(":", 1) for line in _text(f"/proc/{pid}/status").splitlines() if ":" in line)
    resident = int(status.get("VmRSS", "0 kB").split()[0]) * 1024
    return Process(pid, sum(kinds.values()), resident, int(status.get("Threads", "1")), kinds)
