"""Look at ourselves before anything else: the limits and layers that are in force at the first instruction."""

import ctypes
import os
import resource
import sys

from ringfence.attack.probes.prelude import attempt, facts, in_child, libc, name_of, say, text_of

AT_START = sorted(int(name) for name in os.listdir("/proc/self/fd"))  # one of them is this listing's own
PARENT = os.getppid()
STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
LIMITS = ("CORE", "NOFILE", "NPROC", "MEMLOCK", "SIGPENDING", "MSGQUEUE", "RTPRIO", "NICE", "FSIZE", "STACK")


def status(pid: str = "self") -> dict[str, str]:
    """The chosen lines of a process's status."""
    lines = (line.partition(":") for line in text_of(f"/proc/{pid}/status").splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines if name in STATUS}


def threads() -> list[str]:
    """Threads of ours whose filter or privileges differ from the first one's."""
    mine = status()
    return [task for task in os.listdir("/proc/self/task") if status(f"self/task/{task}") != mine]


def descriptors() -> list[str]:
    """What stands behind each descriptor above 2 that was open when we started."""
    open_now = [fd for fd in AT_START if fd > 2 and attempt(os.fstat, fd) == "ok"]
    return [f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}" for fd in open_now]


def walkable() -> list[str]:
    """Descriptors that lead to a directory, and so perhaps out."""
    return [str(fd) for fd in AT_START if attempt(os.open, "..", os.O_PATH, dir_fd=fd) == "ok"]


def namespaces() -> dict[str, str]:
    """Inode of every namespace we are in."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in sorted(os.listdir("/proc/self/ns"))}


def landlock_layers() -> str:
    """How many Landlock domains hold us: the kernel stacks at most 16, so we count how many still fit."""
    kernel = libc.syscall(444, 0, 0, 1)
    if kernel < 1:
        return f"not usable: {name_of(ctypes.get_errno())}"
    rights = ctypes.c_uint64(1)  # a domain that would forbid only executing files
    libc.prctl(38, 1, 0, 0, 0)
    fitted = 0
    while fitted < 17:
        ruleset = libc.syscall(444, ctypes.byref(rights), ctypes.c_long(8), 0)
        if ruleset < 0 or libc.syscall(446, ruleset, 0) != 0:
            break
        os.close(ruleset)
        fitted += 1
    return str(16 - fitted) if fitted else f"not countable: {name_of(ctypes.get_errno())}"


def mounts() -> list[dict[str, str]]:
    """Every mount's point, options, root, type and source."""
    rows = []
    for line in text_of("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        rows.append({"at": fields[4], "options": fields[5], "root": fields[3], "type": tail[0], "source": tail[1]})
    return rows


say(
    status=status(),
    threads=threads(),
    descriptors=descriptors(),
    walkable=walkable(),
    namespaces=namespaces(),
    host_namespaces=facts.get("namespaces", {}),
    beside=facts.get("beside", {}),
    parent=PARENT,
    uid_map=text_of("/proc/self/uid_map").split(),
    gid_map=text_of("/proc/self/gid_map").split(),
    setgroups=text_of("/proc/self/setgroups").strip(),
    limits={name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in LIMITS},
    oom_score_adj=text_of("/proc/self/oom_score_adj").strip(),
    cgroup=text_of("/proc/self/cgroup").split(),
    mounts=mounts(),
    cwd=os.getcwd(),
    environment=sorted(os.environ),
    umask=in_child(oct, os.umask(0)),
    no_new_privileges=libc.prctl(39, 0, 0, 0, 0),
    dumpable=libc.prctl(3, 0, 0, 0, 0),
    landlock=in_child(landlock_layers),
    host_landlock=facts.get("landlock", 0),
    uids=os.getresuid(),
    gids=os.getresgid(),
    groups=os.getgroups(),
    argv=sys.argv,
    hostname=os.uname().nodename,
)
