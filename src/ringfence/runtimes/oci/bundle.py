"""config.json as a value: pure, so that every field of it can be read, and tested, in one place.

Nothing in it was written by a user: no hook, no sysctl, no annotation, no environment, no argument. What a template
or a request wants reaches the guest through its channel, and is obeyed there, behind the fences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from ringfence.domain.limits import MIB, Limits
from ringfence.domain.template import Image, Template
from ringfence.guest.boot import GVISOR, PLAIN
from ringfence.guest.plan import CHANNEL_FD, HIDDEN, NOBODY, SLOT_SIZE
from ringfence.runtimes.environment import BASE

PYTHON: Final = "/usr/bin/python3"
ROOT: Final = "/root"  # where the launcher assembles the template's files, as the tool sees it
CARRIED: Final = "/carried"  # and our own
WIRED: Final = "/wired"  # a network namespace with a wire in it; the tool itself is not in there
#: Uids for these sandboxes begin where the jail's last block ends; up to nobody's, which is never given away.
UID_FLOOR: Final = 0xFF80_0000
UID_CEILING: Final = 0xFFFF_0000
SLOTS: Final = (UID_CEILING - UID_FLOOR) // SLOT_SIZE
#: What our guest needs until its fences stand; it then drops all but three, and programs have none at all.
SETUP_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
    "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE",
)  # fmt: skip
NAMESPACES: Final = ("user", "pid", "mount", "network", "ipc", "uts", "cgroup")
#: runc stays, to wait for what it made: a handful of threads.
TOOL_THREADS: Final = 16
#: gVisor's kernel serves programs from its own memory and threads, in the same group: room for those comes on top.
SENTRY_BYTES: Final = 64 * MIB
SENTRY_THREADS: Final = 96
#: A program of gVisor's is a process and some threads of the host's.
HOST_THREADS_EACH: Final = 4
_BOOT: Final = (
    f"import sys; sys.path[:] = [{HIDDEN + '/code'!r}, *filter(None, sys.path)]; "
    "from ringfence.guest.boot import main; main()"
)
#: Until the fences stand nothing of an image is read by the C library: no locale, no time zone, no converter.
_CARRIED_ENV: Final = ("LC_ALL=C", f"TZ=:{HIDDEN}/none")
#: A template's own interpreter has no flags: programs see sys.flags, and pass them on to interpreters they start. That
#: none of its import hooks runs before the fences stand is for an empty site.py of ours that it finds first.
_OWN_ENV: Final = ("LANG=C.UTF-8", f"PYTHONPATH={HIDDEN}/early")
_QUIET: Final = ("nosuid", "noexec", "nodev")


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a bundle, beside the template."""

    kernel: str  # PLAIN or GVISOR
    slot: int
    tool: str = "runc"
    without: frozenset[str] = frozenset()
    networked: bool = False

    @property
    def uid_base(self) -> int:
        """The first of this sandbox's uids on the host."""
        return UID_FLOOR + self.slot * SLOT_SIZE


def config(template: Template, limits: Limits, shape: Shape) -> dict[str, Any]:
    """The whole of config.json."""
    ids = _mappings(shape.uid_base, template.image)
    return {
        "ociVersion": "1.0.2",
        "process": _process(template, limits),
        "root": {"path": ROOT, "readonly": "read_only_root" not in shape.without},
        "hostname": "sandbox",
        "mounts": _mounts(shape.kernel),
        "linux": {
            "namespaces": _namespaces(shape),
            "uidMappings": ids,
            "gidMappings": ids,
            "rootfsPropagation": "private",
        },
    }


def _namespaces(shape: Shape) -> list[dict[str, str]]:
    """All are the tool's to make, but a network namespace with a wire. Without a path none is ever the host's."""
    kinds = [kind for kind in NAMESPACES if shape.kernel == PLAIN or kind != "cgroup"]
    wired = {"path": WIRED} if shape.networked else {}
    return [{"type": kind, **(wired if kind == "network" else {})} for kind in kinds]


