"""From a plain process to a zygote: namespaces, a root built from a template, then exec.

Runs as `python -m ringfence.runtimes.jail.launcher`, started by the node with its own privileges, and stays as
the zygote's parent. Descriptor 3 is the node's control channel, descriptor 4 brings the configuration; the node
sends it after it has put this process into its group, so nothing below starts ungoverned.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.plan import BROKEN, NEW_ROOT, SCRATCH, STAGE

CONTROL_FD: Final = 3
CONFIG_FD: Final = 4
GUEST: Final = Path(__file__).parent.parent.parent / "guest"
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
LINKS: Final = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
CODE: Final = "/run/ringfence/code"
_PATH: Final = f"import sys; sys.path.insert(0, {CODE!r})"
BOOT: Final = f"{_PATH}; from ringfence.guest.zygote import main; main()"
PYTHON: Final = "/usr/bin/python3"
# Twice: compiling our modules leaves a heap full of holes, a third of it, that every fork would copy the tables of.
# The first run only leaves the compiled files, the second finds them. Not where they were brought along.
# No -I and no -B: programs see sys.flags, and pass them on to interpreters they start. The variables here are ours.
COMPILE: Final = f"{_PATH}; import os, ringfence.guest.zygote; os.execv({PYTHON!r}, ['python3', '-c', {BOOT!r}])"
# What was brought along and turns out to be damaged is thrown away.
QUICK: Final = f"""{_PATH}
try:
    from ringfence.guest.zygote import main
except Exception:
    import os, shutil
    shutil.rmtree({CODE + "/ringfence/guest/__pycache__"!r})
    os.execv({PYTHON!r}, ['python3', '-I', '-c', {COMPILE!r}])
main()
"""
_READ_ONLY: Final = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
_QUIET: Final = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC


def write_maps(pid: int, config: dict[str, Any]) -> None:
    """Map the tenant's uid range, or without privileges the one uid we are."""
    if config["root"]:
        uid = gid = f"0 {config['uid_base']} {config['uid_count']}\n"
    else:
        uid, gid = f"0 {os.geteuid()} 1\n", f"0 {os.getegid()} 1\n"
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    Path(f"/proc/{pid}/uid_map").write_text(uid)
    Path(f"/proc/{pid}/gid_map").write_text(gid)


