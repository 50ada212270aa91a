"""Judges of what a program sees of itself at its first instruction: every layer leaves a trace there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from ringfence.attack.judges import each
from ringfence.attack.observation import Ran

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")  # the clock's may be a tenant's own
MOST_UIDS: Final = 65_536
NO_CAPABILITIES: Final = "0" * 16

# rlimit: the largest value that still counts as a fence.
CEILINGS: Final[Mapping[str, int]] = {
    "CORE": 0,
    "NOFILE": 4096,
    "NPROC": 4200,
    "MEMLOCK": 8 * 1024 * 1024,
    "SIGPENDING": 4096,
    "MSGQUEUE": 819_200,
    "RTPRIO": 0,
    "NICE": 0,
    "FSIZE": 64 * 1024**3,
    "STACK": 64 * 1024 * 1024,
}

ENVIRONMENT: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_CTYPE", "TMPDIR", "TERM", "PWD", "OLDPWD", "SHLVL", "_",
    "MPLBACKEND",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_RETRIES",
    "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PROBE_FACTS",
})  # fmt: skip
WRITABLE: Final = ("/home/user", "/tmp", "/var/tmp", "/run", "/dev/shm", "/dev/pts", "/workspace")  # noqa: S108 - names inside
DEVICES: Final = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))


def _complain(wrong: list[str]) -> str:
    return "; ".join(wrong)


def _missing(run: Ran, *fields: str) -> str:
    gone = [name for name in fields if name not in run.said]
    return f"the program did not report {', '.join(gone)}: {run.how} {run.stderr[-300:]}" if gone else ""


def _privileges(run: Ran, untold: Collection[str] = ()) -> str:
    missing = _missing(run, "status", "uids", "gids", "groups", "threads", "no_new_privileges")
    if missing:
        return missing
    status: Mapping[str, str] = run.said["status"]
    wanted = {"NoNewPrivs": "1", "Seccomp": "2"}
    wanted |= dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), NO_CAPABILITIES)
    wrong = [f"{k} is {status.get(k)}" for k, v in wanted.items() if k not in untold and status.get(k) != v]
    wrong += [f"{k} is told after all" for k in untold if k in status]
    if run.said["no_new_privileges"] != 1:
        wrong.append(f"prctl says no_new_privs is {run.said['no_new_privileges']}")
    if len(set(run.said["uids"])) != 1 or run.said["uids"][0] == 0:
        wrong.append(f"user ids {run.said['uids']}")
    if len(set(run.said["gids"])) != 1 or run.said["gids"][0] == 0:
        wrong.append(f"group ids {run.said['gids']}")
    if set(run.said["groups"]) - {run.said["gids"][0]}:
        wrong.append(f"supplementary groups {run.said['groups']}")
    wrong += [f"thread {task} differs" for task in run.said["threads"]]
    return _complain(wrong)


def _mapped(words: list[str]) -> int:
    return sum(int(count) for count in words[2::3])


def _namespaces(run: Ran) -> str:
    missing = _missing(run, "namespaces", "host_namespaces", "uid_map", "parent")
    if missing:
        return missing
    ours, host = run.said["namespaces"], run.said["host_namespaces"]
    beside: Mapping[str, str] = run.said.get("beside", {})
    wrong = [f"the {kind} namespace is the host's" for kind in NAMESPACES if ours.get(kind) in {None, host.get(kind)}]
    wrong += [
        f"the {kind} namespace is the neighbour's" for kind in NAMESPACES if ours.get(kind) == beside.get(kind, "")
    ]
    if not host:
        wrong.append("the host's own namespaces are not known")
    if _mapped(run.said["uid_map"]) > MOST_UIDS:
        wrong.append(f"{_mapped(run.said['uid_map'])} user ids are mapped")
    if run.said["parent"] != 1:
        wrong.append(f"the parent is process {run.said['parent']}, not the agent as process 1")
    wrong += [f"/proc/self/cgroup shows {line}" for line in run.said["cgroup"] if not line.endswith(":/")]
    return _complain(wrong)


def _own_kernel(run: Ran) -> str:
    """What is left to judge from inside when the kernel that numbers namespaces is the sandbox's own."""
    missing = _missing(run, "namespaces", "host_namespaces", "parent", "cgroup")
    if missing:
        return missing
    ours, host = run.said["namespaces"], run.said["host_namespaces"]
    wrong = [f"the {kind} namespace is the host's" for kind in NAMESPACES if ours.get(kind, "") == host.get(kind)]
    if "cgroup" in ours:
        wrong.append("there is a cgroup namespace after all")
    if run.said["parent"] != 1:
        wrong.append(f"the parent is process {run.said['parent']}, not the agent as process 1")
    wrong += [f"/proc/self/cgroup shows {line}" for line in run.said["cgroup"] if not line.endswith(":/")]
    return _complain(wrong)


