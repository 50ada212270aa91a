"""Process 1 of a sandbox that another tool made (runc, crun, runsc): puts the remaining fences up, then serves.

The tool made the namespaces and mounts of its config.json and started us as uid 0 of the sandbox's own user
namespace, with the few capabilities the steps below need. They are the jail's steps wherever the jail has one. When
the last is done nothing but the agent's three switching capabilities is left, our own code cannot be seen any more,
and only then does anything of the template's run: its import hooks, its preload list, programs.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

from ringfence.guest import agent, furnishing, processes, reseed, runner, steps
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.asks import BadAsk
from ringfence.guest.plan import CHANNEL_FD, HIDDEN, HOME, USER_ID, Plan, plan_from

PLAIN: Final = "linux"  # the kernel a sandbox talks to is the host's
GVISOR: Final = "gvisor"  # or gVisor's
_SCRATCH: Final = "/tmp"  # noqa: S108 - where the scratch is mounted first; its own part of it covers it in the end
AGENT_ID: Final = 65533  # the agent's real uid under gVisor, which no program may have
_MS_MOVE: Final = 8192
_PR_SET_KEEPCAPS: Final = 8
_ALL_IDS: Final = 0xFFFFFFFF
_PASSWD_BYTES: Final = 1024 * 1024
#: gVisor shows these to every container; nothing a program needs is behind them.
_GVISOR_EXTRA: Final = (("/dev/fuse", os.unlink), ("/dev/net/tun", os.unlink), ("/dev/net", os.rmdir))


class Orders:
    """What the node wants of this sandbox, sent over the channel before anything else."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.plan: Plan = plan_from(fields["plan"].encode())
        self.seccomp = base64.b64decode(fields["seccomp"])
        self.kernel: str = fields["kernel"]
        self.preload: list[str] = fields["preload"]
        self.env: dict[str, str] = fields["env"]
        self.python: str = fields["python"]  # where `run` finds its interpreter; empty when there is none
        self.own: bool = fields["own"]  # whether we run on that same interpreter, and so may fork it
        self.workdir: str = fields["workdir"]  # where programs start when nothing else is said
        self.user: str = fields["user"]  # as an image names it; empty: the usual one


class Scene(steps.Context):
    """What the steps are made from, and who the agent and its programs are."""

    def __init__(self, orders: Orders) -> None:
        super().__init__(orders.plan, orders.seccomp, sc.landlock_abi() if orders.kernel == PLAIN else 0, "")
        self.kernel = orders.kernel
        self.ids = ids_of(orders.user)
        self.tid_address = sc.thread_id_address()  # asked now: the filter does not let anybody ask later


# -- the steps that are not the jail's --------------------------------------------------------------------------------


def closed_descriptors(ctx: steps.Context) -> steps.Calls:
    """The null device on 0 to 2, the channel, and nothing else (CVE-2024-21626: a leaked directory is a way out)."""
    free = ctx.free_fd
    calls = [sc.close_from(free), sc.call("open", b"/dev/null", os.O_RDWR, 0, expect=free)]
    calls += [sc.call("dup2", free, standard) for standard in (0, 1, 2)]
    return [*calls, sc.call("close", free)]


def user_namespace(_: steps.Context) -> steps.Calls:
    """Uid 0 here is nobody outside: the whole of the host's range mapped to itself is no namespace."""
    for kind in ("uid", "gid"):
        for row in _read(f"/proc/self/{kind}_map").splitlines():
            inside, outside, count = (int(word) for word in row.split())
            if count >= _ALL_IDS or (inside == outside and outside < 65536):
                raise steps.StepFailed("user_namespace", f"{kind} {outside} of the host is mapped")
    return []


def pid_namespace(_: steps.Context) -> steps.Calls:
    """Process 1, so that everything ends with it."""
    if os.getpid() != 1:
        raise steps.StepFailed("pid_namespace", "the agent is not process 1")
    return []


def network_namespace(ctx: steps.Context) -> steps.Calls:
    """The loopback, the wire where there is a resolver to reach by it, and nothing else, as seen from here."""
    seen = sorted(name for _, name in socket.if_nameindex())
    if seen != (["eth0", "lo"] if ctx.plan.resolver else ["lo"]):
        raise steps.StepFailed("network_namespace", f"there are interfaces {', '.join(seen)}"[:200])
    # A namespace with a wire was made for us, finished, and is not ours to change. gVisor's is up, with no low ports.
    return steps.network_namespace(ctx) if _on_linux(ctx) and not ctx.plan.resolver else []


def read_only_root(_: steps.Context) -> steps.Calls:
    """The template's files cannot be written, whoever asks."""
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        raise steps.StepFailed("read_only_root", "the root can be written")
    return []


