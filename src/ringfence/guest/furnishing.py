"""Files that a sandbox gets copies of before anything runs in it: a build its whole root, others what fills a home.

What is copied comes from a template and may have been made by its tenant: only folders, plain files and links are
looked at, none is followed, and all is written from the top down into a fresh file system of the sandbox's own.
"""

from __future__ import annotations

import os
import stat

from ringfence.guest.annotations import Final
from ringfence.guest.plan import HOME, USER_ID

WORKSPACE: Final = "/workspace"  # as steps.WORKSPACE: `user`'s where there is one
SEED: Final = "/usr/share/ringfence/home"  # in a template: what its sandboxes' homes begin with
FRESH: Final = frozenset({"dev", "proc", "run", "sys", "tmp", "var/tmp"})  # what a sandbox has of its own
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 30


def has_home(template: str) -> bool:
    """Whether a template has something for every home, with no link on the way there."""
    parts = SEED.split("/")[1:]
    return all(stat.S_ISDIR(_mode("/".join((template, *parts[:count])))) for count in range(1, len(parts) + 1))


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def home(template: str, place: str, owned: bool, ids: tuple[int, int] = (USER_ID, USER_ID)) -> None:
    """Fill a home. Raises OSError, where there is no room for one."""
    _copy(template + SEED, place, frozenset(), ids if owned else None)


def root(template: str, place: str, owned: bool) -> None:
    """Fill a root that may be changed. Raises OSError, where there is no room for one."""
    seed, house = SEED.strip("/"), HOME.strip("/")
    _copy(template, place, FRESH | {seed, house}, None)
    for name in (*sorted(FRESH), house):
        os.makedirs(f"{place}/{name}", exist_ok=True)
        if name.endswith("tmp"):
            os.chmod(f"{place}/{name}", 0o1777)  # noqa: S103 - as everywhere: all write there, each its own
    if has_home(template):
        home(template, place + HOME, owned)
    for name in (HOME, WORKSPACE) if owned else ():
        if stat.S_ISDIR(_mode(place + name)):
            os.chown(place + name, USER_ID, USER_ID)


def _copy(source: str, target: str, without: frozenset[str], ids: tuple[int, int] | None) -> None:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(f"{source}/{folder}") as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if name in without:
                    continue
                _one(entry, f"{target}/{name}", ids)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)


def _one(entry: os.DirEntry[str], target: str, ids: tuple[int, int] | None) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
    elif entry.is_dir(follow_symlinks=False):
        os.mkdir(target, 0o755)
    elif entry.is_file(follow_symlinks=False):
        _file(entry.path, target)
    else:
        return
    if ids is not None:
        os.chown(target, *ids, follow_symlinks=False)


def _file(source: str, target: str) -> None:
    old = os.open(source, _READ)
    try:
        found = os.fstat(old)
        new = os.open(target, _NEW, 0o755 if found.st_mode & 0o111 else 0o644)
        try:
            at = 0
            while at < found.st_size:
                sent = os.sendfile(new, old, at, min(_PIECE, found.st_size - at))
                if not sent:
                    break
                at += sent
            os.utime(new, ns=(found.st_mtime_ns, found.st_mtime_ns))
        finally:
            os.close(new)
    finally:
        os.close(old)
