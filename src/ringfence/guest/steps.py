"""The set-up of one sandbox: a flat list of steps, in an order that can be read aloud.

Each step is a short list of system calls, prepared in the zygote once for every shape of limits and executed in
the sandbox's own process 1, straight after the fork and before anything of a tenant's is near. A call that fails
refuses the sandbox and names the step. No step is skipped in silence: `Plan.without` is reachable from tests only,
so that they can show each layer to be needed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Callable

from ringfence.guest import furnishing, table
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Final
from ringfence.guest.plan import CHANNEL_FD, FATE_FD, HOME, NEW_ROOT, SCRATCH, STAGE, USER_ID, Plan

KEPT_CAPABILITIES: Final = (1 << sc.CAP_SETUID) | (1 << sc.CAP_SETGID) | (1 << sc.CAP_KILL)
# What `root` of a build has beside: over its own files, in its own user namespace, and nothing of the kernel's.
BUILDING_CAPABILITIES: Final = (
    KEPT_CAPABILITIES | (1 << sc.CAP_CHOWN) | (1 << sc.CAP_DAC_OVERRIDE) | (1 << sc.CAP_FOWNER) | (1 << sc.CAP_FSETID)
)
SKELETON: Final = "/etc/skel"
SKELETON_MOST: Final = 32
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41
_RLIMIT_SIGPENDING: Final = 11
_RLIMIT_MSGQUEUE: Final = 12
_RLIMIT_NICE: Final = 13
_RLIMIT_RTPRIO: Final = 14

# (directory in the scratch tmpfs, where it appears, mode, owner, extra mount flags)
SCRATCH_BINDS: Final = (
    ("home", HOME, 0o755, USER_ID, 0),
    ("tmp", "/tmp", 0o1777, 0, 0),  # noqa: S108 - a mount point, not a temporary file
    ("vartmp", "/var/tmp", 0o1777, 0, 0),  # noqa: S108
    ("run", "/run", 0o755, USER_ID, 0),
    ("shm", "/dev/shm", 0o1777, 0, sc.MS_NOEXEC),  # noqa: S108 - shared memory holds no programs
)
# Where agents of several frameworks work unless told otherwise, and which they would make in a root of their own.
WORKSPACE: Final = ("workspace", "/workspace", 0o755, USER_ID, 0)
# Of a build these are part of its root, as all else is.
BUILT: Final = (HOME, "/tmp", "/var/tmp", WORKSPACE[1])  # noqa: S108


def binds(root: str) -> list[tuple[str, str, int, int, int]]:
    """Every place that may be written, where a template's files are at `root`. A workspace it has must be empty.

    One with files in it is the template's own, and a link is not followed: nothing is mounted where it leads.
    """
    place, ours = root + WORKSPACE[1], False
    with contextlib.suppress(OSError):
        ours = not os.path.islink(place) and not os.listdir(place)
    return [*SCRATCH_BINDS, WORKSPACE] if ours else list(SCRATCH_BINDS)


class Context:
    """What the steps are made from: the plan, the compiled filter, the kernel's Landlock ABI, the template's root."""

    def __init__(self, plan: Plan, seccomp: bytes, landlock_abi: int, root: str = STAGE) -> None:
        self.plan = plan
        self.seccomp = seccomp
        self.landlock_abi = landlock_abi
        self.binds = binds(root)
        # The lowest free descriptor while the sandbox is set up.
        self.free_fd = (FATE_FD if plan.lone else CHANNEL_FD) + 1


Calls = list[sc.Call]


def closed_descriptors(ctx: Context) -> Calls:
    """Nothing is inherited but the null device, the channel and a lone run's own three.

    CVE-2024-21626: a leaked directory is a way out.
    """
    null = [sc.call("dup2", 0, 1), sc.call("dup2", 0, 2)]  # the zygote's words go to the node's log, ours must not
    return [*null, sc.close_from(ctx.free_fd)]


def uid_range(ctx: Context) -> Calls:
    """Become uid 0 of our own user namespace: a range no other sandbox has. Everything made now is ours."""
    calls = [sc.call("umask", 0o022)]
    if ctx.plan.root:
        calls += [
            sc.call("setgroups", 0, 0),  # CVE-2023-25173: a leftover group opens other people's files
            sc.call("setresgid", 0, 0, 0),
            sc.call("setresuid", 0, 0, 0),
            sc.prctl(sc.PR_SET_DUMPABLE, 1),  # else our own /proc entries belong to nobody during set-up
        ]
    return calls


def nested_namespaces(ctx: Context) -> Calls:
    """No further user namespace below this one, whatever a filter says (CVE-2022-0185 and its kin)."""
    return sc.write_file("/proc/sys/user/max_user_namespaces", "0", ctx.free_fd)


def network_namespace(ctx: Context) -> Calls:
    """Programs expect 127.0.0.1 to work and port 80 to be theirs; nothing else is in this namespace."""
    ifreq = struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING)
    return [
        sc.call("socket", socket.AF_INET, socket.SOCK_DGRAM, 0, expect=ctx.free_fd),
        sc.call("ioctl", ctx.free_fd, _SIOCSIFFLAGS, ifreq, what="bring up the loopback"),
        sc.call("close", ctx.free_fd),
        *sc.write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", ctx.free_fd),
    ]


def uts_namespace(_: Context) -> Calls:
    """The host's name is not the sandbox's business."""
    return [sc.call("sethostname", b"sandbox", 7)]


def held(plan: Plan) -> int:
    """The capabilities its agent keeps permitted, to hand on or to switch users by; none without privileges."""
    if not plan.root:
        return 0
    return BUILDING_CAPABILITIES if plan.writable else KEPT_CAPABILITIES


def read_only_root(ctx: Context) -> Calls:
    """The template's files and the six devices, bound afresh: read-only, nosuid, nodev.

    Of a build: the devices, and a bounded memory file system of its own that the files are copied into.
    """
    if not ctx.plan.writable:
        return sc.bind(STAGE, NEW_ROOT, sc.MS_REC)
    dev = f"{NEW_ROOT}/dev"
    return [
        *sc.mount("tmpfs", NEW_ROOT, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, _bounds(ctx.plan)),
        sc.call("mkdir", dev.encode(), 0o755),
        *sc.bind(f"{STAGE}/dev", dev, sc.MS_REC),
    ]


def _bounds(plan: Plan) -> str:
    return f"size={plan.scratch_bytes},nr_inodes={plan.scratch_files},mode=0755,huge=never"


def scratch(ctx: Context) -> Calls:
    """One tmpfs, bounded in bytes and files, bound to every place a program may write."""
    plan = ctx.plan
    calls = sc.mount("tmpfs", SCRATCH, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, _bounds(plan))
    for name, place, mode, owner, flags in ctx.binds:
        if plan.writable and place in BUILT:
            continue
        source = f"{SCRATCH}/{name}"
        calls.append(sc.call("mkdir", source.encode(), mode))
        calls.append(sc.call("chmod", source.encode(), mode))
        if plan.root:
            calls.append(sc.call("chown", source.encode(), owner, owner))
        if place == HOME:
            calls += skeleton(source, owned=plan.root)
        calls += sc.bind(source, NEW_ROOT + place, sc.MS_NOSUID | sc.MS_NODEV | flags if flags else 0)
    return calls + resolver(plan.resolver, ctx.free_fd) if plan.resolver else calls


def resolver(text: str, fd: int) -> Calls:
    """Whom to ask for names, in the one file that programs read it from; read-only, as is all of /etc."""
    source, data = f"{SCRATCH}/resolver", text.encode()
    return [
        sc.call("open", source.encode(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, expect=fd),
        sc.call("write", fd, data, len(data), expect=len(data)),
        sc.call("close", fd),
        *sc.bind(source, f"{NEW_ROOT}/etc/resolv.conf", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC),
    ]


def skeleton(home: str, *, owned: bool) -> Calls:
    """What a template wants in every fresh home (/etc/skel): directories and links, nothing to copy."""
    calls: Calls = []
    for folder, names, files in os.walk(STAGE + SKELETON):
        inside = home + folder.removeprefix(STAGE + SKELETON)
        for name in sorted(names + files)[:SKELETON_MOST]:
            source, target = f"{folder}/{name}", f"{inside}/{name}".encode()
            if os.path.islink(source):
                calls.append(sc.call("symlink", os.readlink(source).encode(), target))
            elif os.path.isdir(source):
                calls.append(sc.call("mkdir", target, 0o755))
            else:
                continue
            if owned:
                calls.append(sc.call("lchown", target, USER_ID, USER_ID))
    return calls


def masked_proc(ctx: Context) -> Calls:
    """Only this sandbox's own processes: no /proc/sys, no host counters, and other uids' are invisible."""
    options = "" if "masked_proc" in ctx.plan.without else "subset=pid,hidepid=2"
    return sc.mount("proc", NEW_ROOT + "/proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, options)


def terminals(_: Context) -> Calls:
    """A terminal table of our own, so that no other session's can be named (attack 43)."""
    options = "newinstance,ptmxmode=0666,mode=0620"
    return sc.mount("devpts", NEW_ROOT + "/dev/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, options)


def mount_namespace(ctx: Context) -> Calls:
    """Leave the old tree for good; afterwards the working directory is inside (CVE-2024-21626)."""
    if "mount_namespace" in ctx.plan.without:
        return [sc.call("chroot", NEW_ROOT.encode()), sc.call("chdir", b"/")]
    return sc.pivot_into(NEW_ROOT)


def cgroup_namespace(_: Context) -> Calls:
    """After the node attached us: /proc/self/cgroup shows / and nothing above."""
    return [sc.call("unshare", sc.CLONE_NEWCGROUP)]


def keyring(_: Context) -> Calls:
    """Keyrings are not namespaced: take a new empty one (CVE-2016-0728, attack 51)."""
    return sc.join_new_session_keyring()


def _lower(what: int, value: int) -> sc.Call:
    hard = resource.getrlimit(what)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    pair = struct.pack("=QQ", bound, bound)
    return sc.call("prlimit64", 0, what, sc.buffer(pair), 0, what=f"lower rlimit {what}")


def rlimits(ctx: Context) -> Calls:
    """The backstop behind the groups, and the whole fence where there are none."""
    plan = ctx.plan
    data = [_lower(resource.RLIMIT_DATA, plan.data_bytes)] if plan.data_bytes else []
    return [
        *data,
        _lower(resource.RLIMIT_CORE, 0),  # attack 26: no core on the host, no helper run
        _lower(resource.RLIMIT_NOFILE, plan.open_files),
        _lower(resource.RLIMIT_NPROC, plan.processes + 2),
        _lower(resource.RLIMIT_MEMLOCK, 64 * 1024),
        _lower(_RLIMIT_SIGPENDING, 1024),
        _lower(_RLIMIT_MSGQUEUE, 64 * 1024),
        _lower(_RLIMIT_RTPRIO, 0),
        _lower(_RLIMIT_NICE, 0),
        _lower(resource.RLIMIT_STACK, 8 * 1024 * 1024),
        _lower(resource.RLIMIT_FSIZE, plan.scratch_bytes),
        _lower(resource.RLIMIT_CPU, int(plan.cpu_seconds) + 1),
    ]


def oom_order(ctx: Context) -> Calls:
    """When the host runs out of memory, sandboxes go before anything of the operator's."""
    return sc.write_file("/proc/self/oom_score_adj", "500", ctx.free_fd)


def no_new_privileges(_: Context) -> Calls:
    """No setuid bit and no file capability does anything from here on."""
    return [sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)]


