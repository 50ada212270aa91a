"""A sandbox's posture as the host sees it: one struct per process and thread, compared with one expectation."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ledger import group_roots, pids

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
NONE = "0" * 16
SWITCH = f"{(1 << 5) | (1 << 6) | (1 << 7):016x}"  # KILL, SETGID, SETUID: the agent's, to switch between its own users

# Fields of /proc/PID/status that say nothing about what a process may do.
IRRELEVANT = {
    "Name", "Umask", "State", "Tgid", "Ngid", "Pid", "PPid", "TracerPid", "FDSize", "NStgid", "NSpid", "NSpgid",
    "NSsid", "Kthread",
    "VmPeak", "VmSize", "VmLck", "VmPin", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData", "VmStk",
    "VmExe", "VmLib",
    "VmPTE", "VmSwap", "HugetlbPages", "CoreDumping", "THP_enabled", "untag_mask", "Threads", "SigQ", "SigPnd",
    "ShdPnd", "SigBlk",
    "SigIgn", "SigCgt", "Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed", "Cpus_allowed_list",
    "Mems_allowed", "Mems_allowed_list", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches",
    "x86_Thread_features",
    "x86_Thread_features_locked",
}  # fmt: skip
JUDGED = {
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "Seccomp_filters",
}  # fmt: skip

# Joins namespaces of a process, in a process of its own, and reports what it finds there.
INSIDE = """
import ctypes, json, os, sys
pid = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
root = os.stat(f"/proc/{pid}/root/")
found = {}
files = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt", "net")}
sysctl = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
def joined(kind, look):
    child_read, child_write = os.pipe()
    if os.fork() == 0:
        answer = {"error": "setns"} if libc.setns(files[kind], 0) else look()
        os.write(child_write, json.dumps(answer).encode())
        os._exit(0)
    os.close(child_write)
    answer = json.loads(os.read(child_read, 65536) or "null")
    os.wait()
    return answer
def user():
    fd = os.open("sys/user/max_user_namespaces", os.O_RDONLY, dir_fd=sysctl)
    return int(os.read(fd, 32))
def mnt():
    seen = os.stat("/")
    return (seen.st_dev, seen.st_ino) == (root.st_dev, root.st_ino)
print(json.dumps({"nested": joined("user", user), "root_is_the_namespaces": joined("mnt", mnt)}))
"""


READS_ITS_ORDER = "0 0x3 "  # read(2) on descriptor 3, as /proc/PID/syscall shows it


@dataclass(frozen=True)
class Seen:
    """One process or thread."""

    who: str  # "agent" or "tenant"
    waiting: bool  # the interpreter that waits for a program, in the very read of its order: no tenant's code yet
    comm: str
    status: Mapping[str, str]
    namespaces: Mapping[str, str]
    uid_map: str
    gid_map: str
    root: str
    cwd: str
    mounts: tuple[str, ...]
    descriptors: Mapping[str, int]
    limits: Mapping[str, str]
    oom_score_adj: int
    groups: tuple[str, ...]
    memory_owner: int  # nobody of the sandbox's when the process is not dumpable
    inside: Mapping[str, Any]
    devices: tuple[str, ...]


def members(agent: int) -> list[int]:
    """Every process in the agent's pid namespace."""
    namespace = os.readlink(f"/proc/{agent}/ns/pid")
    found = []
    for pid in pids():
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def table_of(text: str) -> dict[str, str]:
    """Lines of `name: value`."""
    rows = (line.partition(":") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, _, value in rows}


def kind_of(target: str) -> str:
    """A descriptor's class; a directory or an unknown device is never harmless."""
    if target in {"/dev/null", "/dev/zero", "/dev/urandom"}:
        return "null"
    if target.startswith(("pipe:", "socket:", "anon_inode:")):
        return target.split(":[", maxsplit=1)[0].rstrip("0123456789[]")
    if target.startswith(("/dev/pts/", "/dev/ptmx")):
        return "terminal"
    return f"file {target}"


def _descriptors(pid: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            kind = kind_of(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
        found[kind] = found.get(kind, 0) + 1
    return found


def _limits(pid: int) -> dict[str, str]:
    rows = {}
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        rows[line[:26].strip()] = " ".join(line[26:].split()[:2])
    return rows


def _mounts(pid: int) -> tuple[str, ...]:
    rows = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        rows.append(f"{fields[4]} {fields[5]} {right.split()[0]}")
    return tuple(sorted(rows))


def _groups(pid: int) -> tuple[str, ...]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().split()
    return tuple(sorted({line.split(":", 2)[2] for line in lines}))


def look(pid: int, task: int, agent: int) -> Seen:
    """Collect one thread."""
    here = f"/proc/{pid}/task/{task}"
    done = subprocess.run([sys.executable, "-c", INSIDE, str(pid)], capture_output=True, text=True, check=True)
    root = Path(f"/proc/{pid}/root")
    return Seen(
        who="agent" if pid == agent else "tenant",
        waiting=Path(f"{here}/syscall").read_text().startswith(READS_ITS_ORDER),
        comm=Path(f"{here}/comm").read_text().strip(),
        status=table_of(Path(f"{here}/status").read_text()),
        namespaces={kind: os.readlink(f"{here}/ns/{kind}") for kind in NAMESPACES},
        uid_map=" ".join(Path(f"/proc/{pid}/uid_map").read_text().split()),
        gid_map=" ".join(Path(f"/proc/{pid}/gid_map").read_text().split()),
        root=os.readlink(root),
        cwd=os.readlink(f"{here}/cwd"),
        mounts=_mounts(pid),
        descriptors=_descriptors(pid),
        limits=_limits(pid),
        oom_score_adj=int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
        groups=_groups(pid),
        memory_owner=os.stat(f"/proc/{pid}/mem").st_uid,
        inside=json.loads(done.stdout),
        devices=tuple(sorted(os.listdir(f"/proc/{pid}/root/dev"))),
    )


def everyone(agent: int) -> list[Seen]:
    """Every thread of every process of the sandbox; one that ends while it is looked at is left out."""
    found = []
    for pid in members(agent):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, subprocess.CalledProcessError):
            found += [look(pid, int(task), agent) for task in os.listdir(f"/proc/{pid}/task")]
    return found


def session_keyring() -> int:
    """Our own session keyring's serial number; 0 when there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(250, 0, -3, 0)))


def group_settings(groups: tuple[str, ...]) -> dict[str, str]:
    """The limits written in the sandbox's control groups, whatever the hierarchy."""
    names = ("pids.max", "memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us")
    found = {}
    for root in group_roots():
        for group in groups:
            for name in names:
                file = root / group.lstrip("/") / name
                if group != "/" and file.exists():
                    found[name] = file.read_text().strip()
    return found