def _limits(run: Ran) -> str:
    missing = _missing(run, "limits", "oom_score_adj", "umask")
    if missing:
        return missing
    limits: Mapping[str, list[int]] = run.said["limits"]
    wrong = []
    for name, most in CEILINGS.items():
        soft, hard = limits[name]
        if not 0 <= hard <= most or soft > hard:
            wrong.append(f"{name} is {soft}/{hard}")
    if int(run.said["oom_score_adj"]) < 300:
        wrong.append(f"oom_score_adj is {run.said['oom_score_adj']}")
    return _complain(wrong)


def _descriptors(run: Ran) -> str:
    missing = _missing(run, "descriptors", "walkable", "cwd")
    if missing:
        return missing
    wrong = [f"descriptor {what}" for what in run.said["descriptors"]]
    wrong += [f"descriptor {fd} leads to a directory" for fd in run.said["walkable"]]
    if not str(run.said["cwd"]).startswith("/home/user"):
        wrong.append(f"the working directory is {run.said['cwd']}")
    wrong += [f"environment variable {name}" for name in run.said["environment"] if name not in ENVIRONMENT]
    return _complain(wrong)


def _landlock(run: Ran) -> str:
    missing = _missing(run, "landlock", "host_landlock")
    if missing or not run.said["host_landlock"]:
        return missing
    layers = run.said["landlock"]
    return "" if layers.isdigit() and int(layers) >= 1 else f"{layers} Landlock domains hold the program"


def _no_landlock(run: Ran) -> str:
    missing = _missing(run, "landlock")
    return missing or ("" if run.said["landlock"] == "not usable: ENOSYS" else f"Landlock: {run.said['landlock']}")


def _landlocked(run: Ran) -> str:
    if not run.said["host_landlock"]:
        return "this kernel offers no Landlock; the other layers stand alone"
    return f"{run.said['landlock']} Landlock domain holds the program"


def _written(row: Mapping[str, str]) -> list[str]:
    at = row["at"]
    wrong = []
    if "rw" in row["options"].split(",") and not at.startswith(WRITABLE) and row["type"] != "proc":
        wrong.append(f"{at} may be written")
    if row["type"] in {"sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "fusectl", "configfs"}:
        wrong.append(f"{row['type']} at {at}")
    return wrong


def _honoured(row: Mapping[str, str]) -> list[str]:
    options, at = row["options"].split(","), row["at"]
    wrong = [] if "nosuid" in options else [f"{at} honours setuid"]
    return wrong if "nodev" in options or at.startswith("/dev") else [*wrong, f"{at} honours device nodes"]


def _mounts(run: Ran) -> str:
    missing = _missing(run, "mounts")
    if missing:
        return missing
    rows: list[Mapping[str, str]] = run.said["mounts"]
    if not any(row["at"] == "/" for row in rows):
        return "there is no root mount to look at"
    # A single node that is bound holds no program and leads nowhere else.
    return _complain([what for row in rows if row["at"] not in DEVICES for what in [*_written(row), *_honoured(row)]])


def _mounts_untold(run: Ran) -> str:
    """The part of it that a table without nosuid and nodev can tell; /dev lies on memory of the sandbox's own."""
    missing = _missing(run, "mounts")
    if missing:
        return missing
    rows: list[Mapping[str, str]] = run.said["mounts"]
    if [row["options"] for row in rows if row["at"] == "/"] != ["ro"]:
        return "the root is not mounted read-only, and nothing else, once"
    own = [row for row in rows if (row["at"], row["type"]) != ("/dev", "tmpfs")]
    return _complain([complaint for row in own for complaint in _written(row)])


def _text(template: str, *fields: str) -> Any:
    def summary(run: Ran) -> str:
        return template.format(*(run.said[name] for name in fields))

    return summary


privileges: Final = each(_privileges, _text("user {0}, no group, no capability, filter and no_new_privs on", "uids"))
namespaces: Final = each(_namespaces, lambda run: f"{len(NAMESPACES)} namespaces, neither the host's nor a neighbour's")
limits: Final = each(_limits, _text("limits {0}", "limits"))
descriptors: Final = each(_descriptors, _text("nothing above 2, working in {0}", "cwd"))
landlock: Final = each(_landlock, _landlocked)
mounts: Final = each(
    _mounts, lambda run: f"{len(run.said['mounts'])} mounts, each nosuid; only the scratch may be written"
)
privileges_untold: Final = each(
    lambda run: _privileges(run, ("NoNewPrivs", "CapAmb")),
    _text("user {0}, no group, no capability, filter on, no new privilege", "uids"),
)
own_kernel: Final = each(_own_kernel, _text("namespaces of its own kernel: {0}", "namespaces"))
no_landlock: Final = each(_no_landlock, _text("{0}", "landlock"))
mounts_untold: Final = each(
    _mounts_untold, lambda run: f"{len(run.said['mounts'])} mounts; only the scratch and /dev may be written"
)
