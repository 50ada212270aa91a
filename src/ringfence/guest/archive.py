"""A sandbox's files as one stream of bytes, and back: written and read inside, opaque to everybody outside.

A stream is a magic line, then records of one type byte each, numbers big-endian:

    P path attributes    a place begins (home, /tmp, ...); what follows is inside it
    D name attributes    a directory, entered
    U attributes         the directory, or the place, is complete: left, with these as its last
    F name attributes id a regular file; its bytes follow as B (a piece) and H (go on at this offset), until E
    L name id            another name of the file that came with this id
    S name attributes target, I name attributes      a symbolic link, a named pipe
    Z count              the end, and how many things there were

Both ways run alone in a process of their own, when nothing else runs in the sandbox: it changes its working directory
and its user as it goes. Kept are bytes, holes, names, links, modes, owners and times of change. Not kept: sockets,
which lead nowhere without the program behind them, and extended attributes.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import os
import stat
import struct

from ringfence.guest import syscalls as sc
from ringfence.guest import trees
from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import Refused
from ringfence.guest.steps import KEPT_CAPABILITIES

MAGIC: Final = b"ringfence files 1\n"
PIECE: Final = 64 * 1024  # bytes of a file in one record
_LOOSE: Final = 0o777  # a directory's mode while it is filled: its owner may not be who owns what is in it
_OPEN: Final = 0o755  # what a directory is opened up to while it is read
_ATTRIBUTES: Final = struct.Struct(">HIIq")  # mode, uid, gid, time of change in nanoseconds
_LENGTH: Final = struct.Struct(">H")
_NUMBER: Final = struct.Struct(">Q")
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ZEROS: Final = bytes(PIECE)


class Identity:
    """Who this process is to the file system: whoever owns what is at hand, so that nothing needs a privilege."""

    def __init__(self, privileged: bool) -> None:
        self._privileged = privileged
        self._now = (os.geteuid(), os.getegid())
        if privileged:
            sc.do([sc.set_capabilities(KEPT_CAPABILITIES, KEPT_CAPABILITIES)])

    def become(self, uid: int, gid: int) -> None:
        """Be that user from now on. Raises OSError for one that this sandbox does not have."""
        if not self._privileged or self._now == (uid, gid):
            return
        sc.do([sc.set_capabilities(KEPT_CAPABILITIES, KEPT_CAPABILITIES)])  # a kernel may take them with the uid
        os.setresgid(-1, gid, -1)
        os.setresuid(-1, uid, -1)
        self._now = (uid, gid)


def _attributes(found: os.stat_result) -> bytes:
    return _ATTRIBUTES.pack(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)


def _named(name: bytes) -> bytes:
    return _LENGTH.pack(len(name)) + name


# -- out --------------------------------------------------------------------------------------------------------------


class _Level:
    """A directory that is being written out."""

    __slots__ = ("below", "found", "loosened")

    def __init__(self, found: os.stat_result, loosened: bool) -> None:
        self.found = found
        self.loosened = loosened  # it was opened up, and gets its mode back
        self.below: list[bytes] = []


class Packer:
    """Writes what is below some places to a descriptor, as fast as it takes it."""

    def __init__(self, out: int, identity: Identity) -> None:
        self.entries = 0
        self.size = 0
        self._out = out
        self._buffer = bytearray()
        self._identity = identity
        self._links: dict[tuple[int, int], int] = {}

    def pack(self, places: list[str]) -> None:
        """All of it. Raises OSError for what cannot be read, BrokenPipeError when nobody takes it any more."""
        self._put(MAGIC)
        for place in places:
            if os.path.isdir(place):
                found = os.stat(place)
                self._identity.become(found.st_uid, found.st_gid)
                self._loosened(os.fsencode(place), found)
                os.chdir(place)
                self._put(b"P" + _named(os.fsencode(place)))
                self._tree(found)
        self._put(b"Z" + _NUMBER.pack(self.entries))
        self._flush()

    def _put(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= PIECE:
            self._flush()

    def _flush(self) -> None:
        trees.write_all(self._out, bytes(self._buffer))
        self.size += len(self._buffer)
        self._buffer = bytearray()

    def _tree(self, top: os.stat_result) -> None:
        """The working directory and all below it; without recursion, for a hostile tree is deep."""
        levels = [self._entered(top)]
        while levels:
            level = levels[-1]
            if level.below:
                name = level.below.pop()
                found = os.lstat(name)
                self._put(b"D" + _named(name) + _attributes(found))
                self.entries += 1
                levels.append(self._descended(name, found))
                continue
            levels.pop()
            self._left(level, up=bool(levels))

    def _descended(self, name: bytes, found: os.stat_result) -> _Level:
        self._identity.become(found.st_uid, found.st_gid)
        loosened = self._loosened(name, found)
        os.chdir(name)
        return self._scanned(_Level(found, loosened))

    def _entered(self, found: os.stat_result) -> _Level:
        self._put(_attributes(found))
        self._identity.become(found.st_uid, found.st_gid)
        return self._scanned(_Level(found, self._loosened(b".", found)))

    def _loosened(self, name: bytes, found: os.stat_result) -> bool:
        """Let the owners of what is inside a directory come to it."""
        mode = stat.S_IMODE(found.st_mode)
        if mode & _OPEN == _OPEN:
            return False
        os.chmod(name, mode | _OPEN)
        return True

    def _left(self, level: _Level, up: bool) -> None:
        found = level.found
        self._put(b"U" + _attributes(found))
        here = os.open(".", trees.SCAN)
        try:
            if up:
                os.chdir("..")
            if level.loosened:
                self._identity.become(found.st_uid, found.st_gid)
                os.fchmod(here, stat.S_IMODE(found.st_mode))
        finally:
            os.close(here)

    def _scanned(self, level: _Level) -> _Level:
        """Write what is no directory; remember what is."""
        with os.scandir(b".") as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    level.below.append(entry.name)
                else:
                    self._one(entry.name, found)
        return level

    def _one(self, name: bytes, found: os.stat_result) -> None:
        self._identity.become(found.st_uid, found.st_gid)
        known = self._links.get((found.st_dev, found.st_ino))
        if known is not None:
            self._put(b"L" + _named(name) + _NUMBER.pack(known))
        elif stat.S_ISREG(found.st_mode):
            self._file(name, found)
        elif stat.S_ISLNK(found.st_mode):
            self._put(b"S" + _named(name) + _attributes(found) + _named(os.readlink(name)))
        elif stat.S_ISFIFO(found.st_mode):
            self._put(b"I" + _named(name) + _attributes(found))
        else:
            return
        self.entries += 1

    def _file(self, name: bytes, found: os.stat_result) -> None:
        link = 0
        if found.st_nlink > 1:
            link = self._links[found.st_dev, found.st_ino] = len(self._links) + 1
        fd = self._opened(name, found)
        try:
            self._put(b"F" + _named(name) + _attributes(found) + _NUMBER.pack(link))
            self._bytes(fd, os.fstat(fd).st_size)
            self._put(b"E")
        finally:
            os.close(fd)

    def _opened(self, name: bytes, found: os.stat_result) -> int:
        """To be read, also when its owner may not."""
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o400:
            return os.open(name, _READ)
        os.chmod(name, mode | 0o400)
        try:
            return os.open(name, _READ)
        finally:
            os.chmod(name, mode)

    def _bytes(self, fd: int, size: int) -> None:
        """Its bytes where there are any, as the file system knows; where it does not, without pieces of zeros."""
        at = 0
        while at < size:
            start, end = _extent(fd, at, size)
            os.lseek(fd, start, os.SEEK_SET)
            at = start
            while at < end:
                data = os.read(fd, min(PIECE, end - at))
                if not data:
                    return  # it is shorter than it said
                if data != _ZEROS[: len(data)]:
                    self._put(b"H" + _NUMBER.pack(at) + b"B" + _NUMBER.pack(len(data)) + data)
                at += len(data)
        self._put(b"H" + _NUMBER.pack(size))


def _extent(fd: int, at: int, size: int) -> tuple[int, int]:
    """Where the next bytes are that are there."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        return (size, size) if error.errno == errno.ENXIO else (at, size)  # only a hole is left; or: not known here
    try:
        return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError:
        return start, size


