"""What changes below a directory, told as it happens, by inotify.

Told at least once: a file that appears in a new directory may be told twice. Told too late for a reader that does
not keep up: it gets "overflow", which means that something was left out and it should look for itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import deque
from collections.abc import Iterator

from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import Context, Op, Refused, Slices, Steps, flag, guarded, path, refuse
from ringfence.guest.loop import Timer
from ringfence.guest.stream import Handler, Stream

MOST_WATCHED: Final = 1024  # directories of one watch
PAUSE: Final = 0.02  # seconds between looks while there is something to tell: repeats are merged meanwhile
_LOOK: Final = 8 * 1024  # bytes of events one look takes

# Linux inotify.h
_MODIFY: Final = 0x2
_ATTRIB: Final = 0x4
_MOVED_FROM: Final = 0x40
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_DELETE_SELF: Final = 0x400
_Q_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_ONLYDIR: Final = 0x1000000
_DONT_FOLLOW: Final = 0x2000000
_ISDIR: Final = 0x40000000
_WANTED: Final = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_EVENT: Final = struct.Struct("iIII")
_WORDS: Final = ((_CREATE, "create"), (_MODIFY, "write"), (_ATTRIB, "chmod"), (_DELETE | _DELETE_SELF, "remove"))

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSPC:  # not the disk: the kernel's own number of watches
            raise Refused("busy", "no more watches can be had")
        raise OSError(number, os.strerror(number))
    return result


def _inotify() -> int:
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def _add(fd: int, place: bytes, mask: int) -> int:
    return _checked(_libc.inotify_add_watch(fd, place, ctypes.c_uint32(mask)))


def _parsed(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(watch, mask, cookie, name) of each event read."""
    at = 0
    while at < len(data):
        watch, mask, cookie, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size + length
        yield watch, mask, cookie, data[at - length : at].rstrip(b"\0")