def capabilities(ctx: Context) -> Calls:
    """Empty every set; an agent alone keeps three, permitted but not effective, to switch between its own uids."""
    calls = sc.drop_bounding_set(BUILDING_CAPABILITIES if ctx.plan.writable else 0)
    calls.append(sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL))
    if not ctx.plan.writable:  # there, programs of `root` keep what the bounding set leaves them
        calls.append(sc.prctl(sc.PR_SET_SECUREBITS, sc.SECUREBITS_LOCKED))
    if ctx.plan.root:
        # The saved id is what makes process 1 somebody else than its programs: they may not touch its limits.
        calls.append(sc.call("setresgid", USER_ID, USER_ID, 0))
        calls.append(sc.call("setresuid", USER_ID, USER_ID, 0))
    switches = ctx.plan.root and not ctx.plan.lone
    return [*calls, sc.set_capabilities(0, held(ctx.plan) if switches else 0)]


def landlock(ctx: Context) -> Calls:
    """A second fence around files, and around signals and abstract sockets where the kernel has it."""
    writable = ["/"] if ctx.plan.writable else [place for _, place, _, _, _ in ctx.binds]
    return sc.landlock(ctx.landlock_abi, writable, ctx.free_fd) if ctx.landlock_abi else []


def seccomp(ctx: Context) -> Calls:
    """Last: from here on only the listed calls exist."""
    return [sc.load_seccomp(ctx.seccomp)]


