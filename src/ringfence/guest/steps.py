"""The set-up of one sandbox: a flat list of steps, in an order that can be read aloud.

It runs in the sandbox's own process 1, straight after the fork and before anything of a tenant's is near.
A step that fails raises; whoever called reports its name and the sandbox is refused. No step is skipped in
silence: `Plan.without` is reachable from tests only, so that they can show each layer to be needed.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
from collections.abc import Callable
from typing import Final

from ringfence.guest import syscalls as sc
from ringfence.guest.plan import CHANNEL_FD, HOME, NEW_ROOT, SCRATCH, STAGE, USER_ID, Plan

KEPT_CAPABILITIES: Final = (1 << sc.CAP_SETUID) | (1 << sc.CAP_SETGID) | (1 << sc.CAP_KILL)
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41

# (directory in the scratch tmpfs, where it appears, mode, owner, extra mount flags)
SCRATCH_BINDS: Final = (
    ("home", HOME, 0o755, USER_ID, 0),
    ("tmp", "/tmp", 0o1777, 0, 0),  # noqa: S108 - a mount point, not a temporary file
    ("vartmp", "/var/tmp", 0o1777, 0, 0),  # noqa: S108
    ("run", "/run", 0o755, USER_ID, 0),
    ("shm", "/dev/shm", 0o1777, 0, sc.MS_NOEXEC),  # noqa: S108 - shared memory holds no programs
)
WRITABLE: Final = [place for _, place, _, _, _ in SCRATCH_BINDS]


class Context:
    """What the steps share: the plan, the compiled filter, the kernel's Landlock ABI."""

    def __init__(self, plan: Plan, seccomp: bytes, landlock_abi: int) -> None:
        self.plan = plan
        self.seccomp = seccomp
        self.landlock_abi = landlock_abi


def identity(ctx: Context) -> None:
    """Become uid 0 of our own user namespace: a range no other sandbox has. Everything made now is ours."""
    if ctx.plan.root:
        os.setgroups([])  # CVE-2023-25173: a leftover group opens other people's files
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # else our own /proc entries belong to nobody during set-up
    os.umask(0o022)


def no_nested_namespaces(_: Context) -> None:
    """No further user namespace below this one, whatever a filter says (CVE-2022-0185 and its kin)."""
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def loopback(_: Context) -> None:
    """Programs expect 127.0.0.1 to work and port 80 to be theirs; nothing else is in this namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as file:
        file.write("0")


def hostname(_: Context) -> None:
    """The host's name is not the sandbox's business."""
    sc.sethostname("sandbox")


def root_image(_: Context) -> None:
    """The template's files and the six devices, bound afresh: read-only, nosuid, nodev."""
    sc.bind(STAGE, NEW_ROOT, sc.MS_REC)