def _inside(place: bytes) -> Iterator[tuple[bytes, bool]]:
    """What a directory holds, and whether it is a directory; nothing when it vanished or may not be read."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                yield os.path.join(place, entry.name), entry.is_dir(follow_symlinks=False)
    except OSError:
        return


def _below(place: bytes, top: bytes) -> bool:
    return place == top or place.startswith(top + b"/")


class _Watch(Handler):
    """One watch: its directories by the kernel's number, and what it owes its reader."""

    def __init__(self, context: Context, stream: Stream, top: bytes, recursive: bool) -> None:
        self._loop = context.loop
        self._stream = stream
        self._top = top
        self._recursive = recursive
        self._paths: dict[int, bytes] = {}
        self._new: deque[tuple[bytes, bool]] = deque()  # directories to look into, and whether what is there is news
        self._moved: dict[int, tuple[bytes, bool]] = {}  # cookie: what lost its name and may appear under another
        self._told: dict[bytes, str] = {}  # in this look: repeats are merged
        self._missed = False
        self._started = False
        self._exploring = False
        self._slices: Slices | None = None
        self._timer: Timer | None = None
        self._fd = _inotify()
        try:
            self._root = _add(self._fd, top, _WANTED | _DELETE_SELF)
        except (OSError, Refused):
            os.close(self._fd)
            raise
        self._paths[self._root] = top
        stream.handler = self
        if recursive:
            self._new.append((top, False))
        self._explore()

    # -- directories --------------------------------------------------------------------------------------------

    def _explore(self) -> None:
        if not self._exploring:
            self._exploring = True
            self._slices = Slices(self._loop, self._explored(), self._failed)

    def _explored(self) -> Steps:
        """Watch each new directory, then look into it: what came before the watch is not told by the kernel."""
        while self._new:
            place, news = self._new.popleft()
            if place != self._top and not self._watched(place):
                continue
            for inner, is_dir in _inside(place):
                yield
                if news:
                    self._tell("create", inner)
                if is_dir:
                    self._discovered(inner, news)
        self._exploring = False
        if not self._started:
            self._started = True
            self._stream.control({"started": {}})
            self._loop.add_reader(self._fd, self._look)
        self._own_up()

    def _watched(self, place: bytes) -> bool:
        try:
            self._paths[_add(self._fd, place, _WANTED | _ONLYDIR | _DONT_FOLLOW)] = place
        except Refused:
            self._missed = True
            return False
        except OSError:
            return False  # gone again, or not ours to read
        return True

    def _discovered(self, place: bytes, news: bool) -> None:
        if len(self._paths) + len(self._new) < MOST_WATCHED:
            self._new.append((place, news))
        else:
            self._missed = True

    def _renamed(self, old: bytes, new: bytes) -> None:
        """Directories below follow the name of the one above."""
        known = old in self._paths.values()
        for watch, place in self._paths.items():
            if _below(place, old):
                self._paths[watch] = new + place[len(old) :]
        for at, (place, news) in enumerate(self._new):
            if _below(place, old):
                self._new[at] = (new + place[len(old) :], news)
        if not known:
            self._discovered(new, news=False)

    def _left(self, place: bytes, is_dir: bool) -> None:
        """Moved out of sight: removed, as far as this watch can tell."""
        self._tell("remove", place)
        for watch in [w for w, p in self._paths.items() if _below(p, place)] if is_dir else ():
            del self._paths[watch]
            _libc.inotify_rm_watch(self._fd, watch)

    # -- events -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Take what happened since; look again a moment later, and sleep once nothing is left."""
        self._told.clear()
        try:
            data = os.read(self._fd, _LOOK)
        except BlockingIOError:
            data = b""
        lost, self._moved = self._moved, {}
        for watch, mask, cookie, name in _parsed(data):
            self._heard(watch, mask, cookie, name, lost)
        if self._root not in self._paths:
            self._close()
            self._stream.end({})
            return
        for place, is_dir in lost.values():
            self._left(place, is_dir)
        if self._new:
            self._explore()
        self._own_up()
        if data or self._moved:
            self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_later(PAUSE, self._look)
        else:
            self._loop.add_reader(self._fd, self._look)

    def _heard(self, watch: int, mask: int, cookie: int, name: bytes, lost: dict[int, tuple[bytes, bool]]) -> None:
        if mask & _Q_OVERFLOW:
            self._missed = True
        if mask & _IGNORED:
            self._paths.pop(watch, None)
        if watch not in self._paths:
            return
        place = os.path.join(self._paths[watch], name) if name else self._paths[watch]
        is_dir = bool(mask & _ISDIR)
        if mask & _MOVED_FROM:
            self._moved[cookie] = (place, is_dir)
        elif mask & _MOVED_TO:
            self._arrived(place, is_dir, self._moved.pop(cookie, None) or lost.pop(cookie, None))
        else:
            for bit, word in _WORDS:
                if mask & bit:
                    self._tell(word, place)
            if mask & _CREATE and is_dir and self._recursive:
                self._discovered(place, news=True)

    def _arrived(self, place: bytes, is_dir: bool, before: tuple[bytes, bool] | None) -> None:
        follow = is_dir and self._recursive
        if before is None:
            self._tell("create", place)
            if follow:
                self._discovered(place, news=True)
            return
        self._tell("rename", place, before[0])
        if follow:
            self._renamed(before[0], place)

    # -- telling ------------------------------------------------------------------------------------------------

    def _tell(self, word: str, place: bytes, before: bytes | None = None) -> None:
        if not self._stream.room:
            self._missed = True
            return
        event = {"type": word, "path": place.decode("utf-8", "replace")}
        if before is not None:
            event["from"] = before.decode("utf-8", "replace")
        elif self._told.get(place) == word:
            return
        self._told[place] = word
        self._stream.control({"event": event})

    def _own_up(self) -> None:
        """Say that something was left out, once there is room for it."""
        if self._missed and self._started and self._stream.room:
            self._missed = False
            self._stream.control({"event": {"type": "overflow"}})

    def on_room(self) -> None:
        """The reader caught up."""
        self._own_up()

    # -- the end ------------------------------------------------------------------------------------------------

    def on_cancel(self) -> None:
        """Nobody listens any more."""
        self._close()
        self._stream.end({})

    def _failed(self, error: OSError | Refused) -> None:
        self._close()
        refuse(self._stream, error)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._slices is not None:
            self._slices.stop()
        self._loop.forget(self._fd)
        os.close(self._fd)


def op_watch(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """Events at `path` (with `recursive`, below it too) until CANCEL, or until it is removed: then END.

    {"type": "create" | "write" | "remove" | "rename" | "chmod", "path", "from" for a rename}, or {"type": "overflow"}.
    """
    _Watch(context, stream, path(context, request), flag(request, "recursive", default=False))


OPS: Final[dict[str, Op]] = {"watch": guarded(op_watch)}
