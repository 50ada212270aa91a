"""The kernel calls Python does not offer, as prepared values: made once, executed many times, every one checked.

A `Call` is made where there is time and executed where there is none: in a fresh fork, each Python object
touched is a page copied, and a prepared call touches few. Numbers are those of x86_64 (Linux uapi headers);
another architecture is refused before anything is set up.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterable

from ringfence.guest.annotations import Final

ARCH: Final = "x86_64"

_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_SIGCHLD: Final = 17
_PR_GET_TID_ADDRESS: Final = 40
_TID_IN_THREAD: Final = 0x2D0  # of glibc's struct pthread on x86_64
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

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SYS_ADMIN: Final = 21

_NUMBERS: Final = {
    "read": 0, "write": 1, "open": 2, "close": 3, "mmap": 9, "mprotect": 10,
    "rt_sigaction": 13, "ioctl": 16, "pwrite64": 18, "dup2": 33, "socket": 41, "clone": 56, "wait4": 61, "getcwd": 79,
    "chdir": 80, "mkdir": 83,
    "symlink": 88, "chmod": 90, "chown": 92, "lchown": 94,
    "ftruncate": 77, "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119, "capget": 125,
    "capset": 126, "statfs": 137, "pivot_root": 155, "prctl": 157, "chroot": 161, "mount": 165,
    "umount2": 166, "sethostname": 170,
    "exit_group": 231, "keyctl": 250, "unshare": 272, "fallocate": 285, "dup3": 292, "prlimit64": 302, "clone3": 435,
    "close_range": 436,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip
_CAP_VERSION_3: Final = 0x20080522
_KEYCTL_JOIN_SESSION: Final = 1

# PyDLL, not CDLL: the lock of the interpreter is held across the call, so a bare clone finds it held in the child.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.pthread_self.restype = ctypes.c_ulong
_syscall: Final = _libc.syscall


class SetupError(OSError):
    """A kernel call of the set-up failed; its text names it."""


class Call:
    """One prepared system call: what to say when it fails, its registers, the one result that is right (-1: any)."""

    __slots__ = ("args", "expect", "keeps", "number", "what")

    def __init__(self, what: str, number: int, args: tuple[int, ...], expect: int, keeps: tuple[object, ...]) -> None:
        """`keeps` is the memory that its addresses point at."""
        self.what = what
        self.number = number
        self.args = args
        self.expect = expect
        self.keeps = keeps


def call(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char], what: str = "", expect: int = -1) -> Call:
    """Prepare the system call `name`; bytes are passed by address (with a NUL behind them) and kept alive."""
    held = [ctypes.create_string_buffer(a) if isinstance(a, bytes) else a for a in args]
    values = tuple(a if isinstance(a, int) else ctypes.addressof(a) for a in held)
    return Call(what or name, _NUMBERS[name], values, expect, tuple(a for a in held if not isinstance(a, int)))


def attempt(prepared: Call) -> int:
    """Make the call and give its result, or the negative errno."""
    result = int(_syscall(ctypes.c_long(prepared.number), *(ctypes.c_ulong(a) for a in prepared.args)))
    return result if result >= 0 else -ctypes.get_errno()


def execute(prepared: Call) -> int:
    """Make the call. Raises SetupError unless it succeeds as expected."""
    result = attempt(prepared)
    if result < 0:
        raise SetupError(-result, f"{prepared.what}: {os.strerror(-result)}")
    if prepared.expect not in {-1, result}:
        raise SetupError(0, f"{prepared.what}: gave {result}")
    return result


def do(calls: Iterable[Call]) -> None:
    """Make every call in order. Raises SetupError at the first that fails."""
    for prepared in calls:
        execute(prepared)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> list[Call]:
    """Mount a new file system."""
    words = source.encode(), target.encode(), kind.encode() or 0, flags, options.encode() or 0
    return [call("mount", *words, what=f"mount {kind or source} on {target}")]


def bind(source: str, target: str, flags: int = 0) -> list[Call]:
    """Bind `source` on `target`, then apply mount flags to the new mount (the first call ignores them)."""
    calls = mount(source, target, flags=MS_BIND | (flags & MS_REC))
    if flags & ~MS_REC:
        calls += mount("none", target, flags=MS_BIND | MS_REMOUNT | (flags & ~MS_REC))
    return calls


def pivot_into(new_root: str) -> list[Call]:
    """Make `new_root` the root and detach the old one: afterwards no path leads out, the working directory included."""
    return [
        call("chdir", new_root.encode(), what="enter the new root"),
        call("pivot_root", b".", b"."),
        call("umount2", b".", MNT_DETACH, what="detach the old root"),
        call("chdir", b"/"),
        # Two bytes: "/" and its end. Outside the root the kernel would say "(unreachable)" (CVE-2024-21626).
        call("getcwd", ctypes.create_string_buffer(256), 256, what="the working directory is outside", expect=2),
    ]


def prctl(option: int, *args: int, expect: int = -1, what: str = "") -> Call:
    """Prepare prctl with integer arguments."""
    return call("prctl", option, *(*args, 0, 0, 0, 0)[:4], what=what or f"prctl {option}", expect=expect)


def set_name(name: str) -> Call:
    """Name this process in ps and top (15 bytes)."""
    return call("prctl", PR_SET_NAME, name.encode()[:15], 0, 0, 0, what="prctl name")


def drop_bounding_set(keep: int = 0) -> list[Call]:
    """Empty the capability bounding set but for `keep`, up to the last capability this kernel knows."""
    known = [c for c in range(64) if attempt(prctl(PR_CAPBSET_READ, c)) >= 0 and not keep >> c & 1]
    return [prctl(PR_CAPBSET_DROP, c, what=f"drop capability {c}") for c in known]


def set_capabilities(effective: int, permitted: int) -> Call:
    """Set this process's sets; the inheritable one is always emptied."""
    header = struct.pack("=Ii", _CAP_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack("=6I", effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    return call("capset", buffer(header), buffer(data))


def buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """Bytes that may hold NULs, at an address of their own."""
    held: ctypes.Array[ctypes.c_char] = ctypes.create_string_buffer(data, len(data))
    return held


def close_from(first: int, last: int = 0x7FFFFFFF) -> Call:
    """Close every descriptor from `first` up, or up to `last`."""
    return call("close_range", first, last, 0)


def write_file(path: str, value: str, fd: int) -> list[Call]:
    """Write a kernel file. `fd` is the lowest free descriptor, which the kernel is bound to give."""
    data = value.encode()
    return [
        call("open", path.encode(), os.O_WRONLY | os.O_CLOEXEC, 0, what=f"open {path}", expect=fd),
        call("write", fd, data, len(data), what=f"write {value} to {path}", expect=len(data)),
        call("close", fd),
    ]


def join_new_session_keyring() -> list[Call]:
    """Leave every inherited keyring behind; nothing to do on a kernel without keyrings."""
    probe = call("keyctl", 0, (1 << 64) - 3, 0, 0, 0)  # KEYCTL_GET_KEYRING_ID of the session
    if attempt(probe) == -38:
        return []
    return [call("keyctl", _KEYCTL_JOIN_SESSION, 0, 0, 0, 0, what="join a new session keyring")]


def load_seccomp(program: bytes) -> Call:
    """Install a compiled filter (an array of sock_filter) on this thread; needs no_new_privs."""
    code = buffer(program)
    fprog = buffer(struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    prepared = call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0, what="load the seccomp filter")
    prepared.keeps = fprog, code
    return prepared


def thread_id_address() -> int:
    """Where the C library keeps this thread's id, so that a clone can be told to renew it; 0 if the kernel is mute."""
    address = ctypes.create_string_buffer(8)
    if attempt(call("prctl", _PR_GET_TID_ADDRESS, address, 0, 0, 0)) >= 0:
        return int.from_bytes(address.raw, "little")
    # gVisor does not say. The place has been the same in every glibc of this architecture since 2.10; where what lies
    # there is not our id, it is not believed.
    own = int(_libc.pthread_self()) + _TID_IN_THREAD
    return own if ctypes.c_int.from_address(own).value == threading.get_native_id() else 0


def trim_heap() -> None:
    """Give the C library's free memory back: what is not there need not be copied."""
    _libc.malloc_trim(0)


class Cloner:
    """Forks into new namespaces, with everything prepared but the call itself.

    Only for a process with one thread that holds no lock: neither the C library's nor Python's own fork handlers
    run. They would touch, and so copy, some 250 pages that a sandbox never writes again; what they guard against
    (locks held by other threads) cannot be here. The caller renews random state itself (reseed.py), and
    `tid_address` renews the one field the C library would.
    """

    def __init__(self, flags: int, tid_address: int = 0) -> None:
        """`flags` are the CLONE_NEW* of every child."""
        self._pidfd = ctypes.c_int(-1)
        if tid_address:
            flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
        fields = (flags | CLONE_PIDFD, ctypes.addressof(self._pidfd), tid_address, 0, _SIGCHLD, 0, 0, 0, 0, 0, 0)
        self._fields = buffer(struct.pack("=11Q", *fields))
        self._arguments = ctypes.c_long(_NUMBERS["clone3"]), self._fields, ctypes.c_ulong(88)
        self.call = call("clone3", self._fields, 88, expect=0)

    def clone(self) -> tuple[int, int]:
        """(0, -1) in the child, (pid, pidfd) in the parent. Raises SetupError."""
        pid = _syscall(*self._arguments)
        return (0, -1) if pid == 0 else self.parent(pid if pid > 0 else -ctypes.get_errno())

    def parent(self, result: int) -> tuple[int, int]:
        """(pid, pidfd), where `call` was made and gave the parent this. Raises SetupError for an error."""
        if result < 0:
            raise SetupError(-result, f"clone3: {os.strerror(-result)}")
        return result, self._pidfd.value


def fork_flags(tid_address: int) -> int:
    """The flags of a bare fork."""
    return _SIGCHLD | (_CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID if tid_address else 0)


def fork(tid_address: int = 0) -> int:
    """The same bare fork under the sandbox's filter, which refuses clone3: 0 in the child, the pid in the parent."""
    return execute(call("clone", fork_flags(tid_address), 0, 0, tid_address, 0))


# Landlock rights by the ABI that introduced them (Linux uapi landlock.h).
_FS_EXECUTE: Final = 1 << 0
_FS_WRITE_FILE: Final = 1 << 1
_FS_READ: Final = (1 << 2) | (1 << 3)
_FS_ABI1: Final = (1 << 13) - 1
_FS_REFER: Final = 1 << 13
_FS_TRUNCATE: Final = 1 << 14
_FS_IOCTL_DEV: Final = 1 << 15
_SCOPE_ALL: Final = 0b11


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    return max(0, attempt(call("landlock_create_ruleset", 0, 0, 1)))


def _handled(abi: int) -> int:
    rights = _FS_ABI1
    for since, right in ((2, _FS_REFER), (3, _FS_TRUNCATE), (5, _FS_IOCTL_DEV)):
        if abi >= since:
            rights |= right
    return rights


def landlock(abi: int, writable: list[str], fd: int) -> list[Call]:
    """Allow reading and executing everywhere, all rights below `writable`, writing to devices and own /proc entries.

    From ABI 6 on, abstract sockets and signals stay inside the domain too. `fd` and the next one are free.
    """
    handled = _handled(abi)
    base = _FS_EXECUTE | _FS_READ
    device = base | (handled & (_FS_WRITE_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV))
    rules = [("/", base), ("/proc", base | _FS_WRITE_FILE), ("/dev", device)]
    rules += [(path, handled & ~_FS_IOCTL_DEV) for path in writable]
    attr = buffer(struct.pack("=QQQ", handled, 0, _SCOPE_ALL if abi >= 6 else 0))
    calls = [call("landlock_create_ruleset", attr, 24 if abi >= 6 else 16 if abi >= 4 else 8, 0, expect=fd)]
    for path, rights in rules:
        rule = buffer(struct.pack("=Qi", rights, fd + 1))
        calls.append(call("open", path.encode(), os.O_PATH | os.O_CLOEXEC, 0, what=f"open {path}", expect=fd + 1))
        calls.append(call("landlock_add_rule", fd, 1, rule, 0, what=f"landlock {path}"))
        calls.append(call("close", fd + 1))
    return [*calls, call("landlock_restrict_self", fd, 0), call("close", fd)]