def _process(template: Template, limits: Limits) -> dict[str, Any]:
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [*interpreter(template), "-c", _BOOT],
        "env": list(_OWN_ENV if template.image is None else _CARRIED_ENV),
        "cwd": "/",
        "capabilities": {kind: list(SETUP_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
        "rlimits": [
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            {"type": "RLIMIT_NOFILE", "hard": limits.open_files, "soft": limits.open_files},
        ],
    }


def interpreter(template: Template) -> list[str]:
    """What the agent runs on: the template's own Python, or the one we carry into images."""
    if template.image is None:
        return [PYTHON]
    loader = [f"{HIDDEN}/lib/ld.so", "--inhibit-cache", "--library-path", f"{HIDDEN}/lib"]
    return [*loader, f"{HIDDEN}/bin/python3", "-I", "-S", "-B", "-X", "utf8"]


def _mounts(kernel: str) -> list[dict[str, Any]]:
    # gVisor refuses to open a device for writing below a read-only mount; its devices are its own either way.
    sealed = ["nr_inodes=64", "ro"] if kernel == PLAIN else []
    return [
        _mount("/proc", "proc", *_QUIET),
        _mount("/dev", "tmpfs", "nosuid", "noexec", "size=64k", "mode=0755", *sealed),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        _mount("/dev/shm", "tmpfs", *_QUIET, "size=4k", "mode=1777"),  # noqa: S108 - only a place to mount on
        {"destination": HIDDEN, "type": "bind", "source": CARRIED, "options": ["rbind", "ro", "nosuid", "nodev"]},
    ]


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _mappings(base: int, image: Image | None) -> list[dict[str, int]]:
    """The sandbox's own range; nobody on its last place but one, an image's own user on the last."""
    last = base + SLOT_SIZE - 1
    rows = [(0, base, SLOT_SIZE - 2), (NOBODY, last, 1)]
    wanted = {int(word) for word in (image.user if image else "").split(":") if word.isdigit()}
    rows += [(number, last - 1, 1) for number in sorted(wanted)[-1:] if SLOT_SIZE - 2 <= number < NOBODY]
    return [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in rows]


def environment(template: Template) -> dict[str, str]:
    """What programs find: ours, then the image's, then the template's."""
    image = dict(template.image.env) if template.image else {}
    return {**BASE, **image, **dict(template.env)}


def group_limits(limits: Limits, kernel: str) -> Limits:
    """The limits of the group outside.

    The tool's threads are in there too: what is exact for programs is RLIMIT_NPROC, inside. Under gVisor so are its
    own kernel and the files it keeps in memory.
    """
    if kernel != GVISOR:
        return replace(limits, processes=limits.processes + TOOL_THREADS)
    return replace(
        limits,
        memory_bytes=limits.memory_bytes + limits.scratch_bytes + SENTRY_BYTES,
        processes=limits.processes * HOST_THREADS_EACH + SENTRY_THREADS,
    )


def command(shape: Shape, path: str, sandbox_id: str) -> list[str]:
    """The one command line of the tool."""
    if shape.tool == "runsc":
        network = ("-network", "sandbox" if shape.networked else "none")
        words = ("run", "-bundle", "/bundle", "-pass-fd", f"{CHANNEL_FD}:{CHANNEL_FD}")
        return [path, *GVISOR_FLAGS, *network, *words, sandbox_id]
    if shape.tool == "crun":
        flags = ["--root", "/state", "--cgroup-manager", "disabled"]
        return [path, *flags, "run", "--bundle", "/bundle", "--preserve-fds", "1", sandbox_id]
    # Rootless here means only: do without a group of its own, for it is in ours already and may not leave it.
    flags = ["--root", "/state", "--rootless", "true"]
    return [path, *flags, "run", "--bundle", "/bundle", "--preserve-fds", "1", sandbox_id]


GVISOR_FLAGS: Final = (
    "-root",
    "/state",
    "-platform",
    "systrap",
    "-ignore-cgroups",
    "-host-uds",
    "none",
    "-host-fifo",
    "none",
    "-net-raw=false",
    "-overlay2",
    "none",  # the root is read-only and the scratch is memory with a size: nothing to lay over
    "-file-access",
    "exclusive",
)
