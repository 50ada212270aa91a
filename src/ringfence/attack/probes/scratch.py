# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""Fill the place for files: with bytes, with empty files, with links, with attributes, with a deleted open file."""

import os

from ringfence.attack.probes.prelude import attempt, facts, name_of, say

MOST = facts.get("most", 64 << 20)
MOST_FILES = facts.get("most_files", 5000)
PLACES = ["~", "/tmp", "/var/tmp", "/dev/shm", "/run", *(["/workspace"] if os.path.ismount("/workspace") else [])]


def fill(path: str) -> tuple[int, str]:
    """Write one file until refused; its bytes and the refusal."""
    done = 0
    try:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        return 0, name_of(error.errno)
    try:
        while done < MOST:
            done += os.write(fd, b"x" * (1 << 20))
    except OSError as error:
        return done, name_of(error.errno)
    finally:
        os.close(fd)
    return done, ""


def everywhere() -> dict[str, tuple[int, str]]:
    """Fill every place that can be written, one after the other, keeping all."""
    return {place: fill(os.path.join(os.path.expanduser(place), "fill")) for place in PLACES}


def empty() -> None:
    """Take the fills away again."""
    for place in PLACES:
        attempt(os.unlink, os.path.join(os.path.expanduser(place), "fill"))


def files() -> tuple[int, str]:
    """Empty files until refused."""
    folder = os.path.expanduser("~/many")
    os.makedirs(folder, exist_ok=True)
    for count in range(MOST_FILES):
        try:
            os.close(os.open(f"{folder}/{count}", os.O_CREAT | os.O_WRONLY))
        except OSError as error:
            return count, name_of(error.errno)
    return MOST_FILES, ""


def deleted_open() -> tuple[int, str]:
    """A file without a name that still takes its room, held to the end."""
    path = os.path.expanduser("~/ghost")
    done = fill(path)
    held.append(os.open(path, os.O_RDONLY) if os.path.exists(path) else -1)
    attempt(os.unlink, path)
    return done


def attributes() -> tuple[int, str]:
    """64 KiB attributes on one file after another."""
    folder = os.path.expanduser("~/many")
    for count in range(2000):
        path = f"{folder}/{count}"
        if not os.path.exists(path):
            return count, "no more files"
        outcome = attempt(os.setxattr, path, b"user.probe", b"x" * 60_000)
        if outcome != "ok":
            return count, outcome
    return 2000, ""


held: list[int] = []
first = everywhere()
empty()
sparse = attempt(lambda: os.truncate(os.open(os.path.expanduser("~/sparse"), os.O_CREAT | os.O_RDWR), 1 << 40))
many = files()
named = attributes()
trusted = {
    name: attempt(os.setxattr, os.path.expanduser("~"), name, b"x")
    for name in ("trusted.overlay.opaque", "security.capability", "security.selinux", "system.posix_acl_access")
}
say(bytes=first, files=many, attributes=named, trusted=trusted, sparse=sparse, ghost=deleted_open())