def devices(root: str) -> None:
    """The six harmless devices and the usual links, on a small tmpfs that is then made read-only."""
    dev = f"{root}/dev"
    sc.do(sc.mount("tmpfs", dev, "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "size=64k,nr_inodes=64,mode=0755"))
    for name in DEVICES:
        Path(f"{dev}/{name}").touch()
        sc.do(sc.bind(f"/dev/{name}", f"{dev}/{name}", sc.MS_NOSUID | sc.MS_NOEXEC))
    for name, target in LINKS.items():
        Path(f"{dev}/{name}").symlink_to(target)
    for name in ("pts", "shm"):
        Path(f"{dev}/{name}").mkdir()
    sc.do(sc.mount("none", dev, flags=sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NOEXEC))


def guest_files(compiled: str) -> dict[str, bytes]:
    """Our guest package: its sources, and from the directory `compiled`, if any, what they were compiled to."""
    files = {file.name: file.read_bytes() for file in sorted(GUEST.glob("*.py"))}
    for file in sorted(Path(compiled).glob("*.pyc")) if compiled else ():
        with contextlib.suppress(OSError):  # superseded, and just now removed
            files[f"__pycache__/{file.name}"] = file.read_bytes()
    return files


def guest_code(root: str, files: dict[str, bytes]) -> None:
    """Put our guest package where the template's interpreter can import it."""
    package = Path(f"{root}{CODE}/ringfence/guest")
    (package / "__pycache__").mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    for name, content in files.items():
        (package / name).write_bytes(content)


def first_words(files: dict[str, bytes]) -> list[str]:
    """How the template's interpreter is started: at once, if these files were compiled by one of its version."""
    version = ""
    with contextlib.suppress(OSError):
        version = os.readlink(PYTHON).rpartition("/")[2].removeprefix("python").replace(".", "")
    known = f"__pycache__/zygote.cpython-{version}.pyc" in files
    return ["python3", "-c", QUICK] if known else ["python3", "-I", "-c", COMPILE]


def template(template_fd: int, place: str, flags: int) -> None:
    """Mount the template's files, through an overlay of them and nothing.

    A bind would show every sandbox the path, the digest and the disk of the host's own directory in
    /proc/self/mountinfo (attack 24).
    """
    os.fchdir(template_fd)
    try:
        sc.do(sc.mount("template", place, "overlay", flags, "lowerdir=.:/tmp/nothing"))
    except OSError:
        sc.do(sc.bind(f"/proc/self/fd/{template_fd}", place, flags))  # kernels before 5.11: `doctor` says so
    os.chdir("/")


def build_root(template_fd: int, trusted_fd: int, files: dict[str, bytes], *, read_only: bool) -> str:
    """Assemble the zygote's root in a private mount tree; returns where it stands.

    Its sandboxes' files may be a tenant's own making: then what runs before the fences stand is of ours.
    """
    sc.do(sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE))
    work = "/tmp"  # noqa: S108 - only a place to mount on, in a mount namespace of our own
    sc.do(sc.mount("tmpfs", work, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "size=16m,mode=0755"))
    pristine, trusted, root = f"{work}/pristine", f"{work}/trusted", f"{work}/root"
    for place in (pristine, trusted, root):
        os.mkdir(place)
    os.mkdir(f"{work}/nothing")
    template(template_fd, pristine, _READ_ONLY if read_only else sc.MS_NOSUID | sc.MS_NODEV)
    devices(pristine)
    if trusted_fd == template_fd:
        trusted = pristine
    else:
        template(trusted_fd, trusted, _READ_ONLY)
        devices(trusted)
    sc.do(sc.bind(trusted, root, sc.MS_REC))
    sc.do(sc.mount("tmpfs", f"{root}/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "size=16m,mode=0755"))
    for place, mode in (("/tmp", "1777"), ("/home/user", "0755")):  # noqa: S108 - the zygote's own
        sc.do(sc.mount("tmpfs", root + place, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, f"size=64m,mode={mode}"))
    sc.do(sc.mount("proc", f"{root}/proc", "proc", _QUIET))
    guest_code(root, files)
    for place in (STAGE, NEW_ROOT, SCRATCH):
        os.mkdir(root + place)
    sc.do(sc.bind(pristine, root + STAGE, sc.MS_REC))
    return root


def own_clock() -> bool:
    """A time namespace whose monotonic clocks start now: the host's uptime is not a sandbox's business."""
    try:
        sc.execute(sc.call("unshare", sc.CLONE_NEWTIME))
    except OSError:
        return False
    offsets = "".join(
        f"{name} -{int(time.clock_gettime(clock))} 0\n"
        for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))
    )
    Path("/proc/self/timens_offsets").write_text(offsets)
    return True


def become_zygote(config: dict[str, Any], files: dict[str, bytes]) -> None:
    """In the child, mapped: build the root, leave the host's tree, exec the template's interpreter."""
    # Opened here because a bind needs a mount of this namespace, and now because the next lines give up the uid
    # that may walk through a state directory closed to others.
    template_fd = os.open(config["template_root"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    same = config["trusted_root"] == config["template_root"]
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    trusted_fd = template_fd if same else os.open(config["trusted_root"], flags)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    sc.execute(sc.prctl(sc.PR_SET_DUMPABLE, 1))
    if config["root"]:
        os.setgroups([])
    os.umask(0o022)
    os.setsid()
    sc.execute(sc.call("sethostname", b"sandbox", 7))
    clock = "time_namespace" not in config["without"] and own_clock()
    root = build_root(template_fd, trusted_fd, files, read_only="read_only_root" not in config["without"])
    sc.do(sc.pivot_into(root))
    if "no_new_privileges" not in config["without"]:
        sc.execute(sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1))
    reader, writer = os.pipe()
    os.write(writer, json.dumps({**config["zygote"], "time_namespace": clock}).encode())
    os.close(writer)
    os.dup2(reader, CONFIG_FD)
    sc.execute(sc.close_from(CONFIG_FD + 1))
    env = {name: value for name, value in config["zygote"]["env"].items() if name != "LD_PRELOAD"}
    os.execve(PYTHON, first_words(files), env)  # noqa: S606 - the template's own


def main() -> int:
    """Clone the zygote, map it, wait for it."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    os.set_inheritable(CONTROL_FD, True)
    with os.fdopen(CONFIG_FD, closefd=True) as file:
        config = json.load(file)
    # Read while we still may: below, this uid is given up and other trees are mounted over /tmp.
    files = guest_files(config["compiled"])
    waiting, go = os.pipe()
    flags = sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET
    pid, _ = sc.Cloner(flags | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWCGROUP).clone()
    if pid == 0:
        try:
            os.close(go)
            if os.read(waiting, 1):
                become_zygote(config, files)
        except BaseException as error:  # noqa: BLE001 - the node must hear why, whatever it was
            os.write(CONTROL_FD, BROKEN + f"{type(error).__name__}: {error}"[:2000].encode())
        finally:
            os._exit(1)
    os.close(CONTROL_FD)
    write_maps(pid, config)
    os.write(go, b"G")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
