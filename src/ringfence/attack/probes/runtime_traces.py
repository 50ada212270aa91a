# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Look for what the tool that made us needs and we do not: bundle, records, sockets, our carrier's own files."""

import os
import stat

from ringfence.attack.probes.prelude import attempt, say, text_of

PATHS = [
    "/config.json", "/bundle", "/bundle/config.json", "/state", "/state/state.json", "/exec.fifo", "/run/runc",
    "/run/crun", "/run/runsc", "/run/containerd", "/run/.containerenv", "/.dockerenv", "/run/user/0", "/run/netns",
    "/run/ringfence", "/carried", "/places", "/fallbacks", "/root/root", "/rootfs", "/dev/.runsc",
    "/proc/1/root/bundle",
    "/proc/1/root/state", "/proc/1/root/carried", "/proc/1/cwd/config.json", "/dev/console", "/dev/log", "/run/secrets",
]  # fmt: skip
HIDDEN = "/.ringfence"
WORDS = ("runc", "runsc", "crun", "/bundle", "--root", "LISTEN_FDS", "NOTIFY_SOCKET", "_LIBCONTAINER", "_OCI")


def present() -> list[str]:
    """Paths that only a tool or our own launcher would have made."""
    return [path for path in PATHS if os.path.lexists(path)]


def hidden() -> list[str]:
    """Our own files, which the agent has put out of sight: neither to be listed, nor opened, nor uncovered."""
    found = []
    if os.path.isdir(HIDDEN) and attempt(os.listdir, HIDDEN) == "ok" and os.listdir(HIDDEN):
        found.append(f"{HIDDEN} holds {os.listdir(HIDDEN)[:3]}")
    below = ("code/ringfence/guest/agent.py", "bin/python3", "lib/ld.so", "../.ringfence/bin")
    return found + [f"{HIDDEN}/{path}" for path in below if os.path.exists(f"{HIDDEN}/{path}")]


def process_one() -> list[str]:
    """Names of a tool in what process 1 was started with, and what of its is open to us."""
    told = text_of("/proc/1/environ") + text_of("/proc/1/cmdline") + text_of("/proc/self/mountinfo")
    found = [f"process 1 or the mount table names {word}" for word in WORDS if word in told.split("\0")]
    return found + (["process 1's memory can be read"] if reads("/proc/1/mem") else [])


def opened_again() -> list[str]:
    """What process 1 has open, and we could open too."""
    found = []
    for folder in ("/proc/1/fd", "/proc/1/map_files", "/proc/1/task/1/fd"):
        if attempt(os.listdir, folder) == "ok":
            paths = [f"{folder}/{name}" for name in os.listdir(folder)]
            found += [f"{path} is {os.readlink(path)}" for path in paths if reads(path)]
    return found + [f"{path} is itself" for path in ("/proc/1/auxv", "/proc/1/maps") if reads(path)]


def reads(path: str) -> bool:
    """Whether something of process 1's can be opened."""
    return attempt(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))) == "ok"


def channels() -> list[str]:
    """Named pipes and sockets that somebody else has left in our tree."""
    found = []
    for top in ("/run", "/tmp", "/var", "/home", "/dev", "/etc", "/root"):
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    mode = os.lstat(path).st_mode
                except OSError:
                    continue
                if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                    found.append(path)
    return found


again = opened_again()
inner = [what for what in again if what.partition(" is ")[2].startswith(("pipe:", "/dev/null", "itself"))]
say(
    found=present() + hidden() + process_one() + channels() + [what for what in again if what not in inner],
    inner=sorted({what.partition(" is ")[2].partition("[")[0] for what in inner}),
    tried=len(PATHS) + len(WORDS) + 8,
)
