"""Find out, once, which resource groups this machine lets us have."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.cgroups.none import NoGroups
from ringfence.runtimes.jail.cgroups.tree import PARENT, checked, get, put, remove_empty
from ringfence.runtimes.jail.cgroups.v1 import V1
from ringfence.runtimes.jail.cgroups.v2 import V2

#: The leaf below a delegated group to which our own processes move: a v2 group with limits for its children may
#: hold no processes itself.
LEAF: Final = "ringfence-main"
#: What we limit, and the file that must be there for it.
V1_FILES: Final = {"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "pids.max"}
V2_FILES: Final = {"memory": "memory.max", "cpu": "cpu.max", "pids": "pids.max"}
#: systemd marks the groups it hands over; it writes the second name where it may not write the first.
DELEGATED: Final = ("trusted.delegate", "user.delegate")
#: How a user without root gets a group.
REMEDY: Final = "systemd-run --user --scope -p Delegate=yes"
#: Processes of ours may be forked while we move them.
MOVE_ROUNDS: Final = 16

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where the hierarchies are: one mount point per v1 controller, and the v2 one if there is any."""

    v1: dict[str, Path]
    v2: Path | None


class UnusableError(Exception):
    """Why one kind of group cannot be had; becomes a reason in `missing`."""


def mounts_in(mountinfo: str) -> Mounts:
    """Read the text of /proc/self/mountinfo (see proc(5))."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        where = Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), left.split(" ")[4]))
        if kind == "cgroup2":
            v2 = v2 or where
        elif kind == "cgroup":
            for controller in {*V1_FILES, "cpuacct"} & set(options.split(",")):
                v1.setdefault(controller, where)
    return Mounts(v1, v2)


def detect(instance: str, root: bool) -> Groups:
    """Take the best this machine has: whichever kind enforces more, v2 first; else none, with the reasons.

    Makes the parent directories of this instance and, below a delegated v2 group, moves our own processes to a
    leaf. Called once, by the node, before it starts anything.
    """
    mounts = mounts_in(get(Path("/proc/self/mountinfo")))
    reasons: list[str] = []
    found: list[Groups] = []
    for kind, make in (("v2", _v2), ("v1", _v1)):
        try:
            found.append(make(mounts, checked(instance), root))
        except (UnusableError, OSError) as reason:
            reasons.append(f"cgroup {kind}: {reason}")
            continue
        if not found[-1].missing:
            break
    found.sort(key=lambda groups: len(groups.enforces), reverse=True)
    for spare in found[1:]:
        spare.close()
    return found[0] if found else NoGroups("; ".join(reasons))


# -- v1 -----------------------------------------------------------------------------------------------------------


def _v1(mounts: Mounts, instance: str, root: bool) -> Groups:
    if not mounts.v1:
        raise UnusableError("not mounted")
    if not root:
        raise UnusableError("needs root")
    where: dict[str, Path] = {}
    missing = {name: f"the {name} controller is not mounted" for name in V1_FILES if name not in mounts.v1}
    for controller, mount in mounts.v1.items():
        parent = mount / PARENT / instance
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            missing[controller] = f"{parent}: {error.strerror}"
            continue
        where[controller] = parent
        file = V1_FILES.get(controller)
        if file and not (parent / file).exists():
            missing[controller] = f"this kernel has no {file}"
    missing.pop("cpuacct", None)
    groups = V1(where, missing)
    if not groups.enforces:
        groups.close()
        raise UnusableError(", ".join(missing.values()))
    return groups


# -- v2 -----------------------------------------------------------------------------------------------------------


def _v2(mounts: Mounts, instance: str, root: bool) -> Groups:
    if mounts.v2 is None:
        raise UnusableError("not mounted")
    base, inhabited = _base(mounts.v2, root)
    offered = set(get(base / "cgroup.controllers").split())
    if not offered & V2_FILES.keys():
        raise UnusableError(f"{base} has none of the controllers {', '.join(V2_FILES)}")
    if inhabited:
        _vacate(base)
    parent = base / PARENT / instance
    parent.mkdir(parents=True, exist_ok=True)
    missing = {name: f"{base} does not offer the {name} controller" for name in V2_FILES if name not in offered}
    for name in V2_FILES.keys() - missing.keys():
        for path in (base, base / PARENT, parent):
            try:
                put(path / "cgroup.subtree_control", f"+{name}")
            except OSError as error:
                missing[name] = f"{path}: could not enable the {name} controller: {error.strerror}"
                break
    if missing.keys() >= V2_FILES.keys():
        remove_empty(parent)
        remove_empty(parent.parent)
        raise UnusableError(", ".join(missing.values()))
    return V2(parent, missing)


def _base(mount: Path, root: bool) -> tuple[Path, bool]:
    """Find the group below which ours may be, and whether our own processes must first leave it.

    It is the top of the tree when that is ours to use, else the group delegated to us.
    """
    own = _own_group(mount)
    if own is not None and own.name == LEAF:
        return own.parent, False
    delegated = own is not None and own != mount and _is_delegated(own)
    if root and not delegated:
        # cgroup.type is on every group but the machine's real top. Having it, this is the top of a cgroup
        # namespace: a container whose whole tree is its root's to divide.
        return mount, (mount / "cgroup.type").exists()
    if own is None or not os.access(own, os.W_OK):
        raise UnusableError(f"no group is delegated to us; start under `{REMEDY}`")
    if not delegated and not _all_ours(own):
        raise UnusableError(f"{own} is not ours alone; start under `{REMEDY}`")
    return own, True


def _own_group(mount: Path) -> Path | None:
    for line in get(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::/"):
            inside = line.removeprefix("0::/")
            # ".." is the kernel's way to say: outside of this cgroup namespace.
            return None if inside.startswith("..") else mount / inside
    return None


def _is_delegated(group: Path) -> bool:
    for name in DELEGATED:
        try:
            if os.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _all_ours(group: Path) -> bool:
    """Whether only processes of our own job (one process group: what one command line started) are in it."""
    try:
        return {os.getpgid(int(pid)) for pid in get(group / "cgroup.procs").split()} == {os.getpgrp()}
    except ProcessLookupError:
        return False


def _vacate(group: Path) -> None:
    """Move every process of a group that is ours to the leaf."""
    leaf = group / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(MOVE_ROUNDS):
        pids = get(group / "cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            try:
                put(leaf / "cgroup.procs", pid)
            except ProcessLookupError:
                continue
    raise UnusableError(f"processes keep appearing in {group}")