def scratch(ctx: steps.Context) -> steps.Calls:
    """One tmpfs, bounded in bytes and files, bound to every place a program may write."""
    plan, ids = ctx.plan, _ids(ctx)
    bounded = f",nr_inodes={plan.scratch_files},huge=never" if _on_linux(ctx) else ""
    options = f"size={plan.scratch_bytes},mode=0755{bounded}"
    calls = sc.mount("tmpfs", _SCRATCH, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    binds: steps.Calls = []
    for name, place, mode, owner, flags in ctx.binds:
        uid, gid = ids if owner else (0, 0)
        source = f"{_SCRATCH}/{name}"
        calls += [sc.call("mkdir", source.encode(), mode), sc.call("chmod", source.encode(), mode)]
        if place == HOME:
            calls += _skeleton(source, uid, gid)
        calls.append(sc.call("chown", source.encode(), uid, gid))
        bind = sc.bind(source, place, sc.MS_NOSUID | sc.MS_NODEV | flags if flags else 0)
        binds = [*binds, *bind] if place != _SCRATCH else binds
    # Its own part of it is the last to come into place: it covers the others' names.
    return [*calls, *_masked_proc(ctx), *binds, *sc.bind(f"{_SCRATCH}/tmp", _SCRATCH)]  # noqa: S108 - as above


def _skeleton(home: str, uid: int, gid: int) -> steps.Calls:
    """What a template wants in every fresh home (/etc/skel): directories and links, nothing to copy."""
    calls: steps.Calls = []
    for folder, names, files in os.walk(steps.SKELETON):
        inside = home + folder.removeprefix(steps.SKELETON)
        for name in sorted(names + files)[: steps.SKELETON_MOST]:
            source, target = f"{folder}/{name}", f"{inside}/{name}".encode()
            if os.path.islink(source):
                calls.append(sc.call("symlink", os.readlink(source).encode(), target))
            elif os.path.isdir(source):
                calls.append(sc.call("mkdir", target, 0o755))
            else:
                continue
            calls.append(sc.call("lchown", target, uid, gid))
    return calls


def _masked_proc(ctx: steps.Context) -> steps.Calls:
    """In place of the tool's own /proc: only this sandbox's processes, no /proc/sys, no host counters."""
    if not _on_linux(ctx) or "masked_proc" in ctx.plan.without:
        return []
    place, flags = f"{_SCRATCH}/proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    return [
        sc.call("mkdir", place.encode(), 0o555),
        *sc.mount("proc", place, "proc", flags, "subset=pid,hidepid=2"),
        sc.call("umount2", b"/proc", sc.MNT_DETACH, what="take the full /proc away"),
        *sc.mount(place, "/proc", flags=_MS_MOVE),
    ]


def masked_proc(ctx: steps.Context) -> steps.Calls:
    """Nothing of the host's is below /proc: confirmed by what is not there."""
    if _on_linux(ctx) and "masked_proc" not in ctx.plan.without and os.path.exists("/proc/sys"):
        raise steps.StepFailed("masked_proc", "/proc/sys is there")
    return []


def bare_devices(_: steps.Context) -> steps.Calls:
    """gVisor puts its own /sys and two devices into every container: away with them."""
    calls = [sc.call("umount2", b"/sys", sc.MNT_DETACH, what="take /sys away")] if os.listdir("/sys") else []
    for path, remove in _GVISOR_EXTRA:
        with contextlib.suppress(FileNotFoundError):
            remove(path)
    return calls


def terminals(_: steps.Context) -> steps.Calls:
    """A terminal table of our own, so that no other session's can be named (attack 43)."""
    others = set(os.listdir("/dev/pts")) - {"ptmx"}
    if others:
        raise steps.StepFailed("terminals", f"there are terminals of others: {sorted(others)}"[:200])
    return []


def unseen_agent(ctx: steps.Context) -> steps.Calls:
    """Take our code and our interpreter out of sight; what is mapped and loaded stays."""
    calls = [sc.call("umount2", HIDDEN.encode(), sc.MNT_DETACH, what="take our own files away")]
    if not _on_linux(ctx):  # gVisor's gofer mounts them a second time, where only another mount covers them
        calls += sc.mount("tmpfs", HIDDEN, "tmpfs", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV, "size=4k,mode=0700")
    return calls


def capabilities(ctx: steps.Context) -> steps.Calls:
    """Empty every set; the agent alone keeps three, permitted but not effective, to switch between its own uids."""
    uid, gid = _ids(ctx)
    calls = sc.drop_bounding_set()
    if _on_linux(ctx):
        calls.append(sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL))
        calls.append(sc.prctl(sc.PR_SET_SECUREBITS, sc.SECUREBITS_LOCKED))
        calls += [sc.call("setresgid", gid, gid, 0), sc.call("setresuid", uid, uid, 0)]
    else:  # it has neither ambient sets nor these bits, and lets whoever has process 1's uid kill it (attack 30)
        calls.append(sc.prctl(_PR_SET_KEEPCAPS, 1))
        calls += [sc.call("setresgid", AGENT_ID, gid, AGENT_ID), sc.call("setresuid", AGENT_ID, uid, AGENT_ID)]
    return [*calls, sc.set_capabilities(0, steps.KEPT_CAPABILITIES)]