# -- in ---------------------------------------------------------------------------------------------------------------


class _Source:
    """A descriptor's bytes in the pieces asked for. Raises Refused when there are fewer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        while len(self._buffer) - self._at < count:
            more = os.read(self._fd, PIECE)
            if not more:
                raise Refused("bad_request", "the archive ends too early")
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        data = self._buffer[self._at : self._at + count]
        self._at += count
        return data

    def number(self) -> int:
        number: int = _NUMBER.unpack(self.take(8))[0]
        return number

    def word(self) -> bytes:
        return self.take(_LENGTH.unpack(self.take(2))[0])

    def name(self) -> bytes:
        name = self.word()
        if b"/" in name or name in {b"", b".", b".."}:
            raise Refused("bad_request", "the archive has a name that is none")
        return name

    def attributes(self) -> Any:
        return _ATTRIBUTES.unpack(self.take(_ATTRIBUTES.size))


class Unpacker:
    """Reads such a stream from a descriptor into the same places, which are emptied first."""

    def __init__(self, source: int, identity: Identity) -> None:
        self.entries = 0
        self._in = _Source(source)
        self._identity = identity
        self._depth = 0
        self._links = -1
        self._links_name = b""
        self._acts = {
            b"D": self._directory, b"F": self._file, b"L": self._link, b"S": self._symlink, b"I": self._pipe,
        }  # fmt: skip

    def unpack(self, places: list[str]) -> None:
        """All of it. Raises OSError for what cannot be made, Refused for what is no archive of these places."""
        if self._in.take(len(MAGIC)) != MAGIC:
            raise Refused("bad_request", "this is no archive of a sandbox's files")
        allowed = {os.fsencode(place) for place in places}
        while (kind := self._in.take(1)) == b"P":
            place = self._in.word()
            if place not in allowed:
                raise Refused("bad_request", "the archive has a place that this sandbox has not")
            self._place(place)
        if kind != b"Z" or self._in.number() != self.entries:
            raise Refused("bad_request", "the archive is not whole")

    def _place(self, place: bytes) -> None:
        self._in.attributes()
        os.chdir(place)
        found = os.stat(b".")
        self._identity.become(found.st_uid, found.st_gid)
        self._clear()
        os.chmod(b".", _LOOSE)
        self._links_name = b".ringfence-" + binascii.hexlify(os.urandom(8))
        os.mkdir(self._links_name)
        os.chmod(self._links_name, _LOOSE)
        self._links = os.open(self._links_name, trees.SCAN)
        self._depth = 1
        try:
            while self._depth:
                kind = self._in.take(1)
                if kind == b"U":
                    self._up(found)
                elif kind in self._acts:
                    self._acts[kind]()
                    self.entries += 1
                else:
                    raise Refused("bad_request", "the archive has a record that is none")
        finally:
            os.close(self._links)

    def _clear(self) -> None:
        """What a fresh sandbox has there: the template's skeleton. What is somebody else's stays."""
        with contextlib.suppress(OSError, Refused):
            here = os.open(b".", trees.SCAN)
            try:
                for _ in trees.emptied(b".", here):
                    continue
            finally:
                os.close(here)

    def _up(self, top: os.stat_result) -> None:
        """The directory is filled: it gets its own mode and time, and is left."""
        mode, uid, gid, changed = self._in.attributes()
        self._depth -= 1
        here = os.open(b".", trees.SCAN)
        try:
            if self._depth:
                os.chdir(b"..")
                self._become(uid, gid)
            else:
                self._identity.become(top.st_uid, top.st_gid)
                self._drop_links()
            os.fchmod(here, mode)
            os.utime(here, ns=(changed, changed))
        finally:
            os.close(here)

    def _drop_links(self) -> None:
        for name in os.listdir(self._links):
            os.unlink(name, dir_fd=self._links)
        os.rmdir(self._links_name)

    def _become(self, uid: int, gid: int) -> None:
        try:
            self._identity.become(uid, gid)
        except OSError:
            raise Refused("bad_request", f"the archive has an owner {uid} that this sandbox has not") from None

    def _directory(self) -> None:
        name = self._in.name()
        _, uid, gid, _ = self._in.attributes()
        self._become(uid, gid)
        os.mkdir(name)
        os.chmod(name, _LOOSE)
        os.chdir(name)
        self._depth += 1

    def _file(self) -> None:
        name = self._in.name()
        mode, uid, gid, changed = self._in.attributes()
        link = self._in.number()
        self._become(uid, gid)
        fd = os.open(name, trees.CREATE, 0o600)
        try:
            self._bytes(fd)
            os.fchmod(fd, mode)
            os.utime(fd, ns=(changed, changed))
        finally:
            os.close(fd)
        if link:
            os.link(name, b"%d" % link, dst_dir_fd=self._links, follow_symlinks=False)

    def _bytes(self, fd: int) -> None:
        at = 0
        while (kind := self._in.take(1)) != b"E":
            number = self._in.number()
            if kind == b"H":
                at = number
            elif kind == b"B" and number <= PIECE:
                os.lseek(fd, at, os.SEEK_SET)
                trees.write_all(fd, self._in.take(number))
                at += number
            else:
                raise Refused("bad_request", "the archive has a piece that is none")
        if os.fstat(fd).st_size < at:
            os.ftruncate(fd, at)

    def _link(self) -> None:
        name, link = self._in.name(), self._in.number()
        found = os.stat(b"%d" % link, dir_fd=self._links)
        self._identity.become(found.st_uid, found.st_gid)  # only a file's owner may give it names everywhere
        os.link(b"%d" % link, name, src_dir_fd=self._links, follow_symlinks=False)

    def _symlink(self) -> None:
        name = self._in.name()
        _, uid, gid, changed = self._in.attributes()
        self._become(uid, gid)
        os.symlink(self._in.word(), name)
        os.utime(name, ns=(changed, changed), follow_symlinks=False)

    def _pipe(self) -> None:
        name = self._in.name()
        mode, uid, gid, changed = self._in.attributes()
        self._become(uid, gid)
        os.mkfifo(name)
        os.chmod(name, mode)
        os.utime(name, ns=(changed, changed))
