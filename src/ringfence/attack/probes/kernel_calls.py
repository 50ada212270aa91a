"""Knock on every kernel door a program has no business with, in forked children.

Arguments are chosen to do no harm even where a call is let through: a bad address or a bad magic number,
so that the kernel answers EFAULT or EINVAL instead of rebooting.
"""

import ctypes
import json
import os
import struct

from ringfence.attack.probes.prelude import call, in_child, libc, say

BAD = 1  # an address no program has mapped
NONE = -1  # no descriptor, no process
GROUP = 16  # calls in one child: a fork costs far more than a call

CALLS = {
    # asynchronous input and output: a second system call interface that no filter sees
    "io_uring_setup": (425, 8, BAD),
    "io_uring_enter": (426, NONE, 0, 0, 0, 0, 0),
    "io_uring_register": (427, NONE, 0, 0, 0),
    "io_setup": (206, 8, BAD),
    "io_submit": (209, 0, 0, 0),
    # programmable and observing parts of the kernel
    **{f"bpf command {command}": (321, command, BAD, 128) for command in range(40)},
    "perf_event_open": (298, BAD, 0, -1, -1, 0),
    "userfaultfd": (323, 0),
    "userfaultfd user mode": (323, 1),
    "fanotify_init": (300, 0, 0),
    "fanotify_mark": (301, NONE, 1, 0, NONE, 0),
    "quotactl": (179, 0x800007, BAD, 0, BAD),
    "quotactl_fd": (443, NONE, 0x800007, 0, BAD),
    "lookup_dcookie": (212, 0, BAD, 0),
    "seccomp": (317, 1, 0, BAD),
    "prctl PR_SET_SECCOMP": (157, 22, 2, BAD, 0, 0),
    # keyrings are not divided by namespaces
    "add_key": (248, BAD, BAD, 0, 0, -3),
    "request_key": (249, BAD, BAD, 0, -3),
    **{f"keyctl get {ring}": (250, 0, ring, 0) for ring in (-1, -2, -3, -4, -5)},
    "keyctl join": (250, 1, 0),
    # other processes' memory, descriptors and state
    "ptrace TRACEME": (101, 0, 0, 0, 0),
    "ptrace SEIZE 1": (101, 0x4206, 1, 0, 0),  # never ATTACH: where it works it would stop the agent for good
    "process_vm_readv 1": (310, 1, BAD, 1, BAD, 1, 0),
    "process_vm_writev 1": (311, 1, BAD, 1, BAD, 1, 0),
    "process_madvise": (440, NONE, BAD, 1, 20, 0),
    "process_mrelease": (448, NONE, 0),
    "pidfd_getfd": (438, NONE, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0),
    # modules, boot, accounting, clocks, names
    "init_module": (175, BAD, 1, BAD),
    "finit_module": (313, NONE, BAD, 0),
    "delete_module": (176, BAD, 0),
    "kexec_load": (246, 0, 0, 0, -1),
    "kexec_file_load": (320, NONE, NONE, 0, BAD, -1),
    "reboot": (169, 0, 0, 0, 0),
    "swapon": (167, BAD, 0),
    "swapoff": (168, BAD),
    "acct": (163, BAD),
    "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1),
    "modify_ldt": (154, 1, BAD, 16),
    "settimeofday": (164, BAD, 0),
    "clock_settime": (227, 0, BAD),
    "adjtimex": (159, BAD),
    "clock_adjtime": (305, 0, BAD),
    "syslog": (103, 10, 0, 0),
    "sethostname": (170, BAD, 5),
    "setdomainname": (171, BAD, 5),
    "vhangup": (153,),
    "personality no randomise": (135, 0x0040000),
    "personality read implies exec": (135, 0x0400000),
    # memory placed or shared in unusual ways
    "memfd_secret": (447, 0),
    "remap_file_pages": (216, 0, 0, 0, 0, 0),
    "move_pages": (279, 0, 1, BAD, 0, BAD, 0),
    "migrate_pages": (256, 0, 1, BAD, BAD),
    "mbind": (237, 0, 4096, 2, BAD, 8, 0),
    "set_mempolicy": (238, 2, BAD, 8),
    "splice": (275, NONE, 0, NONE, 0, 1, 0),
    "tee": (276, NONE, NONE, 1, 0),
    "vmsplice": (278, NONE, BAD, 1, 0),
    # privilege over other people's processor time
    "sched_setscheduler FIFO": (144, 0, 1, BAD),
    "sched_setparam": (142, 0, BAD),
    "sched_setattr": (314, 0, BAD, 0),
    # left over from other decades, and numbers that do not exist yet
    "uselib": (134, BAD),
    "ustat": (136, 0, BAD),
    "sysfs": (139, 3),
    "_sysctl": (156, BAD),
    "nfsservctl": (180, 0, BAD, BAD),
    "futex_wake": (454, BAD, 1, 1, 2),
    "futex_wait": (455, BAD, 1, 1, 2, 0, 0),
    "futex_requeue": (456, BAD, 0, 1, 1),
    **{f"unknown {number}": (number,) for number in (423, 480, 600, 999, 100_000)},
}

PI = {"LOCK_PI": 6, "UNLOCK_PI": 7, "TRYLOCK_PI": 8, "WAIT_REQUEUE_PI": 11, "CMP_REQUEUE_PI": 12, "LOCK_PI2": 13}


def futex(operation: int) -> str:
    """A priority-inheritance futex operation on a word of our own, with and without the private flag."""
    word = ctypes.c_uint32(0)
    address = ctypes.addressof(word)
    private = call(202, address, operation | 128, 1, 0, address, 0)
    shared = call(202, address, operation, 1, 0, address, 0)
    return private if private == shared else f"{private} and {shared}"


def keyring_of_ours() -> str:
    """Leave a key for whoever has the same user id."""
    kind, name, value = (ctypes.create_string_buffer(text) for text in (b"user", b"ringfence-probe", b"left"))
    return call(248, ctypes.addressof(kind), ctypes.addressof(name), ctypes.addressof(value), 4, -4)


def high_bits() -> str:
    """The same forbidden ioctl with rubbish in the upper half: a filter that compares 64 bits misses it."""
    read, write = os.openpty()
    byte = ctypes.create_string_buffer(b"x")
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    outcome = call(16, write, 0x1_0000_5412, ctypes.addressof(byte))
    os.close(read)
    return outcome


def io_uring() -> str:
    """A ring with honest parameters, as liburing would ask for it."""
    parameters = ctypes.create_string_buffer(struct.pack("120x"), 120)
    return call(425, 8, ctypes.addressof(parameters))


def together(names: list[str]) -> dict[str, str]:
    """Several calls in one child; in a child each where one of them ended it, or kept it waiting."""
    outcomes = in_child(lambda: json.dumps([call(*CALLS[name]) for name in names]))
    if outcomes.startswith("["):
        return dict(zip(names, json.loads(outcomes), strict=True))
    return {name: in_child(call, *CALLS[name]) for name in names}


names = list(CALLS)
calls: dict[str, str] = {}
for start in range(0, len(names), GROUP):
    calls |= together(names[start : start + GROUP])
calls |= {f"futex {name}": in_child(futex, op) for name, op in PI.items()}
calls["leave a key"] = in_child(keyring_of_ours)
calls["ioctl TIOCSTI with high bits"] = in_child(high_bits)
calls["io_uring_setup, honest"] = in_child(io_uring)
say(calls=calls)
