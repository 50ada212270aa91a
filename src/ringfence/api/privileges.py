"""How the api gives its privileges up. A flat list of steps; any that fails ends the process.

When started by root, the api serves strangers as nobody in particular: its own uid, no groups, no capabilities, no
way to gain any, no core dumps, unreadable by others of its uid, and dead when its parent dies.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import stat
from pathlib import Path
from typing import Final

from ringfence.domain.errors import PlatformFault

NOBODY: Final = 65534
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
SYS_CAPSET: Final = 126  # x86_64
CAP_VERSION_3: Final = 0x20080522
EINVAL: Final = 22
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int = 0) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def api_ids(user: str) -> tuple[int, int]:
    """The uid and gid the api runs as: the named user's, else nobody's; one's own when not root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return NOBODY, NOBODY
    return entry.pw_uid, entry.pw_gid


def own(directory: Path, uid: int, gid: int) -> None:
    """Make a directory, private and owned by the api, with all plain files in it. No link is followed."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(place, 0o700)
        os.fchown(place, uid, gid)
        for name in os.listdir(place):
            _own_file(place, name, uid, gid)
    finally:
        os.close(place)


def _own_file(place: int, name: str, uid: int, gid: int) -> None:
    """An earlier api may have been taken over: only a plain file with one name is given away, by descriptor.

    The descriptor only names the file: closing one that had opened it would drop SQLite's locks on it, and the next
    to open the store would delete its log under us.
    """
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise PlatformFault(f"{name} in the api's state is not a plain file", code="store_unusable")
        os.chown(f"/proc/self/fd/{file}", uid, gid)
    finally:
        os.close(file)


def _drop_capabilities() -> None:
    for capability in range(64):
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == EINVAL:  # past the last one this kernel has
                return
            raise


def _clear_sets() -> None:
    header = (ctypes.c_uint32 * 2)(CAP_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    if _libc.syscall(SYS_CAPSET, header, empty) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def die_with(parent: int) -> None:
    """Be killed when the parent dies, also when it died already."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise PlatformFault("the parent is gone")


def drop(uid: int, gid: int) -> None:
    """Become the api's user for good. For anyone but root only the walls that need no privilege."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        _drop_capabilities()
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _clear_sets()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    if uid not in {0, os.geteuid()} or (uid and 0 in os.getresuid() + os.getresgid()):
        raise PlatformFault("privileges were not given up", code="sandbox_refused")


def widen_files() -> None:
    """As many descriptors as we may have: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
