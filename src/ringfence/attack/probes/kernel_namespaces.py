# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Ask the kernel for a new namespace, somebody else's namespace, or another view of the file tree."""

import ctypes
import os
import signal

from ringfence.attack.probes.prelude import call, in_child, libc, name_of, say, text_of

FLAGS = {
    "NEWTIME": 0x00000080,
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
UNSHARE, CLONE, CLONE3, SETNS = 272, 56, 435, 308
AT_FDCWD = -100
BAD = 1  # an address no program has mapped: a call that reaches its body says EFAULT

TREE = {
    "mount tmpfs": (165, "tmpfs", "/tmp", "tmpfs", 0, 0),
    "mount proc": (165, "proc", "/tmp", "proc", 0, 0),
    "mount overlay": (165, "overlay", "/tmp", "overlay", 0, 0),
    "mount cgroup": (165, "cgroup", "/tmp", "cgroup", 0, 0),
    "mount cgroup2": (165, "cgroup2", "/tmp", "cgroup2", 0, 0),
    "mount bind": (165, "/", "/tmp", "none", 4096, 0),
    "remount / writable": (165, "none", "/", "none", 4096 | 32, 0),
    "umount2 /proc": (166, "/proc", 2),
    "umount2 /": (166, "/", 2),
    "pivot_root": (155, "/tmp", "/tmp"),
    "chroot": (161, "/tmp"),
    "fsopen": (430, "tmpfs", 0),
    "fsconfig": (431, -1, 6, 0, 0, 0),
    "fsmount": (432, -1, 0, 0),
    "fspick": (433, AT_FDCWD, "/", 0),
    "open_tree": (428, AT_FDCWD, "/", 1),
    "open_tree_attr": (467, AT_FDCWD, "/", 1, 0, 0),
    "move_mount": (429, AT_FDCWD, "/tmp", AT_FDCWD, "/tmp", 0),
    "mount_setattr": (442, AT_FDCWD, "/", 0x8000, BAD, 32),
    "listmount": (458, BAD, BAD, 1, 0),
    "statmount": (457, BAD, BAD, 1, 0),
    "name_to_handle_at": (303, AT_FDCWD, "/", BAD, BAD, 0),
    "open_by_handle_at": (304, AT_FDCWD, BAD, 0),
}


def numbers(row: tuple[object, ...]) -> list[int]:
    """The row as plain integers, its texts as addresses that stay alive in KEPT."""
    plain: list[int] = []
    for value in row:
        if isinstance(value, int):
            plain.append(value)
        else:
            KEPT.append(ctypes.create_string_buffer(str(value).encode()))
            plain.append(ctypes.addressof(KEPT[-1]))
    return plain


def clone(flag: int) -> str:
    """clone(2) with the flag, the new process leaving at once."""
    ctypes.set_errno(0)
    child = libc.syscall(CLONE, ctypes.c_long(flag | signal.SIGCHLD), 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child == -1:
        return name_of(ctypes.get_errno())
    os.waitpid(child, 0)
    return "ok"


def clone3(flag: int) -> str:
    """clone3(2) with the flag: its arguments lie in memory, where no filter can read them."""
    arguments = (ctypes.c_uint64 * 11)(flag, 0, 0, 0, signal.SIGCHLD)
    ctypes.set_errno(0)
    child = libc.syscall(CLONE3, ctypes.byref(arguments), ctypes.c_long(ctypes.sizeof(arguments)))
    if child == 0:
        os._exit(0)
    if child == -1:
        return name_of(ctypes.get_errno())
    os.waitpid(child, 0)
    return "ok"


def join(kind: str) -> str:
    """setns(2) into a namespace of pid 1, or of our own when pid 1's is hidden."""
    for owner in ("1", "self"):
        try:
            fd = os.open(f"/proc/{owner}/ns/{kind}", os.O_RDONLY)
        except OSError:
            continue
        return call(SETNS, fd, 0)
    return "ENOENT"


def above() -> str:
    """Walk out of the root by an open directory: the classic end of a chroot."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    if libc.chroot(b"/tmp") == -1:
        return name_of(ctypes.get_errno())
    os.fchdir(fd)
    for _ in range(64):
        os.chdir("..")
    libc.chroot(b".")
    return "ok"


def map_root() -> str:
    """Write a mapping of our own."""
    with open("/proc/self/uid_map", "w") as file:
        file.write("0 0 1")
    return "ok"


KEPT: list[ctypes.Array[ctypes.c_char]] = []
calls = {f"unshare {name}": in_child(call, UNSHARE, flag) for name, flag in FLAGS.items()}
# clone(2) reads the bit of NEWTIME as part of a signal number, so only the others mean something there.
calls |= {f"clone {name}": in_child(clone, flag) for name, flag in FLAGS.items() if flag > 0xFF}
calls |= {f"clone3 {name}": in_child(clone3, flag) for name, flag in FLAGS.items()}
calls |= {
    f"setns {kind}": in_child(join, kind) for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
}
calls |= {name: in_child(call, *numbers(row)) for name, row in TREE.items()}
calls["chroot walk-out"] = in_child(above)
calls["write uid_map"] = in_child(map_root)
say(calls=calls, mounts=len(text_of("/proc/self/mountinfo").splitlines()))