def verified(ctx: Context) -> Calls:
    """Ask the kernel what it holds us to; a layer that did not take is a refusal."""
    lost = sc.CAP_SYS_ADMIN if ctx.plan.writable else sc.CAP_CHOWN
    answers = {
        "seccomp": sc.prctl(sc.PR_GET_SECCOMP, expect=sc.SECCOMP_MODE_FILTER, what="confirm seccomp"),
        "no_new_privileges": sc.prctl(sc.PR_GET_NO_NEW_PRIVS, expect=1, what="confirm no_new_privs"),
        "capabilities": sc.prctl(sc.PR_CAPBSET_READ, lost, expect=0, what="confirm the bounding set"),
    }
    return [call for layer, call in answers.items() if layer not in ctx.plan.without]


def agent_memory(_: Context) -> Calls:
    """The agent's memory and descriptors are not its programs' to read, and with hidepid not even to see."""
    return [sc.prctl(sc.PR_SET_DUMPABLE, 0)]


Step = Callable[[Context], Calls]
STEPS: Final[tuple[Step, ...]] = (
    closed_descriptors,
    uid_range,
    nested_namespaces,
    network_namespace,
    uts_namespace,
    read_only_root,
    scratch,
    masked_proc,
    terminals,
    mount_namespace,
    cgroup_namespace,
    keyring,
    rlimits,
    oom_order,
    no_new_privileges,
    capabilities,
    landlock,
    seccomp,
    verified,
    agent_memory,
)
LAYERS: Final = tuple(step.__name__ for step in STEPS)

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
    names = [*NAMESPACES, "time_namespace"] if plan.time_namespace else list(NAMESPACES)
    names += [layer for layer in LAYERS if layer not in NAMESPACES]
    cannot = {"landlock"} if not landlock_abi else set()
    cannot |= set() if plan.root else {"uid_range"}  # one uid is all there is to give
    cannot |= {"read_only_root"} if plan.writable else set()
    return [n for n in [*names, "reseed"] if n not in plan.without | cannot]


