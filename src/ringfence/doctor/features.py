"""What the jail needs of this kernel and this user, each tried rather than looked up."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.runtimes.jail.cgroups import watchman

CLONE_NEWUSER: Final = 0x10000000
PR_GET_SECCOMP: Final = 21
SECCOMP: Final = 317
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
PIDFD_OPEN: Final = 434
CLONE3: Final = 435
CLOSE_RANGE: Final = 436
MOUNT_SETATTR: Final = 442
LANDLOCK_CREATE_RULESET: Final = 444
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing the kernel offers, or not. Without a needed one no sandbox is started."""

    name: str
    ok: bool
    needed: bool
    seen: str
    why: str
    fix: str


def _call(number: int, *arguments: int) -> int:
    """A system call's errno, 0 when it succeeded."""
    ctypes.set_errno(0)
    answer = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return ctypes.get_errno() if answer == -1 else 0


def _known(number: int, *arguments: int) -> str:
    """Empty when the kernel knows the call, whatever it thinks of these arguments."""
    return "this kernel does not have it" if _call(number, *arguments) == errno.ENOSYS else ""


def machine() -> str:
    """The filter is written for one processor family."""
    return "" if platform.machine() == "x86_64" else f"this machine is {platform.machine()}"


def user_namespaces() -> str:
    """Make one in a child, and map ourselves as its root."""
    mapping = f"0 {os.geteuid()} 1"  # asked before: inside an unmapped namespace everybody is nobody
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if _libc.unshare(CLONE_NEWUSER) == 0 else ctypes.get_errno()
            if code == 0:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(mapping)
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code & 0x7F)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if code == 0 else f"refused: {errno.errorcode.get(code, code)}"


def seccomp() -> str:
    """Filters, and the action that ends a whole process."""
    if _libc.prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "this kernel has no seccomp"
    action = ctypes.c_uint32(SECCOMP_RET_KILL_PROCESS)
    refused = _call(SECCOMP, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action))
    return "this kernel cannot end a process by filter" if refused in {errno.ENOSYS, errno.EOPNOTSUPP} else ""


def landlock() -> str:
    """Its version, or that there is none."""
    version = int(_libc.syscall(LANDLOCK_CREATE_RULESET, 0, 0, 1))
    return "" if version >= 1 else "not built, or not among lsm= on the kernel's command line"


def time_namespaces() -> str:
    """A clock of one's own."""
    return "" if Path("/proc/self/ns/time").exists() else "this kernel does not have them"


def cgroup_kind(mountinfo: str) -> str:
    """Which control groups are mounted: v2, v1, both, or none."""
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in mountinfo.splitlines()}
    names = {frozenset(): "none", frozenset({"cgroup"}): "v1", frozenset({"cgroup2"}): "v2"}
    return names.get(frozenset(kinds & {"cgroup", "cgroup2"}), "v1 and v2 (hybrid)")


def cgroups() -> str:
    """That there are any; what can be enforced with them is the runtime's to say."""
    found = cgroup_kind(Path("/proc/self/mountinfo").read_text())
    return "no control groups are mounted" if found == "none" else ""


def rootless_allowed() -> str:
    """Distributions may forbid user namespaces to ordinary users by settings of their own."""
    if os.geteuid() == 0:
        return ""
    for file, bad in (("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")):
        path = Path("/proc/sys/kernel") / file
        if path.exists() and path.read_text().strip() == bad:
            return f"kernel.{file} is {bad}"
    return ""


# name, how it is tried ("" means: there), needed, why, how to get it
Row = tuple[str, Callable[[], str], bool, str, str]
FEATURES: Final[tuple[Row, ...]] = (
    ("x86_64", machine, True, "the system call filter is written for it", "use such a machine"),
    (
        "user namespaces", user_namespaces, True, "a sandbox's root is nobody outside",
        "sysctl -w user.max_user_namespaces=10000; in a container, allow unshare in its seccomp profile",
    ),
    ("user namespaces for this user", rootless_allowed, True, "the same, for a server that is not root",
    "run as root"),
    ("seccomp filters", seccomp, True, "system calls outside a list are refused",
    "a kernel with CONFIG_SECCOMP_FILTER"),
    ("clone3", lambda: _known(CLONE3, 0, 0), True, "a process and its handle in one step", "Linux 5.3 or newer"),
    ("pidfd_open", lambda: _known(PIDFD_OPEN, os.getpid(), 0), True, "signals that cannot hit a stranger",
    "Linux 5.3"),
    ("close_range", lambda: _known(CLOSE_RANGE, 3, 2, 0), True, "no descriptor is inherited", "Linux 5.9 or newer"),
    (
        "mount_setattr", lambda: _known(MOUNT_SETATTR, -1, 0, 0, 0, 0), False,
        "a whole tree made read-only at once", "Linux 5.12 or newer",
    ),
    ("Landlock", landlock, False, "a second fence around files", "Linux 5.13 or newer with lsm=...,landlock"),
    ("time namespaces", time_namespaces, False, "the host's uptime stays its own", "Linux 5.6 or newer"),
    ("control groups", cgroups, False, "limits of memory, processors and processes",
    "mount cgroup2 at /sys/fs/cgroup"),
    (
        "a real-time thread", watchman.tried, False,
        "with cgroup v1 a program that fills its disk hears so, and is not ended for memory, on a crowded machine too",
        "run the server as root; where it is in a cpu group of v1, give that group cpu.rt_runtime_us",
    ),
)  # fmt: skip


def examine() -> list[Feature]:
    """Try each."""
    found = []
    for name, tried, needed, why, fix in FEATURES:
        trouble = tried()
        found.append(Feature(name, not trouble, needed, trouble or "there", why, fix))
    return found
