# ruff: noqa: S103, S108 - unsafe on purpose: it runs inside a sandbox
"""Write where only the image may be, copy a setuid shell, and link what is not ours."""

import os
import shutil
import stat
import subprocess

from ringfence.attack.probes.prelude import attempt, say

PLACES = [
    "/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/opt", "/bin", "/lib", "/lib64", "/sbin", "/var", "/var/lib",
    "/srv", "/boot",
    "/root", "/home", "/proc", "/proc/sys/kernel", "/sys", "/dev", "/run/lock", "/usr/local/bin", "/usr/lib/python3",
]  # fmt: skip
FILES = [
    "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/usr/bin/python3", "/bin/sh", "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory", "/proc/1/oom_score_adj",
]  # fmt: skip
# Places that may be written, but lie on a memory file system of this sandbox alone.
OWN = {"/root", "/home", "/dev", "/run/lock", "/var/tmp", "/tmp"}


def create(folder: str) -> str:
    """Try to leave a file in the folder."""
    path = os.path.join(folder, "ringfence-probe")
    outcome = attempt(lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
    if outcome == "ok":
        os.unlink(path)
    return outcome


def writable(path: str) -> str:
    """Try to open an existing file for writing, without writing."""
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY)))


def setuid_shell() -> list[str]:
    """Copy a shell, make it setuid, run it: its owner must not change, root must not come back."""
    target = "/tmp/shell"
    shutil.copy(os.path.realpath("/bin/sh"), target)
    os.chmod(target, 0o4755)
    ran = subprocess.run([target, "-p", "-c", "id -u"], capture_output=True, text=True, check=False).stdout.strip()
    found = [f"a setuid copy ran as {ran}"] if ran not in {str(os.getuid()), ""} else []
    chowned = attempt(os.chown, target, 0, 0)
    os.unlink(target)
    return found + ([] if chowned != "ok" or os.getuid() == 0 else ["gave a file to root"])


def setuid_files() -> list[str]:
    """Files of the image that carry a setuid bit on a mount that honours it."""
    found = []
    for folder in ("/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/lib/openssh"):
        for entry in os.scandir(folder) if os.path.isdir(folder) else []:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_ISUID and not os.statvfs(entry.path).f_flag & os.ST_NOSUID:
                found.append(f"{entry.path} is setuid on a mount that honours it")
    return found


def links() -> list[str]:
    """Hard links to files of the image and renames across mounts must not work."""
    home = "/tmp/link"
    outcomes = {f"link {path}": attempt(os.link, path, home) for path in ("/etc/passwd", "/bin/su")}
    outcomes["rename /etc/hosts"] = attempt(os.rename, "/etc/hosts", home)
    return [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome == "ok"]


outcomes = {f"create in {place}": create(place) for place in PLACES if place not in OWN}
outcomes |= {f"open {path}": writable(path) for path in FILES}
found = [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome == "ok"]
root = os.statvfs("/")
say(
    found=found + setuid_shell() + setuid_files() + links(),
    tried=len(outcomes) + 4,
    root_read_only=bool(root.f_flag & os.ST_RDONLY),
    outcomes=outcomes,
)
