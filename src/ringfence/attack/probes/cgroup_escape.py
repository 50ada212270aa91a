# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Reach the control groups that hold us: write them, mount them again, move out of them."""

import ctypes
import os

from ringfence.attack.probes.prelude import attempt, in_child, libc, name_of, say, text_of

ROOTS = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/cgroup"]
FILES = {
    "cgroup.procs": "0",
    "tasks": "0",
    "memory.max": "max",
    "memory.limit_in_bytes": "-1",
    "pids.max": "max",
    "cpu.max": "max",
    "release_agent": "/tmp/x",
    "notify_on_release": "1",
    "devices.allow": "a",
    "cgroup.kill": "1",
}


def write(path: str, value: str) -> str:
    """Try to write one control file."""

    def put() -> None:
        with open(path, "w") as file:
            file.write(value)

    return attempt(put)


def mount(kind: bytes, options: bytes) -> str:
    """Mount the group file system where we may write."""
    place = os.path.expanduser("~/groups").encode()
    os.makedirs(place, exist_ok=True)
    if libc.mount(b"none", place, kind, 0, options) != 0:
        return name_of(ctypes.get_errno())
    return "ok"


wrote = {f"{root}/{name}": write(f"{root}/{name}", value) for root in ROOTS for name, value in FILES.items()}
made = {root: attempt(os.mkdir, f"{root}/ringfence-probe") for root in ROOTS}
mounted = {
    "cgroup memory": in_child(mount, b"cgroup", b"memory"),
    "cgroup rdma": in_child(mount, b"cgroup", b"rdma"),
    "cgroup2": in_child(mount, b"cgroup2", b""),
}
shown = [line for line in text_of("/proc/self/cgroup").splitlines() if not line.endswith(":/")]
outcomes = wrote | {f"mkdir in {root}": outcome for root, outcome in made.items()} | mounted
say(
    found=[f"{name}: ok" for name, outcome in outcomes.items() if outcome == "ok"]
    + [f"shown: {line}" for line in shown],
    tried=len(outcomes) + 1,
)
