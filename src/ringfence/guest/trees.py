"""Directories held open while something changes in them, and the changes that take many steps.

A directory is held by descriptor, so that renaming it meanwhile cannot make us write or clean up somewhere else.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import os
import stat
from collections.abc import Generator

from ringfence.guest.annotations import Final
from ringfence.guest.context import Refused, Steps

SCAN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK: Final = 256 * 1024

# While a directory is emptied, so many of its subdirectories are remembered, but only one at a time when it is
# deep: a hostile tree cannot make the memory of them large.
_REMEMBERED: Final = 256
_DEEP: Final = 64


def named(path: bytes) -> tuple[bytes, bytes]:
    """The directory and the name of something that can be replaced or removed. Raises Refused."""
    where, _, name = path.rpartition(b"/")
    if name in {b"", b".."}:
        raise Refused("bad_request", "the path must end in a name")
    return where or b"/", name


def opened(where: bytes, create: bool) -> int:
    """A descriptor of a directory, for use as dir_fd; with `create`, missing directories are made on the way."""
    try:
        return os.open(where, _PLACE)
    except FileNotFoundError:
        if not create:
            raise
    here = os.open(b"/", _PLACE)
    for part in where.split(b"/")[1:]:
        above = here
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=above)
            here = os.open(part, _PLACE, dir_fd=above)
        finally:
            os.close(above)
    return here


def temporary() -> bytes:
    """A name for a file that is not complete yet."""
    return b".ringfence-" + binascii.hexlify(os.urandom(8))


def discard(name: bytes, place: int) -> None:
    """Remove an incomplete file; somebody in the sandbox may have been quicker."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=place)


# -- emptying ---------------------------------------------------------------------------------------------------


def _drop(name: str, place: int) -> bool:
    """Remove an empty directory; False when it holds something."""
    try:
        os.rmdir(name, dir_fd=place)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True


def _sweep(here: int, most: int) -> Generator[None, None, list[str]]:
    """Unlink all that is not a directory, drop empty ones; returns up to `most` that hold something."""
    full: list[str] = []
    with os.scandir(here) as entries:
        for entry in entries:
            yield
            if entry.is_dir(follow_symlinks=False):
                if not _drop(entry.name, here):
                    full.append(entry.name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=here)
            if len(full) >= most:
                break
    return full


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _climb(here: int, above: tuple[int, int]) -> int:
    """The directory above, if it is the one we came from: somebody may have moved us. Raises Refused."""
    parent = os.open(b"..", SCAN, dir_fd=here)
    if _identity(parent) != above:
        os.close(parent)
        raise Refused("busy", "the directory was moved while it was being removed")
    return parent


def emptied(name: bytes, place: int) -> Steps:
    """Empty a directory, however deep, on two descriptors and without recursion: down, and up through ".."."""
    trail: list[tuple[tuple[int, int], list[str]]] = []
    full: list[str] = []
    here = os.open(name, SCAN | os.O_NOFOLLOW, dir_fd=place)
    try:
        while True:
            full = full or (yield from _sweep(here, _REMEMBERED if len(trail) < _DEEP else 1))
            if full:
                there = os.open(full[-1], SCAN | os.O_NOFOLLOW, dir_fd=here)
                trail.append((_identity(here), full))
                full = []
                os.close(here)
                here = there
            elif trail:
                above, full = trail.pop()
                there = _climb(here, above)
                os.close(here)
                here = there
                _drop(full.pop(), here)  # when somebody put something into it, the next sweep finds it again
            else:
                return
            yield
    finally:
        os.close(here)


def removed(path: bytes) -> Steps:
    """A directory and all inside it, never following a link."""
    where, name = named(path)
    place = opened(where, create=False)
    try:
        yield from emptied(name, place)
        os.rmdir(name, dir_fd=place)
    finally:
        os.close(place)


# -- carrying ---------------------------------------------------------------------------------------------------


def _copied(source: bytes, name: bytes, place: int) -> Steps:
    """A copy of a link or a regular file. Raises Refused for anything else."""
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), name, dir_fd=place)
        return
    if not stat.S_ISREG(found.st_mode):
        raise Refused("bad_request", "only files and links can be moved to another mount")
    reader = os.open(source, _SOURCE)
    try:
        writer = os.open(name, CREATE, 0o600, dir_fd=place)
        try:
            while data := os.read(reader, _CHUNK):
                write_all(writer, data)
                yield
            os.fchmod(writer, stat.S_IMODE(found.st_mode))
            os.utime(writer, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def write_all(fd: int, data: bytes) -> None:
    """Write everything; a full disk takes a part first and complains at the rest."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def carried(source: bytes, target: bytes) -> Steps:
    """Move to another mount: a copy beside the target, renamed when it is whole, then the source is unlinked."""
    where, name = named(target)
    place = opened(where, create=False)
    copy = temporary()
    try:
        yield from _copied(source, copy, place)
        os.rename(copy, name, src_dir_fd=place, dst_dir_fd=place)
        os.unlink(source)
    finally:
        discard(copy, place)
        os.close(place)
