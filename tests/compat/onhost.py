"""Run one program on the host itself: no isolation, but the template's own files and the sandbox's own limits.

Reads an order (JSON) on stdin, writes how it ended (JSON) to stdout. Needs root, to enter the template's root with a
private copy of the mount table; nothing of that outlives this process. The program is uid 1000 of the host, sees the
host's /proc, /dev, /sys, network and processes, and is held back by no filter.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ringfence.guest import syscalls as sc
from ringfence.guest.plan import HOME, USER_ID

SHARED = ("/proc", "/dev", "/sys")
FRESH = (
    (HOME, "0755"), ("/workspace", "0755"), ("/tmp", "1777"), ("/var/tmp", "1777"), ("/run", "0755"),
    ("/dev/shm", "1777"),
)  # fmt: skip
CHILD_SUBREAPER = 36
#: What RLIMIT numbers Python has no name for.
SIGPENDING, MSGQUEUE, NICE, RTPRIO = 11, 12, 13, 14
GRACE_SECONDS = 60.0
#: A shell starts what runs in the background with these ignored; a program would inherit that.
IGNORED_BY_SHELLS = (signal.SIGINT, signal.SIGQUIT)


def assemble(root: str, scratch_bytes: int) -> None:
    """The template's tree with the host's kernel file systems and empty writable places, for this process alone."""
    sc.do([sc.call("unshare", sc.CLONE_NEWNS), *sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE)])
    sc.do(sc.bind(root, root, sc.MS_REC | sc.MS_RDONLY))
    for place in SHARED:
        sc.do(sc.bind(place, root + place, sc.MS_REC))
    for place, mode in FRESH:
        owner = f",uid={USER_ID},gid={USER_ID}" if mode == "0755" else ""
        sc.do(sc.mount("tmpfs", root + place, "tmpfs", options=f"mode={mode},size={scratch_bytes}{owner}"))


def put(root: str, files: dict[str, str]) -> None:
    """The program's files, in its home and its own."""
    for name, text in files.items():
        path = Path(root + HOME) / name
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        os.chown(path, USER_ID, USER_ID)


def lower(limits: dict[str, Any]) -> None:
    """The rlimits a sandbox sets for its programs (guest/steps.py)."""
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 2),
        (resource.RLIMIT_MEMLOCK, 64 * 1024),
        (resource.RLIMIT_STACK, 8 * 1024 * 1024),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"]),
        (resource.RLIMIT_CPU, int(limits["cpu_seconds"]) + 1),
        (SIGPENDING, 1024),
        (MSGQUEUE, 64 * 1024),
        (NICE, 0),
        (RTPRIO, 0),
    ):
        resource.setrlimit(what, (value, value))


def children() -> list[int]:
    """Processes whose parent we are: as subreaper, sooner or later all that the program left."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.append(int(entry))
    return found


def clear_up() -> None:
    """End whatever the program left behind."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := children()) and time.monotonic() < deadline:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)


class Reader(threading.Thread):
    """Keeps what comes out of a pipe, until the last process that could write has ended."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(daemon=True)
        self.data = bytearray()
        self._pipe = pipe
        self.start()

    def run(self) -> None:
        """In its own thread."""
        while piece := os.read(self._pipe.fileno(), 1 << 16):
            self.data += piece


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Start the program, wait for it no longer than its timeout."""
    limits = order["limits"]

    def become() -> None:
        os.chroot(order["root"])
        os.chdir(HOME)
        lower(limits)
        for number in IGNORED_BY_SHELLS:
            signal.signal(number, signal.SIG_DFL)
        os.setgroups([])
        os.setresgid(USER_ID, USER_ID, USER_ID)
        os.setresuid(USER_ID, USER_ID, USER_ID)
        os.umask(0o022)

    program = subprocess.Popen(
        order["argv"],
        env=order["env"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=become,  # noqa: PLW1509 - one thread
        start_new_session=True,
    )
    out, err = Reader(program.stdout), Reader(program.stderr)
    code = None
    try:
        code = program.wait(order["timeout"])
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
    clear_up()
    out.join(GRACE_SECONDS)
    err.join(GRACE_SECONDS)
    return {
        "how": "timed_out" if code is None else "exited" if code >= 0 else "signalled",
        "code": code if code is None or code >= 0 else None,
        "signal": -code if code is not None and code < 0 else None,
        "stdout": base64.b64encode(bytes(out.data)).decode(),
        "stderr": base64.b64encode(bytes(err.data[-64 * 1024 :])).decode(),
    }


def main() -> None:
    """One order, one answer."""
    order = json.load(sys.stdin)
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    sc.execute(sc.prctl(CHILD_SUBREAPER, 1))
    assemble(order["root"], order["limits"]["scratch_bytes"])
    put(order["root"], order["files"])
    json.dump(run(order), sys.stdout)


if __name__ == "__main__":
    main()
