"""Files, as the sandbox's own user sees them: stat, ls, read, write, mkdir, move, remove.

Links are resolved as for any program of this user; there is nothing of anybody else's to reach. Two exceptions:
a listing never follows a link below the directory asked for, and a removal never follows one at all.
Nothing here waits: what could block is opened without blocking, and what is long is done in slices.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import stat
from collections.abc import Iterator

from ringfence.guest import frames, trees
from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import Context, Op, Refused, Sliced, Steps, flag, guarded, path, refuse, whole
from ringfence.guest.loop import Timer
from ringfence.guest.stream import Handler, Stream

MOST_ENTRIES: Final = 10_000  # of one listing
MOST_BYTES: Final = frames.MAX_JSON - 64 * 1024  # of one listing, as JSON: END is a single frame
MOST_DEPTH: Final = 64  # of one listing
_LARGEST: Final = 2**63 - 1  # off_t
_NEW_MODE: Final = 0o644

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_REPLACE: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}


# -- entries ----------------------------------------------------------------------------------------------------


def _text(raw: bytes) -> str:
    """For JSON: a name is any bytes, and a lone surrogate would break the receiver."""
    return raw.decode("utf-8", "replace")


def _entry(place: bytes, found: os.stat_result, target: bytes | None) -> dict[str, Any]:
    """One thing in the file system. `name_base64` is there when the name is not UTF-8."""
    name = place.rpartition(b"/")[2] or place
    entry: dict[str, Any] = {
        "name": _text(name),
        "path": _text(place),
        "type": _KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mtime": found.st_mtime,
    }
    if target is not None:
        entry["target"] = _text(target)
    try:
        name.decode()
    except UnicodeDecodeError:
        entry["name_base64"] = binascii.b2a_base64(name, newline=False).decode()
    return entry


def _target(name: bytes, found: os.stat_result, place: int | None = None) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=place) if stat.S_ISLNK(found.st_mode) else None
    except OSError:
        return None  # it became something else


def _looked_up(place: bytes) -> dict[str, Any]:
    found = os.lstat(place)
    return _entry(place, found, _target(place, found))


def _told(place: bytes) -> dict[str, Any]:
    """The answer after a change: what stands there now, unless a program was quicker."""
    try:
        return {"entry": _looked_up(place)}
    except OSError:
        return {}


def _followed(entry: dict[str, Any], name: bytes, place: int | None = None) -> dict[str, Any]:
    """A link's entry with what stands where it leads; itself when it leads nowhere."""
    try:
        found = os.stat(name, dir_fd=place)
    except OSError:
        return entry
    there = _entry(name, found, None)
    return {**entry, **{field: there[field] for field in ("type", "size", "mode", "uid", "gid", "mtime")}}


