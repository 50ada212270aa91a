"""From a plain process to a container tool that is process 1 of a pid namespace and sees almost nothing of the host.

Runs as `python -m ringfence.runtimes.oci.launcher`, started by the node with its own privileges. Descriptor 3 is the
sandbox's channel, 4 brings the configuration (sent once this process is in its group), 5 takes the tool's pid home; 6
is the network namespace of a sandbox that has a wire.

The tool gets a root of its own: the host's programs read-only, the six devices, and what it needs to know. Its
bundle, its records and every mount are on a tmpfs in a mount namespace that dies with it, so nothing of a sandbox
is ever on a disk, and a kill at any moment leaves nothing to sweep but a group. A descriptor that such a tool leaked
into its container (CVE-2024-21626) would lead to that root and not to the host's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys
from pathlib import Path

from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.plan import HIDDEN
from ringfence.runtimes.jail.launcher import DEVICES, own_clock

CHANNEL_FD: Final = 3
CONFIG_FD: Final = 4
REPORT_FD: Final = 5
NAMESPACE_FD: Final = 6
WIRED: Final = "/wired"  # where the tool finds the namespace
WORK: Final = "/tmp"  # noqa: S108 - only a place to mount on, in a mount namespace of our own
ENV: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
#: Where something is mounted, by the tool or by our guest: directories of ours, on top of whatever a template has
#: there. A link or a file in its place is hidden, so no mount can be led astray (CVE-2025-31133 and its kin).
PLACES: Final = {
    "proc": 0o555,
    "dev": 0o755,
    "sys": 0o555,
    "run": 0o755,
    "tmp": 0o1777,
    "var": 0o755,
    "var/tmp": 0o1777,
    "home": 0o755,
    "home/user": 0o755,
    "etc": 0o755,
    HIDDEN[1:]: 0o700,
}
#: Hidden from everybody: what is named in there is loaded into every program, our agent's interpreter included.
HIDES: Final = ("etc/ld.so.preload",)
#: Below the template's: files that programs look for, should an image have none.
FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}
OOM_SCORE: Final = "500"  # when the host runs out of memory, sandboxes go before anything of the operator's
_CLONE_PARENT: Final = 0x8000
_MOUNT_SETATTR: Final = 442
_AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = (1 << 64) - 100
_READ_ONLY: Final = 0x1 | 0x2 | 0x4  # MOUNT_ATTR_RDONLY, NOSUID, NODEV


def read_only(place: str) -> sc.Call:
    """Make a mount and all below it read-only, nosuid and nodev, in one call (Linux 5.12)."""
    attributes = sc.buffer(_READ_ONLY.to_bytes(8, "little") + bytes(24))
    path = sc.call("chdir", place.encode())  # for its buffer: the address of the path
    args = (_AT_FDCWD, path.args[0], _AT_RECURSIVE, ctypes.addressof(attributes), 32)
    return sc.Call(f"make {place} read-only", _MOUNT_SETATTR, args, -1, (path, attributes))


def programs(root: str) -> None:
    """The host's programs and libraries, read-only; links among them as they are."""
    for place in PROGRAMS:
        if os.path.islink(place):
            os.symlink(os.readlink(place), root + place)
        elif os.path.isdir(place):
            os.mkdir(root + place)
            sc.do([*sc.bind(place, root + place, sc.MS_REC), read_only(root + place)])


def kernel_files(root: str, *, groups: bool) -> None:
    """The six devices, and the groups where the tool insists on looking at them: never to be written."""
    os.mkdir(f"{root}/dev")
    for name in DEVICES:
        Path(f"{root}/dev/{name}").touch()
        sc.do(sc.bind(f"/dev/{name}", f"{root}/dev/{name}", sc.MS_NOSUID | sc.MS_NOEXEC))
    os.makedirs(f"{root}/sys/fs/cgroup")
    if groups:
        place = f"{root}/sys/fs/cgroup"
        sc.do([*sc.bind("/sys/fs/cgroup", place, sc.MS_REC), read_only(place)])


def places(top: str, uid: int, resolver: str) -> None:
    """The layer above the template's files."""
    os.mkdir(top)
    for name, mode in PLACES.items():
        os.mkdir(f"{top}/{name}")
        os.chmod(f"{top}/{name}", mode)
    os.chown(top + HIDDEN, uid, uid)
    for name in HIDES:
        os.mknod(f"{top}/{name}", stat.S_IFCHR)  # a whiteout, in the overlay's words
    if resolver:  # in place of whatever an image has there, a link perhaps
        Path(f"{top}/etc/resolv.conf").write_text(resolver)


