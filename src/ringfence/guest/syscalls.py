"""The kernel calls Python does not offer, through ctypes. Every one is checked; every failure is an OSError.

Numbers are those of x86_64 (Linux uapi headers); another architecture is refused before anything is set up.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

ARCH: Final = "x86_64"

_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_SIGCHLD: Final = 17
_PR_GET_TID_ADDRESS: Final = 40
CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_GET_SECCOMP: Final = 21
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
SECCOMP_MODE_FILTER: Final = 2

# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE on, KEEP_CAPS off, all four locked (uapi securebits.h).
SECUREBITS_LOCKED: Final = 0b1110_1111

CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7

_SYS_CLONE: Final = 56
_SYS_PIVOT_ROOT: Final = 155
_SYS_CAPGET: Final = 125
_SYS_CAPSET: Final = 126
_SYS_KEYCTL: Final = 250
_SYS_CLONE3: Final = 435
_SYS_CLOSE_RANGE: Final = 436
_SYS_LANDLOCK_CREATE: Final = 444
_SYS_LANDLOCK_ADD: Final = 445
_SYS_LANDLOCK_RESTRICT: Final = 446
_CAP_VERSION_3: Final = 0x20080522
_KEYCTL_JOIN_SESSION: Final = 1

# PyDLL, not CDLL: the lock of the interpreter is held across the call, so a raw clone finds it held in the child.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class SetupError(OSError):
    """A kernel call of the set-up failed; `what` names it."""


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise SetupError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *args: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args), what)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {kind or source} on {target}")


def bind(source: str, target: str, flags: int = 0) -> None:
    """Bind `source` on `target`, then apply mount flags to the new mount (they are ignored by the first call)."""
    mount(source, target, flags=MS_BIND | (flags & MS_REC))
    if flags & ~MS_REC:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | (flags & ~MS_REC))


def pivot_into(new_root: str) -> None:
    """Make `new_root` the root and detach the old one: afterwards no path leads out."""
    os.chdir(new_root)
    _syscall(_SYS_PIVOT_ROOT, "pivot_root", b".", b".")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    _check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def prctl(option: int, *args: int) -> int:
    """prctl(2) with integer arguments."""
    padded = [ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(option, *padded), f"prctl {option}")


def set_name(name: str) -> None:
    """Name this process in ps and top (15 bytes)."""
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15]), "prctl name")


def drop_bounding_set() -> None:
    """Empty the capability bounding set, whatever the kernel's last capability is."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            return


def set_capabilities(effective: int, permitted: int) -> None:
    """capset(2) for this process; the inheritable set is always emptied."""
    header = struct.pack("=Ii", _CAP_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack("=6I", effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    _syscall(_SYS_CAPSET, "capset", header, data)


def effective_capabilities() -> int:
    """The set of capabilities in effect for this process, as a bit mask."""
    header = struct.pack("=Ii", _CAP_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _syscall(_SYS_CAPGET, "capget", header, data)
    low, _, _, high, _, _ = struct.unpack("=6I", data.raw)
    return int(low | high << 32)


def close_from(first: int) -> None:
    """close_range(2): close every descriptor from `first` up."""
    _syscall(_SYS_CLOSE_RANGE, "close_range", ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0)


def join_new_session_keyring() -> None:
    """Leave every inherited keyring behind. A kernel without keyrings has nothing to leave."""
    result = _libc.syscall(ctypes.c_long(_SYS_KEYCTL), _KEYCTL_JOIN_SESSION, None)
    if result < 0 and ctypes.get_errno() != 38:
        _check(result, "keyctl join session keyring")


def load_seccomp(program: bytes) -> None:
    """Install a compiled filter (an array of sock_filter) on this thread; needs no_new_privs."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(fprog, len(fprog))
    result = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), buffer, 0, 0)
    _check(result, "prctl seccomp")


def thread_id_address() -> int:
    """Where the C library keeps this thread's id, so that a clone can be told to renew it; 0 if the kernel is mute."""
    address = ctypes.c_ulong(0)
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) < 0:
        return 0
    return address.value


def clone(flags: int = 0, tid_address: int = 0) -> tuple[int, int]:
    """Fork, into new namespaces if `flags` say so: (0, -1) in the child, (pid, pidfd) in the parent.

    Only for a process with one thread that holds no lock: neither the C library's nor Python's own fork handlers
    run. They would touch, and so copy, some 250 pages that a sandbox never writes again; what they guard against
    (locks held by other threads) cannot be here. The caller renews random state itself (reseed.py), and
    `tid_address` renews the one field the C library would.
    """
    pidfd = ctypes.c_int(-1)
    if tid_address:
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    fields = (flags | CLONE_PIDFD, ctypes.addressof(pidfd), tid_address, 0, _SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = _syscall(_SYS_CLONE3, "clone3", struct.pack("=11Q", *fields), ctypes.c_size_t(88))
    return (0, -1) if pid == 0 else (pid, pidfd.value)


def fork(tid_address: int = 0) -> int:
    """The same bare fork under the sandbox's filter, which refuses clone3: 0 in the child, the pid in the parent."""
    flags = _SIGCHLD | (_CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID if tid_address else 0)
    return _syscall(_SYS_CLONE, "clone", ctypes.c_ulong(flags), None, None, ctypes.c_ulong(tid_address), None)


# Landlock rights by the ABI that introduced them (Linux uapi landlock.h).
_FS_EXECUTE: Final = 1 << 0
_FS_READ: Final = (1 << 2) | (1 << 3)
_FS_ABI1: Final = (1 << 13) - 1
_FS_REFER: Final = 1 << 13
_FS_TRUNCATE: Final = 1 << 14
_FS_IOCTL_DEV: Final = 1 << 15
_SCOPE_ALL: Final = 0b11


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    return max(0, int(_libc.syscall(ctypes.c_long(_SYS_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def _handled(abi: int) -> int:
    rights = _FS_ABI1
    for since, right in ((2, _FS_REFER), (3, _FS_TRUNCATE), (5, _FS_IOCTL_DEV)):
        if abi >= since:
            rights |= right
    return rights


def landlock(abi: int, writable: list[str], devices: list[str]) -> None:
    """Allow reading and executing everywhere below /, all rights below `writable`, ioctl below `devices`.

    From ABI 6 on, abstract sockets and signals stay inside the domain too. Raises SetupError.
    """
    handled = _handled(abi)
    attr = struct.pack("=QQQ", handled, 0, _SCOPE_ALL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _syscall(_SYS_LANDLOCK_CREATE, "landlock_create_ruleset", attr, ctypes.c_size_t(size), ctypes.c_uint(0))
    try:
        base = _FS_EXECUTE | _FS_READ
        write_file = (1 << 1) | (_FS_TRUNCATE & handled) | (_FS_IOCTL_DEV & handled)
        _landlock_path(ruleset, "/", base)
        _landlock_path(ruleset, "/proc", base | (1 << 1))  # a program may raise its own oom score
        for path in writable:
            _landlock_path(ruleset, path, handled & ~_FS_IOCTL_DEV)
        for path in devices:
            _landlock_path(ruleset, path, base | write_file)
        _syscall(_SYS_LANDLOCK_RESTRICT, "landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _landlock_path(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, fd)
        _syscall(_SYS_LANDLOCK_ADD, f"landlock {path}", ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
    finally:
        os.close(fd)