def op_stat(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """What stands at `path`; a link is described, unless `follow`: then what it leads to. `mode` is permission bits."""
    place = path(context, request)
    entry = _looked_up(place)
    if flag(request, "follow", default=False) and "target" in entry:
        entry = _followed(entry, place)
    stream.end({"entry": entry})


def op_used(context: Context, stream: Stream, _: dict[str, Any]) -> None:
    """How many bytes of the scratch are in use."""
    room = os.statvfs(context.home)
    stream.end({"size": (room.f_blocks - room.f_bfree) * room.f_frsize})


# -- ls ---------------------------------------------------------------------------------------------------------


def _scan(place: bytes, flags: int) -> Iterator[tuple[bytes, os.stat_result, bytes | None]]:
    """Everything directly inside a directory, without following; what vanishes meanwhile is left out."""
    fd = os.open(place, trees.SCAN | flags)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                try:
                    found = entry.stat(follow_symlinks=False)
                    yield name, found, _target(name, found, fd)
                except FileNotFoundError:
                    continue
    finally:
        os.close(fd)


def _walk(top: bytes, depth: int, follow: bool) -> Iterator[dict[str, Any]]:
    """The entries below `top`, nearest first. A subdirectory that cannot be read is an entry without contents."""
    level, flags = [top], 0
    for _ in range(depth):
        below: list[bytes] = []
        for place in level:
            try:
                for name, found, target in _scan(place, flags):
                    inner = (b"" if place == b"/" else place) + b"/" + name
                    if stat.S_ISDIR(found.st_mode):
                        below.append(inner)
                    entry = _entry(inner, found, target)
                    yield _followed(entry, inner) if follow and target is not None else entry
            except OSError:
                if not flags:
                    raise
        level, flags = below, os.O_NOFOLLOW


def _listing(stream: Stream, top: bytes, depth: int, follow: bool) -> Steps:
    """Collect, within bounds, sort, answer."""
    entries: list[dict[str, Any]] = []
    size, truncated = 0, False
    for entry in _walk(top, depth, follow):
        size += len(json.dumps(entry)) + 2
        truncated = len(entries) >= MOST_ENTRIES or size > MOST_BYTES
        if truncated:
            break
        entries.append(entry)
        yield
    entries.sort(key=lambda entry: str(entry["path"]))
    stream.end({"entries": entries, "truncated": truncated})


def op_ls(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """What is inside the directory `path`, `depth` levels down (1: only directly inside), sorted by path.

    A link is listed as a link; with `follow`, as what it leads to. It is never listed into.
    """
    top, depth = path(context, request), whole(request, "depth", 1, MOST_DEPTH)
    Sliced(context, stream, _listing(stream, top, depth or 1, flag(request, "follow", default=False)))


# -- read -------------------------------------------------------------------------------------------------------


class _Reading(Handler):
    """Sends a file a chunk at a time, as the reader takes it. At most `left` bytes, however the file grows."""

    def __init__(self, context: Context, stream: Stream, fd: int, left: int, total: int) -> None:
        self._loop = context.loop
        self._stream = stream
        self._fd = fd
        self._left = left
        self._total = total
        self._sent = 0
        self._timer: Timer | None = None
        stream.handler = self
        self._pump()

    def _pump(self) -> None:
        self._timer = None
        room = self._stream.room
        if self._left and not room:
            return  # on_room resumes
        try:
            data = os.read(self._fd, min(room, self._left)) if self._left else b""
        except OSError as error:
            self._close()
            refuse(self._stream, error)
            return
        self._stream.out(data)
        self._sent += len(data)
        self._left -= len(data)
        if data and self._left:
            self._timer = self._loop.call_later(0, self._pump)
        else:
            self._close()
            self._stream.end({"size": self._sent, "total": self._total})

    def _close(self) -> None:
        os.close(self._fd)

    def on_room(self) -> None:
        """The reader caught up."""
        if self._timer is None:
            self._pump()

    def on_cancel(self) -> None:
        """Nobody wants the rest."""
        if self._timer is not None:
            self._timer.cancel()
        self._close()
        self._stream.end({})


def _regular(fd: int) -> os.stat_result:
    """The descriptor's state, when it is a file whose bytes are a user's. Raises Refused.

    The kernel's own files in /proc are not: they claim to be empty, and "self" there would be this agent.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Refused("not_a_file", "only regular files have contents to send or take")
    try:
        if found.st_dev == os.stat("/proc/self").st_dev:
            raise Refused("not_a_file", "a file of the kernel: let a program in the sandbox open it")
    except OSError:
        return found  # no /proc here, so it is not from there
    return found


def op_read(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """The bytes of a file from `offset`, `length` at most, else to the end it had when opened.

    Answers {"size": bytes sent, "total": the file's size when opened}: less than all was asked for, or it shrank.
    """
    place = path(context, request)
    offset = whole(request, "offset", 0, _LARGEST) or 0
    length = whole(request, "length", 0, _LARGEST)
    fd = os.open(place, _READ)
    try:
        total = _regular(fd).st_size
        os.lseek(fd, offset, os.SEEK_SET)
    except (OSError, Refused):
        os.close(fd)
        raise
    _Reading(context, stream, fd, max(0, total - offset) if length is None else length, total)


# -- write ------------------------------------------------------------------------------------------------------


class _Writing(Handler):
    """Takes a file's bytes; on_eof completes it. `names` are the one it has until then and its own; none: appending."""

    def __init__(
        self, stream: Stream, fd: int, mode: int | None, place: int, names: tuple[bytes, bytes] | None
    ) -> None:
        self._stream = stream
        self._fd = fd
        self._mode = mode
        self._place = place
        self._names = names
        self._size = 0
        stream.handler = self

    def on_stdin(self, data: bytes) -> None:
        """Write, then let as much more come."""
        try:
            trees.write_all(self._fd, data)
        except OSError as error:
            self._abandon()
            refuse(self._stream, error)
            return
        self._size += len(data)
        self._stream.consumed(len(data))

    def on_eof(self) -> None:
        """All came: put it in place."""
        try:
            if self._mode is not None:
                os.fchmod(self._fd, self._mode)
            if self._names is not None and self._names[0] != self._names[1]:
                os.rename(*self._names, src_dir_fd=self._place, dst_dir_fd=self._place)
        except OSError as error:
            self._abandon()
            refuse(self._stream, error)
            return
        self._close()
        self._stream.end({"size": self._size})

    def on_cancel(self) -> None:
        """The rest will not come: leave what stood there before."""
        self._abandon()
        self._stream.end({})

    def _abandon(self) -> None:
        if self._names is not None:
            trees.discard(self._names[0], self._place)
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._place)


def _kept_mode(name: bytes, place: int) -> int:
    """The permissions a new file gets: those of the file it replaces. Raises Refused for a directory."""
    try:
        found = os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return _NEW_MODE
    if stat.S_ISDIR(found.st_mode):
        raise Refused("not_a_file", "a directory stands there")
    return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else _NEW_MODE


def _appended(name: bytes, place: int) -> int:
    fd = os.open(name, _APPEND, _NEW_MODE, dir_fd=place)
    try:
        _regular(fd)
    except Refused:
        os.close(fd)
        raise
    return fd


def _in_place(name: bytes, place: int) -> tuple[int, tuple[bytes, bytes] | None]:
    """The file itself, empty; and, of a new one, the name to take away again when it does not come whole."""
    try:
        return os.open(name, _REPLACE | os.O_CREAT | os.O_EXCL, _NEW_MODE, dir_fd=place), (name, name)
    except FileExistsError:
        fd = os.open(name, _REPLACE | os.O_CREAT, _NEW_MODE, dir_fd=place)  # a link to nowhere is written through
    try:
        _regular(fd)
        os.ftruncate(fd, 0)
    except (OSError, Refused):
        os.close(fd)
        raise
    return fd, None


def op_write(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """Bytes into a file, from the stream until EOF. Missing directories are made unless `parents` is false.

    `in_place` writes into the file that is there, links followed; one that does not come whole is taken away when it
    was new and stays short when it was not.

    A file appears whole or not at all: it is written beside its place under a name of its own, then renamed, which
    replaces whatever but a directory stands there; a link is replaced, not written through.
    `append` instead adds to what the name leads to, links followed, and what was added before a failure stays.
    """
    where, name = trees.named(path(context, request))
    mode = whole(request, "mode", 0, 0o7777)
    append, parents = flag(request, "append", default=False), flag(request, "parents", default=True)
    place = trees.opened(where, parents)
    try:
        if append:
            fd, names = _appended(name, place), None
        elif flag(request, "in_place", default=False):
            fd, names = _in_place(name, place)
        else:
            mode = _kept_mode(name, place) if mode is None else mode
            names = trees.temporary(), name
            fd = os.open(names[0], trees.CREATE, 0o600, dir_fd=place)
    except (OSError, Refused):
        os.close(place)
        raise
    _Writing(stream, fd, mode, place, names)


# -- mkdir, move, remove ----------------------------------------------------------------------------------------


def op_mkdir(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """A new directory; with `parents`, those above it too, and it may exist already."""
    place = path(context, request)
    if flag(request, "parents", default=False):
        os.close(trees.opened(place, create=True))
    else:
        os.mkdir(place)
    stream.end(_told(place))


def _ended(stream: Stream, steps: Steps, place: bytes | None = None) -> Steps:
    """The steps, then the answer."""
    yield from steps
    stream.end(_told(place) if place is not None else {})


def op_move(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """Rename `source` to `target`, its full new name; a file there is replaced, a directory only when empty.

    To another mount a file or a link is copied; a directory is refused there.
    """
    source, target = path(context, request, "source"), path(context, request, "target")
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        Sliced(context, stream, _ended(stream, trees.carried(source, target), target))
        return
    stream.end(_told(target))


def op_remove(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """Remove a file, a link, an empty directory; with `recursive`, a directory and all inside it."""
    place = path(context, request)
    recursive = flag(request, "recursive", default=False)
    if not stat.S_ISDIR(os.lstat(place).st_mode):
        os.unlink(place)
    elif recursive:
        Sliced(context, stream, _ended(stream, trees.removed(place)))
        return
    else:
        os.rmdir(place)
    stream.end({})


OPS: Final[dict[str, Op]] = {
    "stat": guarded(op_stat),
    "used": guarded(op_used),
    "ls": guarded(op_ls),
    "read": guarded(op_read),
    "write": guarded(op_write),
    "mkdir": guarded(op_mkdir),
    "move": guarded(op_move),
    "remove": guarded(op_remove),
}
