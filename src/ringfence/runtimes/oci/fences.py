"""The layers of both runtimes by name, and why one that the jail has is not there."""

from __future__ import annotations

from typing import Final

from ringfence.guest.boot import GVISOR, PLAIN, layers_of
from ringfence.runtimes.base import Layer

ISOLATION: Final = {
    PLAIN: "a container by {tool}: namespaces, seccomp and Landlock on a shared kernel",
    GVISOR: "gVisor by {tool}: a kernel of its own in user space, behind namespaces and seccomp",
}
#: What the tool makes, from its config.json; the guest confirms from inside what can be seen from there.
BY_TOOL: Final = {
    PLAIN: ("mount_namespace", "ipc_namespace", "cgroup_namespace"),
    GVISOR: ("application_kernel", "user_namespace", "mount_namespace", "ipc_namespace"),
}
#: What the launcher makes around the tool.
AROUND: Final = ("tool_pid_namespace", "tool_root", "time_namespace")
LIMITS: Final = ("memory_limit", "cpu_limit", "pids_limit")
#: Fences of the jail that have no sense, or no means, under gVisor's kernel.
NOT_UNDER_GVISOR: Final = {
    "landlock": "gVisor's kernel has no Landlock; its own gofer opens files by one descriptor of the root",
    "nested_namespaces": "gVisor has no limit on namespaces; the filter refuses to make any",
    "masked_proc": "gVisor's /proc is made up from the sandbox alone: there is nothing of the host's to mask",
    "keyring": "gVisor's kernel has no keyrings",
    "oom_order": "the host sees one process, gVisor's kernel, and not the programs in it",
    "cgroup_namespace": "gVisor shows programs no control groups of the host's",
    "scratch_files": "gVisor's tmpfs counts bytes, not files; its memory limit holds for both",
}


def layers(kernel: str, missing_groups: dict[str, str], landlock_abi: int) -> list[Layer]:
    """Every fence of this kind of sandbox on this host, with the reason where one is missing."""
    missing = {f"{name}_limit": reason for name, reason in missing_groups.items()}
    if kernel == GVISOR:
        missing |= NOT_UNDER_GVISOR
    elif not landlock_abi:
        missing["landlock"] = "this kernel has no Landlock (5.13 or newer, lsm=landlock)"
    names = dict.fromkeys([*AROUND, *BY_TOOL[kernel], *layers_of(kernel), "reseed", *LIMITS, *missing])
    return [Layer(name, name not in missing, missing.get(name, "")) for name in names]


def in_force(kernel: str, inside: set[str], enforces: frozenset[str], without: frozenset[str]) -> tuple[str, ...]:
    """The layers of one sandbox: those its guest confirmed, and those around it."""
    outside = {*AROUND, *BY_TOOL[kernel], *(f"{kind}_limit" for kind in enforces)}
    return tuple(sorted((outside | inside) - without))
