"""The one posture every sandbox on the host's kernel must have, and what is wrong with the one that was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ringfence.domain.limits import Limits
from tests.support.outside import IRRELEVANT, JUDGED, NAMESPACES, NONE, SWITCH, Seen

SCRATCH = "rw,nosuid,nodev,relatime tmpfs"
MOUNTS = {
    "/": "ro,nosuid,nodev",
    "/dev": "ro,nosuid,noexec",
    "/dev/pts": "rw,nosuid,noexec,relatime devpts",
    "/dev/shm": "rw,nosuid,nodev,noexec,relatime tmpfs",
    "/home/user": SCRATCH,
    "/proc": "rw,nosuid,nodev,noexec,relatime proc",
    "/run": SCRATCH,
    "/tmp": SCRATCH,
    "/var/tmp": SCRATCH,
    "/workspace": SCRATCH,
    **{f"/dev/{name}": "" for name in ("null", "zero", "full", "random", "urandom", "tty")},
}
DEVICES = {
    "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
}  # fmt: skip
HARMLESS = {"null", "pipe", "terminal"}
AGENTS_OWN = HARMLESS | {"socket", "anon_inode"}
UNLIMITED = {
    "Max data size", "Max resident set", "Max address space", "Max file locks", "Max realtime timeout",
}  # fmt: skip
OWN_PROCESSES = 2  # the agent, and the interpreter that waits for the next program
# A container tool stays beside its container, and its threads are in the same group.
TOOL_THREADS = {"jail": 0, "container": 16}


def _limits(limits: Limits) -> dict[str, str]:
    fixed = {
        "Max cpu time": int(limits.cpu_seconds) + 1,
        "Max file size": limits.scratch_bytes,
        "Max stack size": 8 * 1024 * 1024,
        "Max core file size": 0,
        "Max processes": limits.processes + OWN_PROCESSES,
        "Max open files": limits.open_files,
        "Max locked memory": 64 * 1024,
        "Max pending signals": 1024,
        "Max msgqueue size": 64 * 1024,
        "Max nice priority": 0,
        "Max realtime priority": 0,
    }
    return {name: f"{value} {value}" for name, value in fixed.items()}


def _switches(one: Seen, *, lone: bool) -> bool:
    """Whether it is an agent, which may move between its own users; process 1 of a lone run may not."""
    return one.who == "agent" and not lone


def _identity(one: Seen, runtime: str) -> list[str]:
    wrong = []
    base = int(one.uid_map.split()[1])
    user = base + 1000
    quad = f"{user} {user} {base if one.who == 'agent' else user} {user}"
    if one.status["Uid"] != quad or one.status["Gid"] != quad:
        wrong.append(f"user ids {one.status['Uid']}, group ids {one.status['Gid']}, not {quad}")
    if one.status["Groups"]:
        wrong.append(f"supplementary groups {one.status['Groups']}")
    if base < 0x1000_0000 or int(one.uid_map.split()[2]) > 65_536:
        wrong.append(f"uid_map {one.uid_map}")
    if one.uid_map != one.gid_map:
        wrong.append(f"gid_map {one.gid_map}")
    # In a container its own root owns what is not dumpable: /proc hides that from root too, who has no capability.
    first = base + 1 if runtime == "container" else base
    if one.who == "agent" and first <= one.memory_owner < base + 2048:
        wrong.append("the agent's memory belongs to its programs' user")
    return wrong


def _status(one: Seen, *, lone: bool) -> list[str]:
    wanted = {
        "CapInh": NONE,
        "CapPrm": SWITCH if _switches(one, lone=lone) else NONE,
        "CapEff": NONE,
        "CapBnd": NONE,
        "CapAmb": NONE,
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Seccomp_filters": "1",
    }
    wrong = [f"{k} is {one.status[k]}, not {v}" for k, v in wanted.items() if one.status[k] != v]
    return wrong + [f"status has an unclassified field {name}" for name in set(one.status) - IRRELEVANT - JUDGED]


def _files(one: Seen) -> list[str]:
    mounts = {row.split()[0]: row.split(" ", 1)[1] for row in one.mounts}
    wrong = [f"a mount nobody expects: {at} {mounts[at]}" for at in mounts if at not in MOUNTS]
    wrong += [f"no mount at {at}" for at in MOUNTS if at not in mounts]
    wrong += [f"{at} is {mounts[at]}" for at, how in MOUNTS.items() if not mounts.get(at, how).startswith(how)]
    allowed = AGENTS_OWN if one.who == "agent" else HARMLESS | ({"socket"} if one.waiting else set())
    wrong += [f"a descriptor of kind {kind}" for kind in one.descriptors if kind not in allowed]
    if one.root != "/" or not one.inside["root_is_the_namespaces"]:
        wrong.append(f"the root {one.root} is not its mount namespace's own: the old tree is still beneath it")
    if not one.cwd.startswith("/home/user") and one.who == "tenant":
        wrong.append(f"working directory {one.cwd}")
    return wrong + [f"/dev/{name}" for name in set(one.devices) ^ DEVICES]


def _bounds(one: Seen, limits: Limits, settings: Mapping[str, str], runtime: str) -> list[str]:
    wanted = _limits(limits)
    wrong = [f"{k} is {one.limits.get(k)}, not {v}" for k, v in wanted.items() if one.limits.get(k) != v]
    wrong += [f"an unclassified limit {name}" for name in set(one.limits) - set(wanted) - UNLIMITED]
    score = 500 if one.who == "agent" else 1000
    if one.oom_score_adj != score:
        wrong.append(f"oom_score_adj is {one.oom_score_adj}, not {score}")
    if one.inside["nested"] != 0:
        wrong.append(f"{one.inside['nested']} user namespaces may be made inside")
    return wrong + _groups(limits, settings, runtime)


def _groups(limits: Limits, settings: Mapping[str, str], runtime: str) -> list[str]:
    pids = str(limits.processes + OWN_PROCESSES + TOOL_THREADS[runtime])
    wrong = [] if settings.get("pids.max") == pids else [f"pids.max is {settings.get('pids.max')}, not {pids}"]
    memory = settings.get("memory.max") or settings.get("memory.limit_in_bytes") or ""
    most = limits.memory_bytes + limits.scratch_bytes + 64 * 1024 * 1024
    if not memory.isdigit() or int(memory) > most:
        wrong.append(f"the group's memory limit is {memory or 'missing'}")
    quota = settings.get("cpu.cfs_quota_us") or settings.get("cpu.max", "").split(" ")[0]
    if quota != str(int(limits.cpus * 100_000)):
        wrong.append(f"the group's processor quota is {quota or 'missing'}")
    return wrong


def complaints(
    seen: Sequence[Seen],
    host: Mapping[str, str],
    limits: Limits,
    settings: Mapping[str, str],
    *,
    lone: bool = False,
    runtime: str = "jail",
) -> list[str]:
    """Everything that is not as it must be, in plain sentences."""
    wrong = []
    for one in seen:
        found = _identity(one, runtime) + _status(one, lone=lone) + _files(one)
        found += _bounds(one, limits, settings, runtime)
        found += [
            f"the {kind} namespace is the host's" for kind in NAMESPACES if one.namespaces[kind] == host.get(kind)
        ]
        wrong += [f"{one.who} {one.comm}: {what}" for what in found]
    if {one.who for one in seen} != {"agent", "tenant"}:
        wrong.append(f"only {sorted({one.who for one in seen})} were seen")
    return wrong


def shared(one: Seen, other: Seen) -> list[str]:
    """What two sandboxes of one tenant have in common although they should not; the clock's namespace may be."""
    wrong = [f"one {k} namespace" for k in NAMESPACES if k != "time" and one.namespaces[k] == other.namespaces[k]]
    if set(one.groups) & set(other.groups) - {"/"}:
        wrong.append("one control group")
    if one.status["Uid"].split()[0] == other.status["Uid"].split()[0]:
        wrong.append("one host user id")
    return wrong