def rlimits(ctx: steps.Context) -> steps.Calls:
    """The jail's, less those that gVisor does not know."""
    calls = steps.rlimits(ctx)
    if _on_linux(ctx):
        return calls
    # gVisor counts a process for whoever forked it: our agent's own are not among the programs', and need no room.
    most = sc.buffer(struct.pack("=QQ", ctx.plan.processes, ctx.plan.processes))
    few = sc.call("prlimit64", 0, resource.RLIMIT_NPROC, most, 0, what="lower the number of processes")
    return [*(call for call in calls if _known_to_gvisor(call)), few]


def _known_to_gvisor(call: sc.Call) -> bool:
    return call.args[1] in _GVISOR_RLIMITS


_GVISOR_RLIMITS: Final = (
    resource.RLIMIT_DATA,
    resource.RLIMIT_CORE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_STACK,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_CPU,
)


Step = Callable[[steps.Context], steps.Calls]
STEPS: Final[dict[str, tuple[Step, ...]]] = {
    PLAIN: (
        closed_descriptors,
        steps.uid_range,
        user_namespace,
        pid_namespace,
        steps.nested_namespaces,
        network_namespace,
        steps.uts_namespace,
        read_only_root,
        scratch,
        masked_proc,
        terminals,
        unseen_agent,
        steps.keyring,
        rlimits,
        steps.oom_order,
        steps.no_new_privileges,
        capabilities,
        steps.landlock,
        steps.seccomp,
        steps.verified,
        steps.agent_memory,
    ),
    GVISOR: (
        closed_descriptors,
        steps.uid_range,
        pid_namespace,
        network_namespace,
        steps.uts_namespace,
        read_only_root,
        scratch,
        bare_devices,
        terminals,
        unseen_agent,
        rlimits,
        steps.no_new_privileges,
        capabilities,
        steps.seccomp,
        steps.verified,
        steps.agent_memory,
    ),
}
_NEEDED_TO_LIVE: Final = frozenset({"scratch", "masked_proc", "unseen_agent"})


def layers_of(kernel: str) -> list[str]:
    """The layers the steps put in force or confirm, in their order."""
    return [step.__name__ for step in STEPS[kernel]]


def set_up(ctx: steps.Context, kernel: str) -> None:
    """Make every step. Raises StepFailed naming the first that fails."""
    for step in STEPS[kernel]:
        layer = step.__name__
        if ctx.plan.fault == layer:
            raise steps.StepFailed(layer, "failed on a test's wish")
        if layer in ctx.plan.without and layer not in _NEEDED_TO_LIVE:
            continue
        try:
            sc.do(step(ctx))
            if layer == "scratch" and furnishing.has_home(""):
                furnishing.home("", HOME, ctx.plan.root, _ids(ctx))
        except OSError as error:
            raise steps.StepFailed(layer, str(error)) from error


def _ids(ctx: steps.Context) -> tuple[int, int]:
    return ctx.ids if isinstance(ctx, Scene) else (USER_ID, USER_ID)


def _on_linux(ctx: steps.Context) -> bool:
    return not isinstance(ctx, Scene) or ctx.kernel == PLAIN


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_PASSWD_BYTES)


# -- whom an image means ----------------------------------------------------------------------------------------------


def ids_of(user: str) -> tuple[int, int]:
    """The uid and gid of an image's USER (`name`, `uid`, either with `:group`); the usual ones when it is empty.

    Names are looked up in the image's own files, from inside. Raises StepFailed for one that is not there, or is ours.
    """
    if not user:
        return USER_ID, USER_ID
    name, _, group = user.partition(":")
    known = _entry("/etc/passwd", name)
    if not name.isdigit() and not known:
        raise steps.StepFailed("uid_range", f"the image's user {name!r:.80} is not in its /etc/passwd")
    uid = int(name) if name.isdigit() else int(known[2])
    gid = int(known[3]) if known else uid
    if group:
        found = _entry("/etc/group", group)
        if not group.isdigit() and not found:
            raise steps.StepFailed("uid_range", f"the image's group {group!r:.80} is not in its /etc/group")
        gid = int(group) if group.isdigit() else int(found[2])
    if AGENT_ID in {uid, gid}:
        raise steps.StepFailed("uid_range", f"the image's user {user!r:.80} is the sandbox's own agent")
    return uid, gid