def scratch(ctx: Context) -> None:
    """One tmpfs, bounded in bytes and files, bound to every place a program may write."""
    plan = ctx.plan
    options = f"size={plan.scratch_bytes},nr_inodes={plan.scratch_files},mode=0755,huge=never"
    sc.mount("tmpfs", SCRATCH, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    for name, place, mode, owner, flags in SCRATCH_BINDS:
        source = f"{SCRATCH}/{name}"
        os.mkdir(source)
        os.chmod(source, mode)
        if plan.root:
            os.chown(source, owner, owner)
        sc.bind(source, NEW_ROOT + place, sc.MS_NOSUID | sc.MS_NODEV | flags if flags else 0)


def proc(ctx: Context) -> None:
    """Only this sandbox's own processes: no /proc/sys, no host counters, and other uids' are invisible."""
    options = "" if "masked_proc" in ctx.plan.without else "subset=pid,hidepid=2"
    sc.mount("proc", NEW_ROOT + "/proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, options)


def terminals(_: Context) -> None:
    """A terminal table of our own, so that no other session's can be named (attack 43)."""
    options = "newinstance,ptmxmode=0666,mode=0620"
    sc.mount("devpts", NEW_ROOT + "/dev/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, options)


def pivot(ctx: Context) -> None:
    """Leave the old tree for good; afterwards the working directory is inside (CVE-2024-21626)."""
    if "mount_namespace" in ctx.plan.without:
        os.chroot(NEW_ROOT)
        os.chdir("/")
        return
    sc.pivot_into(NEW_ROOT)
    if os.getcwd() != "/":
        raise sc.SetupError(0, "the working directory is outside the new root")


def cgroup_namespace(_: Context) -> None:
    """After the node attached us: /proc/self/cgroup shows / and nothing above."""
    sc.unshare(sc.CLONE_NEWCGROUP)


def keyring(_: Context) -> None:
    """Keyrings are not namespaced: take a new empty one (CVE-2016-0728, attack 51)."""
    sc.join_new_session_keyring()


def _lower(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (bound, bound))


def rlimits(ctx: Context) -> None:
    """The backstop behind the groups, and the whole fence where there are none."""
    plan = ctx.plan
    _lower(resource.RLIMIT_CORE, 0)  # attack 26: no core on the host, no helper run
    _lower(resource.RLIMIT_NOFILE, plan.open_files)
    _lower(resource.RLIMIT_NPROC, plan.processes + 2)
    _lower(resource.RLIMIT_MEMLOCK, 64 * 1024)
    _lower(resource.RLIMIT_SIGPENDING, 1024)
    _lower(resource.RLIMIT_MSGQUEUE, 64 * 1024)
    _lower(resource.RLIMIT_RTPRIO, 0)
    _lower(resource.RLIMIT_NICE, 0)
    _lower(resource.RLIMIT_STACK, 8 * 1024 * 1024)
    _lower(resource.RLIMIT_FSIZE, plan.scratch_bytes)
    _lower(resource.RLIMIT_CPU, int(plan.cpu_seconds) + 1)


def first_to_die(_: Context) -> None:
    """When the host runs out of memory, sandboxes go before anything of the operator's."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def no_new_privileges(_: Context) -> None:
    """setuid bits and file capabilities do nothing from here on."""
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)


def capabilities(ctx: Context) -> None:
    """Empty every set; the agent alone keeps three, permitted but not effective, to switch between its own uids."""
    sc.drop_bounding_set()
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.prctl(sc.PR_SET_SECUREBITS, sc.SECUREBITS_LOCKED)
    if ctx.plan.root:
        os.setresgid(USER_ID, USER_ID, 0)
        os.setresuid(USER_ID, USER_ID, 0)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)
    kept = KEPT_CAPABILITIES if ctx.plan.root else 0
    sc.set_capabilities(0, kept)


def landlock(ctx: Context) -> None:
    """A second fence around files, and around signals and abstract sockets where the kernel has it."""
    if ctx.landlock_abi:
        sc.landlock(ctx.landlock_abi, WRITABLE, ["/dev"])


def seccomp(ctx: Context) -> None:
    """Last: from here on only the listed calls exist."""
    sc.load_seccomp(ctx.seccomp)


def verify(ctx: Context) -> None:
    """Ask the kernel what it holds us to; a layer that did not take is a refusal."""
    seen = {
        "seccomp": sc.prctl(sc.PR_GET_SECCOMP) == sc.SECCOMP_MODE_FILTER,
        "no_new_privileges": sc.prctl(sc.PR_GET_NO_NEW_PRIVS) == 1,
        "capabilities": sc.prctl(sc.PR_CAPBSET_READ, 0) == 0 and not sc.effective_capabilities(),
    }
    for layer, holds in seen.items():
        if not holds and layer not in ctx.plan.without:
            raise sc.SetupError(0, f"the kernel does not confirm {layer}")


def undumpable(_: Context) -> None:
    """The agent's memory and descriptors are not its programs' to read, and with hidepid not even to see."""
    sc.prctl(sc.PR_SET_DUMPABLE, 0)


def closed_descriptors(_: Context) -> None:
    """Nothing is inherited but the null device and the channel (CVE-2024-21626: a leaked directory is a way out)."""
    sc.close_from(CHANNEL_FD + 1)


Step = Callable[[Context], None]
STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("closed_descriptors", closed_descriptors),
    ("uid_range", identity),
    ("nested_namespaces", no_nested_namespaces),
    ("network_namespace", loopback),
    ("uts_namespace", hostname),
    ("read_only_root", root_image),
    ("scratch", scratch),
    ("masked_proc", proc),
    ("terminals", terminals),
    ("mount_namespace", pivot),
    ("cgroup_namespace", cgroup_namespace),
    ("keyring", keyring),
    ("rlimits", rlimits),
    ("oom_order", first_to_die),
    ("no_new_privileges", no_new_privileges),
    ("capabilities", capabilities),
    ("landlock", landlock),
    ("seccomp", seccomp),
    ("verified", verify),
    ("agent_memory", undumpable),
)

# Layers made by the clone itself rather than by a step, and the flag each needs.
NAMESPACES: Final = {
    "user_namespace": sc.CLONE_NEWUSER,
    "pid_namespace": sc.CLONE_NEWPID,
    "mount_namespace": sc.CLONE_NEWNS,
    "network_namespace": sc.CLONE_NEWNET,
    "ipc_namespace": sc.CLONE_NEWIPC,
    "uts_namespace": sc.CLONE_NEWUTS,
}

# Steps that handle their own absence: skipping them whole would leave nothing alive to look from.
_NEEDED_TO_LIVE: Final = frozenset({"read_only_root", "scratch", "masked_proc", "mount_namespace"})


class StepFailed(Exception):
    """A layer could not be put in force."""

    def __init__(self, layer: str, cause: str) -> None:
        super().__init__(f"{layer}: {cause}")
        self.layer = layer


def clone_flags(plan: Plan) -> int:
    """Every namespace a sandbox gets from its clone."""
    flags = 0
    for layer, flag in NAMESPACES.items():
        if layer not in plan.without or layer == "mount_namespace":
            flags |= flag
    return flags


def in_force(plan: Plan, landlock_abi: int) -> list[str]:
    """Names of the layers this plan puts in force, for the owner to see."""
    names = list(NAMESPACES) + (["time_namespace"] if plan.time_namespace else [])
    names += [layer for layer, _ in STEPS if layer not in NAMESPACES]
    return [n for n in names if n not in plan.without and (n != "landlock" or landlock_abi)]


def set_up(ctx: Context) -> None:
    """Take every step in order. Raises StepFailed naming the layer at the first that fails."""
    for layer, step in STEPS:
        if layer in ctx.plan.without and layer not in _NEEDED_TO_LIVE:
            continue
        try:
            if ctx.plan.fault == layer:
                raise sc.SetupError(0, "failed on a test's wish")
            step(ctx)
        except (OSError, ValueError) as error:
            raise StepFailed(layer, str(error)) from error
