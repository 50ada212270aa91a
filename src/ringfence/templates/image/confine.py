"""The inside of a job that touches a stranger's bytes: namespaces of its own, no rights, no way to the network.

Runs in a process of its own, started by jobs.py with the builder's privileges and with everything imported; gives
up all of them before it reads anything. There are two: `unpack` sees one folder; `fetch` sees the host's programs,
read-only, one folder to write to, and a loopback whose few ports the builder itself answers (see gateway.py).
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

from ringfence.guest import syscalls as sc
from ringfence.templates.image.unpack import unpack

FREE_FD: Final = 3
SECRETS_BYTES: Final = 512 * 1024
STAGE: Final = "/tmp"  # noqa: S108 - only a place to mount on, in a mount namespace of our own
FOLDER: Final = f"{STAGE}/folder"
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41
_READ_ONLY: Final = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
_OURS: Final = sc.MS_NOSUID | sc.MS_NODEV
_NAMESPACES: Final = (
    sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
)
_SYSTEM: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Where distributions keep the certificates that their programs trust.
_TRUST: Final = ("etc/ssl", "etc/ca-certificates", "etc/pki/tls", "etc/pki/ca-trust", "etc/crypto-policies")


def _map_ids(pid: int, config: dict[str, Any]) -> None:
    """Give the job one id, which it sees as 0 and which owns nothing on this machine."""
    if not config["privileged"]:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    Path(f"/proc/{pid}/uid_map").write_text(f"0 {config['uid']} 1\n")
    Path(f"/proc/{pid}/gid_map").write_text(f"0 {config['gid']} 1\n")


def _limit(config: dict[str, Any]) -> None:
    for name, wanted in {"CORE": 0, "NOFILE": 256, **config["rlimits"]}.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (value, value))


def _die_with_parent(parent_fd: int) -> None:
    """Ask for the parent's death as ours; it may have died before it could be asked for."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    if select.select([parent_fd], [], [], 0)[0]:
        raise ProcessLookupError("whoever started the job is gone")


def _become_nobody(config: dict[str, Any], parent_fd: int) -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if config["privileged"]:
        os.setgroups([])
    # A change of ids clears this.
    _die_with_parent(parent_fd)
    os.umask(0o022)
    os.setsid()


def _give_up_rights() -> None:
    sc.do(sc.drop_bounding_set())
    sc.execute(sc.prctl(sc.PR_SET_SECUREBITS, sc.SECUREBITS_LOCKED))
    sc.execute(sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL))
    sc.execute(sc.set_capabilities(0, 0))
    sc.execute(sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1))


def _stage(folder_fd: int) -> None:
    """Begin a root of our own: a small tmpfs with the job's folder in it."""
    sc.do(sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE))
    sc.do(sc.mount("tmpfs", STAGE, "tmpfs", _OURS, "size=1m,mode=0755"))
    os.mkdir(FOLDER)
    sc.do(sc.bind(f"/proc/self/fd/{folder_fd}", FOLDER, _OURS | sc.MS_NOEXEC))


def _leave_for(root: str) -> None:
    sc.do(sc.pivot_into(root))
    sc.execute(sc.close_from(FREE_FD))
    _give_up_rights()


def _say(text: str) -> None:
    sys.stdout.write(text)


def _unpack(config: dict[str, Any], folder_fd: int) -> None:
    """The blob is descriptor 0. What is left of the world is an empty folder, and memory."""
    _stage(folder_fd)
    _leave_for(FOLDER)
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    unpack(0, here, config["most"], _say)
    sys.stdout.flush()


def _system() -> None:
    """The host's programs and the certificates they trust, read-only; nothing else of the host."""
    os.mkdir(f"{STAGE}/usr")
    sc.do(sc.bind("/usr", f"{STAGE}/usr", sc.MS_REC | _READ_ONLY))
    for name in _SYSTEM:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{STAGE}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{STAGE}/{name}")
            sc.do(sc.bind(f"/{name}", f"{STAGE}/{name}", sc.MS_REC | _READ_ONLY))
    for name in _TRUST:
        if os.path.isdir(f"/{name}"):
            os.makedirs(f"{STAGE}/{name}")
            sc.do(sc.bind(f"/{name}", f"{STAGE}/{name}", sc.MS_REC | _READ_ONLY))
    Path(f"{STAGE}/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    Path(f"{STAGE}/etc/passwd").write_text("root:x:0:0:root:/folder:/usr/sbin/nologin\n")
    Path(f"{STAGE}/etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    os.mkdir(f"{STAGE}/dev")
    Path(f"{STAGE}/dev/null").touch()
    sc.do(sc.bind("/dev/null", f"{STAGE}/dev/null", sc.MS_NOSUID))
    sc.do(sc.mount("none", STAGE, flags=sc.MS_BIND | sc.MS_REMOUNT | _READ_ONLY))


def _listen(ports: list[int], talk_fd: int) -> None:
    """Open the job's few doors, and hand them to the builder, which answers at them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ifreq = struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING)
        sc.execute(sc.call("ioctl", any_socket.fileno(), _SIOCSIFFLAGS, ifreq, what="bring up the loopback"))
    doors = [socket.create_server(("127.0.0.1", port), backlog=64) for port in ports]
    with socket.socket(fileno=talk_fd) as talk:
        socket.send_fds(talk, [b"D"], [door.fileno() for door in doors])
    for door in doors:
        door.close()


def _keep_secrets(fd: int) -> None:
    """What the registry wants to hear, where this job alone sees it: memory, which goes with it."""
    place = os.open(f"{STAGE}/auth.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(place, os.read(fd, SECRETS_BYTES))
    os.close(place)


def _fetch(config: dict[str, Any], folder_fd: int) -> None:
    _stage(folder_fd)
    _keep_secrets(config["auth"])
    _system()
    _listen(config["ports"], config["talk"])
    _leave_for(STAGE)
    os.chdir("/folder")
    os.execve(config["argv"][0], config["argv"], config["env"])  # noqa: S606 - skopeo, with our words


def _inside(config: dict[str, Any], parent_fd: int) -> None:
    # By path and now: a bind needs a folder of this namespace, and the next lines give up the id that may go there.
    folder_fd = os.open(config["folder"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _become_nobody(config, parent_fd)
    _limit(config)
    {"unpack": _unpack, "fetch": _fetch}[config["job"]](config, folder_fd)


def main() -> int:
    """Clone into the namespaces, map, wait; the first argument says what the job is."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    config = json.loads(sys.argv[1])
    waiting, go = os.pipe()
    try:
        pid, _ = sc.Cloner(_NAMESPACES).clone()
    except OSError as error:
        os.write(2, f"confine: {error}\n".encode())
        return 1
    if pid == 0:
        status = 1
        try:
            os.close(go)
            sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
            if os.read(waiting, 1):
                _inside(config, waiting)
                status = 0
        except BaseException as error:  # noqa: BLE001 - the builder must hear why, whatever it was
            os.write(2, f"confine: {type(error).__name__}: {error}\n"[:2000].encode())
        finally:
            os._exit(status)
    _map_ids(pid, config)
    os.write(go, b"G")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
