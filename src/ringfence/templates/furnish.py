"""Make a bare Debian tree a sandbox's root: its user, its names, its prompt, its mount points, and nothing spare."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import Final

from ringfence.templates import tree

USER: Final = "user"
UID: Final = 1000
HOSTNAME: Final = "sandbox"

# Emptied: what only the installation needed, what differs from build to build, and what nobody reads in a sandbox.
EMPTIED: Final = (
    "boot", "dev", "media", "run", "srv", "tmp",
    "etc/apt", "etc/cron.d", "etc/cron.daily", "etc/init.d", "etc/logrotate.d", "etc/profile.d", "etc/rc0.d",
    "etc/rc1.d", "etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d", "etc/rc6.d", "etc/rcS.d", "etc/skel",
    "etc/systemd", "root", "usr/share/bash-completion", "usr/share/bug", "usr/share/doc", "usr/share/doc-base",
    "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/menu", "var/backups",
    "var/cache", "var/lib/apt", "var/lib/systemd", "var/log", "var/tmp",
)  # fmt: skip
REMOVED: Final = (
    "etc/.pwd.lock", "etc/dpkg/dpkg.cfg.d/ringfence", "etc/group-", "etc/gshadow", "etc/gshadow-", "etc/passwd-",
    "etc/shadow", "etc/shadow-", "etc/ssh/ssh_host_*", "etc/subgid", "etc/subgid-", "etc/subuid", "etc/subuid-",
    "var/lib/dpkg/*-old", "var/lib/dpkg/lock*",
    # A crash reporter's hook that every start of Python would look for.
    "etc/python3*/sitecustomize.py", "usr/lib/python3*/sitecustomize.py",
)  # fmt: skip
MOUNT_POINTS: Final = ("dev", "home/user", "mnt", "proc", "run", "sys", "tmp", "var/tmp", "workspace")

BASHRC: Final = r"""# Read by interactive shells.
[ -z "$PS1" ] && return
PS1='\[\e[1;36m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
HISTCONTROL=ignoreboth
shopt -s checkwinsize
alias ls='ls --color=auto'
alias grep='grep --color=auto'
"""
TEXTS: Final = {
    "etc/hostname": f"{HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "",
    "etc/bash.bashrc": BASHRC,
}
LINKS: Final = {"usr/local/bin/python": "/usr/bin/python3"}


SUDO: Final = importlib.resources.files("ringfence.templates") / "sudo.txt"


def _append(path: Path, line: str) -> None:
    name = line.partition(":")[0]
    kept = [old for old in path.read_text().splitlines() if old.partition(":")[0] != name]
    path.write_text("\n".join([*kept, line]) + "\n")


def furnish(root: Path) -> None:
    """Turn a fresh Debian tree into a sandbox's root, in place. The tree must not be shared yet."""
    for name in EMPTIED:
        tree.empty(root, name)
    for pattern in REMOVED:
        for path in list(root.glob(pattern)):
            tree.remove(root, str(path.relative_to(root)))
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        tree.remove(root, name)
        (root / name).write_text(text)
    tree.remove(root, "usr/bin/sudo")
    (root / "usr/bin/sudo").write_text(SUDO.read_text("utf-8"))
    (root / "usr/bin/sudo").chmod(0o755)
    for name, target in LINKS.items():
        tree.remove(root, name)
        os.symlink(target, root / name)
    _append(root / "etc/passwd", f"{USER}:x:{UID}:{UID}:{USER}:/home/{USER}:/bin/bash")
    _append(root / "etc/group", f"{USER}:x:{UID}:")