def fallbacks(bottom: str) -> None:
    """The layer below them."""
    os.makedirs(f"{bottom}/etc")
    for name, text in FILES.items():
        Path(f"{bottom}/{name}").write_text(text)


def files(root: str, config: dict[str, Any]) -> None:
    """The template's files between our two layers, and our own beside them.

    An overlay, not a bind: a bind would show every sandbox the path and the digest of the host's own directory in
    /proc/self/mountinfo (attack 24).
    """
    places(f"{root}/places", config["uid"], config["resolver"])
    fallbacks(f"{root}/fallbacks")
    os.mkdir(f"{root}/root")
    template = os.open(config["template_root"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(template)
    flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
    sc.do(sc.mount("template", f"{root}/root", "overlay", flags, f"lowerdir={root}/places:.:{root}/fallbacks"))
    os.chdir("/")
    os.close(template)
    os.mkdir(f"{root}/carried")
    sc.do(sc.bind(config["carried"], f"{root}/carried"))
    sc.do([read_only(f"{root}/carried")])


def build(config: dict[str, Any]) -> str:
    """Assemble the tool's root; returns where it stands."""
    sc.do(sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE))
    carried = os.open(config["carried"], os.O_PATH | os.O_DIRECTORY)
    config = {**config, "carried": f"/proc/self/fd/{carried}"}  # it may lie below what is mounted over next
    template = os.open(config["template_root"], os.O_PATH | os.O_DIRECTORY)
    config["template_root"] = f"/proc/self/fd/{template}"
    sc.do(sc.mount("tmpfs", WORK, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "size=16m,mode=0755"))
    for name in ("proc", "bundle", "state", "tmp"):
        os.mkdir(f"{WORK}/{name}")
    programs(WORK)
    kernel_files(WORK, groups=config["groups"])
    files(WORK, config)
    if config["resolver"]:
        network(WORK)
    Path(f"{WORK}/bundle/config.json").write_text(json.dumps(config["bundle"]))
    return WORK


def network(root: str) -> None:
    """A file that stands for the namespace with the sandbox's wire. Raises OSError where that would be our own."""
    wired = os.fstat(NAMESPACE_FD)
    if os.path.samestat(wired, os.stat("/proc/self/ns/net")):
        raise OSError(0, "the sandbox would share the host's network")
    Path(root + WIRED).touch()
    sc.do(sc.mount(f"/proc/self/fd/{NAMESPACE_FD}", root + WIRED, flags=sc.MS_BIND))
    os.close(NAMESPACE_FD)
    if not os.path.samestat(wired, os.stat(root + WIRED)):
        raise OSError(0, "the wire's namespace is another one")


def no_host_network(root: str) -> None:
    """Hide what runsc before August 2024 takes for the host's network in any namespace of a Linux after 6.10.

    It refuses to work in the host's (gVisor issue 10704); network() has made sure, in a better way, that it does not.
    """
    sc.do(sc.mount("tmpfs", f"{root}/proc/sys/net", "tmpfs", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV, "size=4k"))


def become_tool(root: str, command: list[str], *, wired: bool) -> None:
    """In the child, process 1 of its namespace: enter the root, keep the channel and the log, exec."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    os.setsid()
    Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    sc.do(sc.mount("proc", f"{root}/proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC))
    if wired and command[0].endswith("/runsc"):
        no_host_network(root)
    sc.do(sc.pivot_into(root))
    os.set_inheritable(CHANNEL_FD, True)
    sc.execute(sc.close_from(CHANNEL_FD + 1))
    os.execve(command[0], command, ENV)  # noqa: S606 - found in a fixed list of places


def main() -> int:
    """Build, start the tool as a sibling of ours, tell the node its pid, and go."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    with os.fdopen(CONFIG_FD) as file:
        config = json.load(file)
    os.umask(0o022)
    try:
        sc.execute(sc.call("unshare", sc.CLONE_NEWNS))
        root = build(config)
        if config["time_namespace"] and not own_clock():
            raise OSError(0, "no time namespace can be made")
        # Its parent is then the node, whose death ends it, and not this process, which would be memory for nothing.
        pid = sc.execute(sc.call("clone", _CLONE_PARENT | sc.CLONE_NEWPID, 0, 0, 0, 0))
        if pid == 0:
            become_tool(root, config["command"], wired=bool(config["resolver"]))
    except OSError as error:
        sys.stderr.write(f"launcher: {error.strerror or error}\n")
        return 1
    os.write(REPORT_FD, f"{pid}\n".encode())
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
