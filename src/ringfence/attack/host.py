"""The host's side of an attack: what is planted for a sandbox to find, and whether anything was touched.

Everything planted is made for this purpose: tokens without meaning, listeners that serve nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
PROGRAMS: Final = ("runc", "crun", "runsc", "python3", "sh")
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LANDLOCK_CREATE_RULESET: Final = 444
_IPC_CREAT: Final = 0o1000
_IPC_RMID: Final = 0
_SHAPE: Final = "RFCANARY-"


def new_token() -> str:
    """A canary: 128 random bits in a shape that a search recognises."""
    return _SHAPE + secrets.token_hex(16)


def digest(text: str) -> str:
    """How a token or a name of the host is told to a program that must not hold it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def namespaces() -> dict[str, str]:
    """Inodes of the namespaces we are in ourselves."""
    found = {}
    for kind in NAMESPACES:
        with contextlib.suppress(OSError):
            found[kind] = os.readlink(f"/proc/self/ns/{kind}")
    return found


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 when there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, 0, 0, 1)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _addresses() -> list[str]:
    """Addresses of this host other than its loopback's."""
    found = set()
    with contextlib.suppress(OSError):
        found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # no packet leaves: a datagram socket only picks its source address
        found.add(probe.getsockname()[0])
    return sorted(address for address in found if not address.startswith("127."))


def _programs() -> dict[str, str]:
    """The programs that make sandboxes: whoever writes one of them changes its times (CVE-2019-5736)."""
    found = {}
    paths = (shutil.which(name, path=SEARCH) for name in PROGRAMS)
    for path in {sys.executable, *(path for path in paths if path)}:
        seen = os.stat(path)
        times = f"{seen.st_mtime_ns} {seen.st_ctime_ns}"
        found[path] = f"{seen.st_ino} {seen.st_size} {seen.st_uid}:{seen.st_gid} {seen.st_mode:o} {times}"
    return found


def _devices() -> dict[str, str]:
    """The devices that sandboxes share with the host: their owner and mode are not theirs to change."""
    found = {}
    for path in (f"/dev/{name}" for name in DEVICES):
        with contextlib.suppress(OSError):
            seen = os.stat(path)
            found[path] = f"{seen.st_rdev} {seen.st_uid}:{seen.st_gid} {seen.st_mode:o}"
    return found


class Listeners:
    """Sockets of the host that nothing in a sandbox may reach; each remembers whether somebody did."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "canary.sock")
        self.abstract = f"ringfence-canary-{secrets.token_hex(8)}"
        self._sockets = {
            "TCP on every address": self._listen(socket.AF_INET, ("0.0.0.0", 0)),  # noqa: S104 - reachable on purpose
            "TCP on the loopback": self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            "a Unix socket": self._listen(socket.AF_UNIX, self.path),
            "an abstract Unix socket": self._listen(socket.AF_UNIX, "\0" + self.abstract),
        }
        os.chmod(self.path, 0o777)  # noqa: S103 - open to everyone on purpose

    @staticmethod
    def _listen(family: int, address: Any) -> socket.socket:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.bind(address)
        server.listen()
        server.setblocking(False)
        return server

    @property
    def ports(self) -> list[int]:
        """The TCP ports listened on."""
        return [s.getsockname()[1] for s in self._sockets.values() if s.family == socket.AF_INET]

    def touched(self) -> list[str]:
        """Names of those that somebody connected to since the last time."""
        found = []
        for name, server in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
                found.append(f"somebody connected to {name}")
        return found

    def close(self) -> None:
        """Stop listening."""
        for server in self._sockets.values():
            server.close()


class SharedMemory:
    """A System V segment of the host, readable by everyone, with a token in it."""

    def __init__(self, token: str) -> None:
        self.key = 1 + secrets.randbelow(0x7FFF_FFFF)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.shmat.restype = ctypes.c_void_p
        self.id = self._libc.shmget(self.key, ctypes.c_size_t(4096), _IPC_CREAT | 0o666)
        if self.id >= 0:
            address = self._libc.shmat(self.id, None, 0)
            ctypes.memmove(address, token.encode(), len(token))
            self._libc.shmdt(ctypes.c_void_p(address))

    def close(self) -> None:
        """Remove it."""
        if self.id >= 0:
            self._libc.shmctl(self.id, _IPC_RMID, None)


class Host:
    """Plants canaries while the `with` lasts, and tells afterwards what became of them."""

    def __init__(self, extra_tokens: tuple[str, ...] = ()) -> None:
        """`extra_tokens`: canaries that somebody else has planted, in a server's environment for example."""
        self._extra = extra_tokens
        self.tokens: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="ringfence-attack-"))
        self.folder.chmod(0o755)
        self.tokens = {name: new_token() for name in ("open.txt", "private.txt", "shared memory", "own memory")}
        for name, mode in (("open.txt", 0o644), ("private.txt", 0o600)):
            (self.folder / name).write_text(self.tokens[name])
            (self.folder / name).chmod(mode)
        self.listeners = Listeners(self.folder)
        self.memory = SharedMemory(self.tokens["shared memory"])
        self._before = self._state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listeners.close()
        self.memory.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self) -> dict[str, str]:
        """Everything that must stay as it is: content, owner, mode and time of files; names; settings."""
        state = {}
        for path in (*sorted(self.folder.iterdir()), Path("/etc/passwd"), Path("/etc/hosts"), Path("/bin/sh")):
            with contextlib.suppress(OSError):
                found = path.stat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                state[str(path)] = f"{content} {found.st_uid}:{found.st_gid} {found.st_mode:o} {found.st_mtime_ns}"
        state |= _programs() | _devices()
        state["folder"] = " ".join(sorted(p.name for p in self.folder.iterdir()))
        for name in ("core_pattern", "hostname", "tainted"):
            state[name] = _read(f"/proc/sys/kernel/{name}")
        return state

    def changed(self) -> list[str]:
        """What is no longer as it was planted, in plain sentences; looking resets it."""
        now = self._state()
        names = sorted(now.keys() | self._before.keys())
        wrong = [f"{name} changed" for name in names if now.get(name) != self._before.get(name)]
        self._before = now
        return wrong + self.listeners.touched()

    def facts(self) -> dict[str, Any]:
        """What a program is told: where to look, and digests of what it must not find."""
        host = {
            "hostname": socket.gethostname(),
            "boot id": _read("/proc/sys/kernel/random/boot_id"),
            "machine id": _read("/etc/machine-id"),
            "kernel command line": _read("/proc/cmdline"),
        }
        return {
            "canaries": [digest(token) for token in (*self.tokens.values(), *self._extra)],
            "paths": [str(self.folder), str(self.folder / "open.txt")],
            "sockets": [self.listeners.path],
            "abstract": [self.listeners.abstract],
            "tcp_ports": self.listeners.ports,
            "addresses": _addresses(),
            "namespaces": namespaces(),
            "landlock": landlock_abi(),
            "host": {name: digest(text) for name, text in host.items() if text.strip()},
            "host_paths": ["/templates/", "/var/lib/", "/home/"],
            "shm_key": self.memory.key,
        }
