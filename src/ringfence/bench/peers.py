"""Other ways to isolate that this machine has, each started as its own users start it, on the same root and program.

What each encloses differs, and is told beside the figure. A peer that is not installed is absent, one that does not
run here says why; neither fails the bench.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ringfence.bench.programs import PATH, Command, FailedRun, Program, errors_of, said, timed
from ringfence.domain.limits import Limits

PYTHON: Final = "/usr/bin/python3"
ENV: Final = {"PATH": PATH, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "cgroup")


@dataclass(frozen=True, slots=True)
class Place:
    """Where template roots are, and a directory that goes away with the bench."""

    roots: Mapping[str, Path]
    work: Path

    def root(self, program: Program) -> str:
        """The root file system a program belongs to."""
        return str(self.roots[program.template])


Words = Callable[[Place, str, Program], list[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """One other way to isolate: its command, how it is called, and what then stands around the program."""

    name: str
    words: Words
    encloses: str
    version: tuple[str, ...] = ("--version",)
    own_root: bool = True  # False: it shows the program the host's files, so template packages are not there


@dataclass(frozen=True, slots=True)
class Found:
    """A peer as this machine has it; `why` says why it takes no part."""

    peer: Peer
    version: str = ""
    why: str = ""
    commands: Mapping[str, Command] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """For the report."""
        return {"state": self.why or "measured", "version": self.version, "encloses": self.peer.encloses}


def _bwrap(place: Place, binary: str, program: Program) -> list[str]:
    view = ["--ro-bind", place.root(program), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
    return [binary, "--unshare-all", "--die-with-parent", *view, "--chdir", "/", "--", PYTHON, "-c", program.code]


def _oci(place: Place, binary: str, program: Program) -> list[str]:
    """A bundle per runtime and program; only the container is made each time, as `docker run` has it done."""
    name = f"ringfence-bench-{place.work.name[-8:]}-{Path(binary).name}-{program.name}"
    bundle = place.work / name
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(oci_config(place.root(program), program.code, f"/{name}")))
    return [binary, "--root", str(place.work / "oci"), "run", "--bundle", str(bundle), name]


def _nsjail(place: Place, binary: str, program: Program) -> list[str]:
    ids = ["--user", "99999", "--group", "99999"]
    return [binary, "-Mo", "-Q", "--chroot", place.root(program), *ids, "--", PYTHON, "-c", program.code]


def _firejail(_: Place, binary: str, program: Program) -> list[str]:
    fences = ["--noprofile", "--private", "--net=none", "--seccomp", "--caps.drop=all", "--nonewprivs"]
    return [binary, "--quiet", *fences, "--", PYTHON, "-c", program.code]


def _gvisor(place: Place, binary: str, program: Program) -> list[str]:
    _, *words = _oci(place, binary, program)
    return [binary, "--network=none", "--ignore-cgroups", *words]


PEERS: Final = (
    Peer("bwrap", _bwrap, "namespaces; no seccomp filter, no limits"),
    Peer("runc", _oci, "namespaces, capabilities and control groups; no seccomp filter, no user namespace"),
    Peer("crun", _oci, "namespaces, capabilities and control groups; no seccomp filter, no user namespace"),
    Peer("nsjail", _nsjail, "namespaces and rlimits; no seccomp filter, no control groups", ("--help",)),
    Peer("firejail", _firejail, "namespaces and a seccomp filter; the host's files", own_root=False),
    Peer("runsc", _gvisor, "gVisor, a kernel of its own in user space; no control groups"),
)


def oci_config(root: str, code: str, group: str) -> dict[str, Any]:
    """A minimal bundle: a template's root, read-only, with the limits a sandbox of ours has by default."""
    limits = Limits()
    empty: dict[str, list[str]] = {kind: [] for kind in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": True},
        "hostname": "sandbox",
        "process": {
            "terminal": False,
            "user": {"uid": 1000, "gid": 1000},
            "args": [PYTHON, "-c", code],
            "env": [f"{name}={value}" for name, value in ENV.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": empty,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": limits.open_files, "soft": limits.open_files}],
        },
        "mounts": _oci_mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "cgroupsPath": group,
            "resources": {
                "memory": {"limit": limits.memory_bytes},
                "pids": {"limit": limits.processes},
                "cpu": {"quota": int(limits.cpus * 100_000), "period": 100_000},
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def _oci_mounts() -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": [*quiet, "newinstance"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*quiet, "nodev"]},  # noqa: S108
        {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["nosuid", "nodev"]},  # noqa: S108
    ]


def look(place: Place, programs: list[Program], peers: tuple[Peer, ...] = PEERS) -> list[Found]:
    """Every peer, tried once on every program it can run."""
    return [_tried(peer, place, programs) for peer in peers]


def _tried(peer: Peer, place: Place, programs: list[Program]) -> Found:
    binary = shutil.which(peer.name, path=PATH) or shutil.which(peer.name)
    if binary is None:
        return Found(peer, why="absent")
    version = (said([binary, *peer.version]).splitlines() or [""])[0][:80]
    usable = [program for program in programs if peer.own_root or program.template == "base"]
    commands = {each.name: Command(tuple(peer.words(place, binary, each)), {"PATH": PATH}) for each in usable}
    why = next(filter(None, (_complaint(commands[each.name], each) for each in usable)), "")
    if why:
        return Found(peer, version, f"does not run here: {why}"[:300])
    return Found(peer, version, "", commands)


def _complaint(command: Command, program: Program) -> str:
    """Why it does not do what it should, in its own words; empty when it does."""
    try:
        timed(command, program.printed)
    except (FailedRun, OSError) as error:
        return errors_of(command) or str(error)
    return ""


def clear(place: Place) -> None:
    """Delete containers that a failed run left behind."""
    for bundle in place.work.glob("ringfence-bench-*"):
        for runtime in ("runc", "crun"):
            if f"-{runtime}-" in bundle.name and (place.work / "oci" / bundle.name).exists():
                with contextlib.suppress(OSError):
                    said([runtime, "--root", str(place.work / "oci"), "delete", "--force", bundle.name])
