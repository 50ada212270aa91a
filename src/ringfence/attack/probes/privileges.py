"""Ask for more: another user, more priority, protection from the out-of-memory killer, capabilities, locked memory."""

import ctypes
import mmap
import os
import resource
import subprocess

from ringfence.attack.probes.prelude import attempt, call, in_child, libc, say, text_of


def own_score(value: str) -> str:
    """Write our own oom_score_adj."""

    def put() -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(value)

    return attempt(put)


def all_capabilities() -> str:
    """Every capability, in every set we can name."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*([0xFFFFFFFF] * 6))
    return call(126, ctypes.addressof(header), ctypes.addressof(data))


def run(*argv: str) -> str:
    """Run a setuid helper; its user id as it sees it."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__


def lock(size: int) -> str:
    """Pin memory."""
    area = ctypes.create_string_buffer(size)
    return call(149, ctypes.addressof(area), size)


def merge() -> str:
    """Offer pages to be merged with equal ones of anybody."""
    area = mmap.mmap(-1, 1 << 20)
    return attempt(area.madvise, 12)


mine = os.getuid()
refused = {
    "setuid 0": in_child(attempt, os.setuid, 0),
    "setuid 65534": in_child(attempt, os.setuid, 65534),
    "setresuid 0": in_child(attempt, os.setresuid, 0, 0, 0),
    "setgid 0": in_child(attempt, os.setgid, 0),
    "setgroups": in_child(attempt, os.setgroups, [0, 4, 27, 999]),
    "all capabilities": in_child(all_capabilities),
    "ambient capability": in_child(call, 157, 47, 2, 21, 0, 0),
    "keep capabilities": in_child(call, 157, 8, 1, 0, 0, 0),
    "securebits": in_child(call, 157, 28, 0, 0, 0, 0),
    "oom_score_adj -1000": in_child(own_score, "-1000"),
    "oom_score_adj 0": in_child(own_score, "0"),
    "nice -20": in_child(attempt, os.setpriority, os.PRIO_PROCESS, 0, -20),
    "real-time priority": in_child(lambda: call(144, 0, 1, ctypes.addressof(ctypes.c_int(50)))),
    "real-time input and output": in_child(call, 251, 1, 0, 1 << 13),
    "lock 16 MiB": in_child(lock, 16 << 20),
    "lock everything": in_child(call, 151, 3),
    "raise open files": in_child(attempt, resource.setrlimit, resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)),
    "raise processes": in_child(attempt, resource.setrlimit, resource.RLIMIT_NPROC, (1 << 20, 1 << 20)),
    "raise core size": in_child(attempt, resource.setrlimit, resource.RLIMIT_CORE, (1, 1)),
    "limits of process 1": in_child(attempt, resource.prlimit, 1, resource.RLIMIT_NOFILE, (10, 10)),
    "merge pages with neighbours": in_child(merge),
}


ran = {
    name: run(*argv)
    for name, argv in {
        "su": ("su", "-c", "id -u"),
        "sudo": ("sudo", "-n", "id", "-u"),
        "newuidmap": ("newuidmap", str(os.getpid()), "0", "0", "1"),
    }.items()
}
caps = [
    line for line in text_of("/proc/self/status").splitlines() if line.startswith("Cap") and int(line.split()[1], 16)
]
libc.prctl(1, 0, 0, 0, 0)
say(
    found=[f"{name}: {outcome}" for name, outcome in refused.items() if outcome == "ok"]
    + [f"{name} ran as {who}" for name, who in ran.items() if who == "0" and mine]
    + caps,
    tried=len(refused) + len(ran),
    refused=refused,
    ran=ran,
    uid=mine,
)