def _entry(path: str, name: str) -> list[str]:
    """The line of this name, or of this number, with its numbers checked; empty when there is none."""
    with contextlib.suppress(OSError):
        for line in _read(path).splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and fields[2].isdigit() and name in {fields[0], fields[2]}:
                return fields if path.endswith("group") or fields[3].isdigit() else []
    return []


# -- the agent --------------------------------------------------------------------------------------------------------


class Guest(agent.Agent):
    """The agent where the template may have users of its own and no interpreter."""

    def __init__(self, orders: Orders, scene: Scene, reseeders: list[reseed.Reseeder], fresh: list[str]) -> None:
        self.orders = orders
        self.ids = scene.ids
        super().__init__(orders.plan, CHANNEL_FD, reseeders, fresh, scene.tid_address)
        self.base = orders.workdir

    def _user(self, request: dict[str, Any]) -> tuple[int, int]:
        """The image's own user unless another is named; digits name anybody."""
        wanted = request.get("user") or ""
        if not wanted:
            return self.ids
        if isinstance(wanted, str) and wanted.partition(":")[0].isdigit():
            uid, _, gid = wanted.partition(":")
            if gid and not gid.isdigit():
                raise BadAsk("not_found", "a group behind a numeric user must be a number")
            if AGENT_ID in {int(uid), int(gid or uid)}:
                raise BadAsk("permission", "this user is the sandbox's own agent")
            return int(uid), int(gid or uid)
        return super()._user(request)

    def _adopt(self, *args: Any) -> processes.Process:
        program = super()._adopt(*args)
        if self.orders.kernel == GVISOR:  # its terminals change their size in silence
            program.resized = lambda: tell_resized(program.pid, self.held)
        return program


def tell_resized(session: int, held: int) -> None:
    """Tell every process group of a session that its terminal has a new size."""
    groups = set()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = _read(f"/proc/{int(name)}/stat").rpartition(")")[2].split()
            if int(fields[3]) == session:
                groups.add(int(fields[2]))
    for group in groups:
        with contextlib.suppress(OSError):  # gone meanwhile
            processes.kill(-group, signal.SIGWINCH, held)


def _own_imports(orders: Orders) -> list[reseed.Reseeder]:
    """With the fences up: the template's own import hooks and preload list, then what a fork must renew."""
    if not orders.own:
        return []
    sys.modules.pop("site", None)  # ours did nothing (bundle.py); the template's own does what it does at import
    importlib.import_module("site")
    runner.SEARCH[:] = sys.path  # what it saw when it was imported was ours; this is the template's
    hooks = agent.imported(orders.preload)
    runner.rehearse()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"preloading left {threads} threads running; a fork would lose them")
    return [*hooks, *reseed.find()]


def _fresh_argv(orders: Orders) -> list[str]:
    """How an interpreter is started afresh; read while our source can be seen."""
    return [orders.python, *runner.fresh_argv(orders.preload, agent.ORDER_FD)[1:]]


def serve(orders: Orders) -> None:
    """Put the fences up, then become the agent."""
    fresh = _fresh_argv(orders) if orders.python else []
    for name in agent.LATE_IMPORTS:
        importlib.import_module(name)
    scene = Scene(orders)
    set_up(scene, orders.kernel)
    sys.path[:] = [place for place in sys.path if not place.startswith(HIDDEN)] if orders.own else []
    sys.path_importer_cache.clear()
    os.environ.clear()
    os.environ.update(orders.env)
    reseeders = _own_imports(orders)
    gc.collect()
    gc.disable()  # as in a zygote: a collection in a fork would copy every page
    gc.freeze()
    sc.trim_heap()
    layers = [name for name in [*layers_of(orders.kernel), "reseed"] if name not in orders.plan.without]
    ready = agent.first_frame({"ready": {"layers": layers if scene.landlock_abi else _without_landlock(layers)}})
    start = agent.serve_now if orders.plan.warm_runner else agent.serve_when_asked
    start(lambda: Guest(orders, scene, reseeders, fresh), ready)


def _without_landlock(layers: list[str]) -> list[str]:
    return [name for name in layers if name != "landlock"]


def _complain(error: BaseException) -> None:
    layer = error.layer if isinstance(error, steps.StepFailed) else "agent"
    answer = {"refused": {"layer": layer, "cause": f"{type(error).__name__}: {error}"[:500]}}
    with contextlib.suppress(OSError):  # the node hung up: nobody is left to be told
        os.write(CHANNEL_FD, agent.first_frame(answer))


def main() -> None:
    """Entry point: the channel is descriptor 3. Never returns."""
    code = 1
    try:
        sc.do([sc.set_name("ringfence")])
        sys.argv = [""]
        serve(Orders(runner.read_order(CHANNEL_FD)))
        code = 0
    except EOFError:
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it was, the node must hear of it
        _complain(error)
    finally:
        os._exit(code)
