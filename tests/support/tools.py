"""What stands around a sandbox that a container tool made, as the host sees it: the tool, gVisor's gofer and kernel.

Under gVisor these are all the host can see: programs are threads of that kernel's, and their own posture is nobody's
but gVisor's. So what must hold is that the kernel itself, were it taken over, is a process with nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import ledger
from tests.support.outside import IRRELEVANT, JUDGED, NAMESPACES, NONE, kind_of, table_of

TOOL, GOFER, KERNEL, STUB = "tool", "gofer", "kernel", "stub"
NAMED = {"runsc-gofer": GOFER, "runsc-sandbox": KERNEL, "": STUB}
# What they may do in the sandbox's own user namespace, where nothing of the host's is: to open the template's files,
# and to make and trace the processes that programs run in. None of it counts outside.
MOST = {GOFER: 0x4001F, KERNEL: 0x12811FF, STUB: 0x12811FF}
# Which of the host's namespaces each may still be in. A cgroup namespace only hides names, and nothing of a group is
# mounted where the gofer and the kernel live.
SHARED = {TOOL: {"user", "cgroup", "net", "ipc", "uts"}, GOFER: {"cgroup"}, KERNEL: {"cgroup"}, STUB: {"cgroup"}}
HARMLESS = {"null", "pipe", "socket", "anon_inode"}
ENVIRONMENT = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
RANGE = 2048
ACCESS_MODE = 0o3


@dataclass(frozen=True)
class Around:
    """One process of those, with every thread's status."""

    kind: str
    pid: int
    statuses: tuple[Mapping[str, str], ...]
    namespaces: Mapping[str, str]
    first_uid: int
    mounts: tuple[str, ...]
    descriptors: tuple[str, ...]  # the kinds of those that are not plainly harmless
    host_root: bool  # whether its root directory is the host's
    environment: frozenset[str]
    oom_score_adj: int
    nice: int
    groups: str