class Program:
    """Every call of every step, in order, ready to be made."""

    def __init__(self, ctx: Context, engine: table.Machine | None) -> None:
        self._plan = ctx.plan
        self._home = furnishing.has_home(STAGE) and not ctx.plan.writable
        self._layers: list[str] = []
        self._parts: list[tuple[int, table.Table]] = []  # where each begins; files are copied between two
        self.calls: Calls = []
        begun = 0
        for step in STEPS:
            layer = step.__name__
            if layer in ctx.plan.without and layer not in _NEEDED_TO_LIVE:
                continue
            own = step(ctx)
            if ctx.plan.fault == layer:
                own = [sc.call("close", (1 << 64) - 1, what="failed on a test's wish"), *own]
            self.calls += own
            self._layers += [layer] * len(own)
            if self._furnishes(layer):
                self._parts.append((begun, table.Table(engine, self.calls[begun:])))
                begun = len(self.calls)
        self._parts.append((begun, table.Table(engine, self.calls[begun:])))

    @property
    def whole(self) -> bool:
        """Whether its calls are all there is to do: no file is copied between them."""
        return len(self._parts) == 1

    def _furnishes(self, layer: str) -> bool:
        """Whether files have to be copied once this layer is made."""
        return (layer == "read_only_root" and self._plan.writable) or (layer == "scratch" and self._home)

    def layer(self, index: int) -> str:
        """Which layer the call at `index` belongs to; what comes behind them all is the agent's."""
        return self._layers[index] if index < len(self._layers) else "agent"

    def set_up(self) -> None:
        """Make every call. Raises StepFailed naming the layer at the first that fails."""
        ends = [begun for begun, _ in self._parts[1:]] + [len(self.calls)]
        for (begun, part), end in zip(self._parts, ends, strict=True):
            made = part.execute()
            if begun + made != end:
                raise StepFailed(self._layers[begun + made], part.failure(made))
            if end < len(self.calls):
                self._furnish(self._layers[end - 1])

    def _furnish(self, layer: str) -> None:
        try:
            if layer == "scratch":
                furnishing.home(STAGE, f"{SCRATCH}/home", self._plan.root)
            else:
                furnishing.root(STAGE, NEW_ROOT, self._plan.root)
        except OSError as error:
            raise StepFailed(layer, f"copying files: {error.strerror or error}") from error