def everyone(tool: int) -> list[Around]:
    """The tool and all its descendants; under runc only the tool, for the rest is the container's own."""
    first = look(tool)
    if Path(f"/proc/{tool}/comm").read_text().strip() != "runsc":
        return [first]
    found = [first]
    for pid in ledger.tree(tool)[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(look(pid))
    return found


def look(pid: int) -> Around:
    """Collect one process. Its threads come and go while it is looked at: then it is looked at again."""
    for _ in range(20):
        try:
            return _look(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return _look(pid)


def _look(pid: int) -> Around:
    here = Path(f"/proc/{pid}")
    name = (here / "cmdline").read_bytes().split(b"\0")[0].decode()
    root = os.stat(here / "root/")
    return Around(
        kind=NAMED.get(name, TOOL),
        pid=pid,
        statuses=tuple(table_of((here / "task" / task / "status").read_text()) for task in os.listdir(here / "task")),
        namespaces={kind: os.readlink(here / "ns" / kind) for kind in NAMESPACES},
        first_uid=int((here / "uid_map").read_text().split()[1]),
        mounts=tuple(line.split(" - ")[0].split()[5] + " " + line.split()[4] for line in _lines(here / "mountinfo")),
        descriptors=tuple(_odd_descriptors(here)),
        host_root=(root.st_dev, root.st_ino) == (os.stat("/").st_dev, os.stat("/").st_ino),
        environment=frozenset(word for word in (here / "environ").read_text().split("\0") if word),
        oom_score_adj=int((here / "oom_score_adj").read_text()),
        nice=os.getpriority(os.PRIO_PROCESS, pid),
        groups=(here / "cgroup").read_text(),
    )


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _odd_descriptors(here: Path) -> list[str]:
    found = []
    known: dict[int, str] = {}
    for name in os.listdir(here / "fd"):
        with contextlib.suppress(FileNotFoundError):
            kind = kind_of(os.readlink(here / "fd" / name))
            if kind not in HARMLESS and not kind.startswith("file /memfd:"):
                found.append(_described(here, name, kind, known))
    return found


def _described(here: Path, name: str, kind: str, known: dict[int, str]) -> str:
    """Its path, how it may be used, and the file system it lies on: a path alone may be anybody's."""
    flags = next(line.split()[1] for line in _lines(here / "fdinfo" / name) if line.startswith("flags"))
    how = "read" if int(flags, 8) & ACCESS_MODE == os.O_RDONLY else "write"
    where = _file_system(here / "fd" / name, known)
    return f"{how} {where} {kind.removeprefix('file ')}"


def _file_system(path: Path, known: dict[int, str]) -> str:
    """Its name, asked once for each device."""
    device = os.stat(path).st_dev
    if device not in known:
        done = subprocess.run(["stat", "-f", "-L", "-c", "%T", path], capture_output=True, text=True, check=True)
        known[device] = done.stdout.strip()
    return known[device]


def complaints(seen: Sequence[Around], host: Mapping[str, str], sandbox_id: str) -> list[str]:
    """Everything that is not as it must be, in plain sentences."""
    wrong = []
    for one in seen:
        found = _privileges(one) + _places(one, host) + _order(one)
        found += [] if f"/{sandbox_id}" in one.groups else ["it is not in the sandbox's group"]
        wrong += [f"{one.kind}: {what}" for what in found]
    return list(dict.fromkeys(wrong))


def _privileges(one: Around) -> list[str]:
    wrong = []
    for status in one.statuses:
        wrong += [f"status has an unclassified field {name}" for name in set(status) - IRRELEVANT - JUDGED]
        wrong += [f"supplementary groups {status['Groups']}"] if status["Groups"] else []
        wrong += [f"{name} is {status[name]}" for name in ("CapInh", "CapAmb") if status[name] != NONE]
        if one.kind == TOOL:
            continue  # the host's root, as it must be to make namespaces; it serves nobody once they are made
        ids = {int(word) for name in ("Uid", "Gid") for word in status[name].split()}
        if not all(one.first_uid <= number < one.first_uid + RANGE for number in ids) or one.first_uid < 0x1000_0000:
            wrong.append(f"its ids {sorted(ids)} are not the sandbox's own")
        for name in ("CapPrm", "CapEff", "CapBnd"):
            if int(status[name], 16) & ~MOST[one.kind]:
                wrong.append(f"{name} is {status[name]}")
        if (status["NoNewPrivs"], status["Seccomp"]) != ("1", "2"):
            wrong.append(f"no_new_privs {status['NoNewPrivs']}, seccomp {status['Seccomp']}")
    return wrong


def _places(one: Around, host: Mapping[str, str]) -> list[str]:
    wrong = [
        f"the {kind} namespace is the host's"
        for kind in NAMESPACES
        if one.namespaces[kind] == host.get(kind) and kind not in SHARED[one.kind]
    ]
    wrong += ["its root directory is the host's"] if one.host_root else []
    wrong += [f"a descriptor that can {what}" for what in one.descriptors if not _expected(one.kind, what)]
    wrong += [f"an environment variable {word}" for word in one.environment - ENVIRONMENT]
    if one.kind != TOOL:
        wrong += [f"{row} may be written" for row in one.mounts if row.split(" ")[0].split(",")[0] != "ro"]
    return wrong


def _expected(kind: str, descriptor: str) -> bool:
    """The template's files on their read-only overlay, our own configuration, the gofer's list of its descriptors.

    runc keeps the top of the group file systems open, which its mount namespace has read-only.
    """
    if kind == TOOL:
        return descriptor.endswith(" /sys/fs/cgroup") and descriptor.startswith("read ")
    own = ("read overlayfs /root", "read tmpfs /bundle/config.json", "read ext2/ext3 /root/.ringfence")
    return descriptor.startswith(own) or (kind == GOFER and descriptor == "read proc /")


def _order(one: Around) -> list[str]:
    wrong = [] if one.nice >= 0 else [f"its niceness is {one.nice}"]
    return wrong if one.oom_score_adj >= 500 else [*wrong, f"oom_score_adj is {one.oom_score_adj}"]
