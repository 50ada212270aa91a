"""What a build does to its own root, beside the tenant's commands. Runs inside, as the build's `root`, alone.

    place WORDS     put the files of a tar on standard input where a COPY says
    mark PLACE      remember how every file is
    layer PLACE     write what is different since then to standard output, as a tar with whiteouts; and remember anew
    apply           lay such a tar from standard input over the root
    folder PATH WHO make a folder, and those above it, where there is none; it alone is that user's

It runs on an interpreter of ours, whose library is not in this root: everything it needs is imported before (NEEDS).
All the same everything in here may be in a hostile hand: what it writes is a stranger's to whoever reads it. The tar
that `place` is given is the client's; here it meets no file but the build's own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

#: What this file imports, and what that imports when it is first used: an archive's compression, a traceback.
NEEDS: Final = (
    "bz2", "contextlib", "encodings.ascii", "encodings.latin_1", "encodings.utf_8", "gzip", "io", "json", "linecache",
    "lzma", "os", "posixpath", "shutil", "stat", "tarfile", "traceback", "typing", "zlib",
)  # fmt: skip
USERS, GROUPS = "/etc/passwd", "/etc/group"
WHITEOUT: Final = ".wh."
OWN: Final = frozenset({"dev", "proc", "run", "sys"})
# A template's files are all root's; whose they were when it was built is kept beside, for builds upon it.
OWNERS: Final = "usr/share/ringfence/owners"
HOUSE: Final = "home/user"
PIECE: Final = 1024 * 1024
WILD: Final = frozenset("*?[{")
REFUSED: Final = 3  # the exit code that says: the words on the standard error are the refusal
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """The tar, or where it is to go, is not what a COPY takes."""


class Counted:
    """Standard input, counted as it is read: what is unpacked is held against it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        """See IO."""
        data = self._file.read(size)
        self.count += len(data)
        return data


# -- COPY -------------------------------------------------------------------------------------------------------------


def _parts(name: str) -> tuple[str, ...]:
    """A member's name, split. Raises Refused for one that climbs, or is no name."""
    if name.startswith("/"):
        raise Refused(f"the archive has an absolute path: {name[:200]!r}")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts or "\0" in name:
        raise Refused(f"the archive has a path that leads out of it: {name[:200]!r}")
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts) or len(parts) > 100:
        raise Refused(f"the archive has a path that is too long: {name[:200]!r}")
    return parts


def _check_link(member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
    target = member.linkname
    inner = posixpath.normpath(posixpath.join(*parts[:-1], target) if member.issym() else target)
    if not target or target.startswith("/") or inner == ".." or inner.startswith("../"):
        raise Refused(f"the archive has a link that leads out of it: {'/'.join(parts)[:200]!r} to {target[:200]!r}")


def _above(source: str) -> tuple[str, ...]:
    """The folders of a COPY's source that are not part of what is copied."""
    parts = tuple(part for part in posixpath.normpath(source).split("/") if part not in {"", "."})
    fixed = next((number for number, part in enumerate(parts) if WILD & set(part)), len(parts))
    return parts[: min(fixed, len(parts) - 1)] if parts else ()


class Placing:
    """One COPY."""

    def __init__(self, words: dict[str, Any], source: Counted) -> None:
        self._words = words
        self._most = words["most"]
        self._source = source
        self._above = _above(words["source"])
        last = posixpath.basename(posixpath.normpath(words["source"]))
        self._named = "" if WILD & set(words["source"]) or last == "." else last
        self._ids = _ids(words["user"])
        self._unpacked = 0
        self._entries = 0
        self._made: dict[str, str] = {}

    def run(self) -> int:
        """Unpack into a folder of its own, then move into place; gives the number of entries. Raises Refused."""
        stage = f"/tmp/.copy-{os.getpid()}"  # noqa: S108 - the build's own
        os.mkdir(stage, 0o700)
        try:
            self._unpack(stage)
            self._move(stage)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise Refused(f"the archive cannot be unpacked: {type(error).__name__}: {error}"[:400]) from None
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return self._entries

    def _unpack(self, stage: str) -> None:
        with tarfile.open(fileobj=self._source, mode="r|*", errorlevel=2) as archive:  # type: ignore[call-overload]
            for member in archive:
                self._entries += 1
                self._count(member)
                parts = self._inner(_parts(member.name))
                if parts:
                    self._one(archive, member, stage, parts)
        while self._source.read(PIECE):  # padding; and what is cut short is not seen as whole
            pass

    def _inner(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Without the folders above the source."""
        above = self._above
        if parts[: len(above)] != above:
            if parts == above[: len(parts)]:
                return ()
            raise Refused(f"the archive has what was not to be copied: {'/'.join(parts)[:200]!r}")
        inner = parts[len(above) :]
        if self._named and inner and inner[0] != self._named:
            raise Refused(f"the archive has what was not to be copied: {'/'.join(parts)[:200]!r}")
        return inner

    def _count(self, member: tarfile.TarInfo) -> None:
        self._unpacked += member.size + 512
        if self._entries > self._most["entries"]:
            raise Refused(f"the archive has more than {self._most['entries']} entries")
        if self._unpacked > self._most["bytes"]:
            raise Refused(f"the archive unpacks to more than {self._most['bytes'] >> 20} MiB")
        if self._unpacked > self._most["free"] + self._most["ratio"] * self._source.count:
            raise Refused(f"the archive unpacks to more than {self._most['ratio']} times its size")

    def _one(self, archive: tarfile.TarFile, member: tarfile.TarInfo, stage: str, parts: tuple[str, ...]) -> None:
        path = "/".join((stage, *parts))
        os.makedirs(posixpath.dirname(path), exist_ok=True)
        if self._behind_link(parts):
            raise Refused(f"the archive has a path behind a link: {member.name[:200]!r}")
        if member.isdir():
            os.makedirs(path, exist_ok=True)
            return
        if os.path.lexists(path):
            raise Refused(f"the archive has {member.name[:200]!r} twice")
        if member.issym():
            _check_link(member, parts)
            os.symlink(member.linkname, path)
            self._made["/".join(parts)] = "link"
        elif member.islnk():
            self._same(member, stage, path)
        elif member.isreg() and not member.issparse():
            self._file(archive, member, path)
        else:
            raise Refused(f"the archive has what is neither file, folder nor link: {member.name[:200]!r}")

    def _behind_link(self, parts: tuple[str, ...]) -> bool:
        return any("/".join(parts[:count]) in self._made for count in range(1, len(parts)))

    def _same(self, member: tarfile.TarInfo, stage: str, path: str) -> None:
        target = "/".join((stage, *self._inner(_parts(member.linkname))))
        if os.path.islink(target) or not os.path.isfile(target):
            raise Refused(f"the archive has a link to what is no file of its own: {member.name[:200]!r}")
        os.link(target, path)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        data = archive.extractfile(member)
        mode = self._words["mode"] or (0o755 if member.mode & 0o111 else 0o644)
        fd = os.open(path, _NEW, mode)
        try:
            os.fchmod(fd, mode)
            left = member.size
            while left:
                piece = data.read(min(PIECE, left)) if data is not None else b""
                if not piece:
                    raise Refused("the archive is cut short")
                left -= len(piece)
                _write(fd, piece)
            os.utime(fd, (max(0, int(member.mtime)),) * 2)
        finally:
            os.close(fd)

    def _move(self, stage: str) -> None:
        names = sorted(os.listdir(stage))
        if not names:
            raise Refused("the archive is empty")
        for folder, folders, files in os.walk(stage):
            for name in (*folders, *files):
                os.chown(posixpath.join(folder, name), *self._ids, follow_symlinks=False)
        target = posixpath.join(self._words["workdir"], self._words["target"])
        only = posixpath.join(stage, names[0])
        whole = not self._above and posixpath.normpath(self._words["source"]) == "."
        wild = bool(WILD & set(self._words["source"]))
        if len(names) == 1 and not wild and not whole and os.path.isdir(only) and not os.path.islink(only):
            self._folder(target)
            self._merge(only, target)
        elif len(names) == 1 and not wild and not whole and not _is_folder(target):
            self._folder(posixpath.dirname(posixpath.normpath(target)))
            self._put(only, posixpath.normpath(target))
        else:
            self._folder(target)
            self._merge(stage, target)

    def _folder(self, path: str) -> None:
        """Make a folder and those above it, where they are missing, as the user's."""
        if path in {"", "/"} or os.path.isdir(path):
            return
        self._folder(posixpath.dirname(path.rstrip("/")))
        os.mkdir(path, 0o755)
        os.chown(path, *self._ids)

    def _merge(self, source: str, target: str) -> None:
        for name in sorted(os.listdir(source)):
            old, new = posixpath.join(source, name), posixpath.join(target, name)
            if os.path.isdir(old) and not os.path.islink(old) and os.path.isdir(new):
                self._merge(old, new)
            else:
                self._put(old, new)

    @staticmethod
    def _put(old: str, new: str) -> None:
        if os.path.isdir(new) and not os.path.islink(new):
            raise Refused(f"there is a folder at {new[:200]!r}")
        shutil.move(old, new, copy_function=_copied)


def _copied(source: str, target: str, *, follow_symlinks: bool = True) -> str:
    """As shutil.copy2, keeping whose it is."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    shutil.copy2(source, target, follow_symlinks=False)
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    return target


def _is_folder(target: str) -> bool:
    return target.endswith("/") or posixpath.basename(target) in {"", "."} or os.path.isdir(target)


def _ids(user: str) -> tuple[int, int]:
    """Raises Refused for nobody."""
    name, _, group = user.partition(":")
    known, grouped = _entry(USERS, name), _entry(GROUPS, group) if group else []
    try:
        return int(known[2]), int(grouped[2] if group else known[3])
    except (IndexError, ValueError):
        raise Refused(f"there is no user {user[:80]!r}") from None


def _entry(path: str, name: str) -> list[str]:
    """The line of this name. The C library would ask modules of the image's for it."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            if fields[0] == name:
                return fields
    return []


def folder(path: str, user: str) -> None:
    """Make it, if there is none. Raises Refused."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
        os.chown(path, *_ids(user))
    except OSError as error:
        raise Refused(f"the folder {path[:200]!r} cannot be made: {error.strerror}") from None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# -- what changed -----------------------------------------------------------------------------------------------------


def _found() -> Iterator[tuple[str, os.stat_result]]:
    """Every file, folder and link of the root's own file system."""
    here = os.lstat("/").st_dev
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for name in sorted(os.listdir(f"/{folder}")):
            path = f"{folder}/{name}" if folder else name
            seen = os.lstat(f"/{path}")
            if path in OWN or path == OWNERS or seen.st_dev != here:
                continue
            if stat.S_ISDIR(seen.st_mode):
                waiting.append(path)
            elif not stat.S_ISREG(seen.st_mode) and not stat.S_ISLNK(seen.st_mode):
                continue
            yield path, seen


def _state(seen: os.stat_result) -> list[int]:
    whose = [seen.st_mode, seen.st_uid, seen.st_gid]
    return (
        whose if stat.S_ISDIR(seen.st_mode) else [*whose, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    )


def _remember(place: str, states: dict[str, list[int]]) -> None:
    with open(place, "w") as file:
        json.dump(states, file)


def _owners(now: dict[str, os.stat_result]) -> bytes:
    """Whose everything is that is not root's, and its mode."""
    kept = {
        path: [seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)]
        for path, seen in now.items()
        if (seen.st_uid or seen.st_gid) and not stat.S_ISLNK(seen.st_mode) and not f"{path}/".startswith(f"{HOUSE}/")
    }
    return json.dumps(kept).encode()


def _give_back() -> None:
    """Make everything its owner's again, as far as it is there."""
    with contextlib.suppress(OSError, ValueError), open(f"/{OWNERS}") as file:
        for path, (uid, gid, mode) in json.load(file).items():
            with contextlib.suppress(OSError):
                fd = os.open(f"/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
                os.close(fd)


def mark(place: str) -> None:
    """Remember how everything is."""
    _give_back()
    _remember(place, {path: _state(seen) for path, seen in _found()})


def layer(place: str, out: IO[bytes]) -> None:
    """Write what is different, and remember how it is now."""
    with open(place) as file:
        before: dict[str, list[int]] = json.load(file)
    now = dict(_found())
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(before):
            seen = now.get(path)
            other = seen is None or stat.S_IFMT(seen.st_mode) != stat.S_IFMT(before[path][0])
            folder, name = posixpath.split(path)
            if other and (not folder or folder in now):  # what was in a folder goes with it
                archive.addfile(tarfile.TarInfo(posixpath.join(folder, WHITEOUT + name)))
        links: dict[int, str] = {}
        for path in sorted(now):
            if before.get(path) != _state(now[path]):
                _add(archive, path, now[path], links)
        owners = _owners(now)
        info = tarfile.TarInfo(OWNERS)
        info.size = len(owners)
        archive.addfile(info, io.BytesIO(owners))
    _remember(place, {path: _state(seen) for path, seen in now.items()})


def _add(archive: tarfile.TarFile, path: str, seen: os.stat_result, links: dict[int, str]) -> None:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid = stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid
    info.mtime = int(seen.st_mtime)
    if stat.S_ISDIR(seen.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(seen.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(f"/{path}")
    elif seen.st_ino in links:
        info.type, info.linkname = tarfile.LNKTYPE, links[seen.st_ino]
    else:
        if seen.st_nlink > 1:
            links[seen.st_ino] = path
        info.size = seen.st_size
        with open(os.open(f"/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            archive.addfile(info, file)
        return
    archive.addfile(info)


def apply(source: IO[bytes]) -> None:
    """Lay what `layer` wrote over the root."""
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            folder, name = posixpath.split(f"/{member.name}")
            if name.startswith(WHITEOUT):
                _remove(posixpath.join(folder, name.removeprefix(WHITEOUT)))
            else:
                _lay(archive, member, f"/{member.name}")


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _lay(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    os.makedirs(posixpath.dirname(path), exist_ok=True)
    if not member.isdir():
        _remove(path)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        os.link(f"/{member.linkname}", path)
        return
    else:
        data = archive.extractfile(member)
        with open(os.open(path, _NEW, 0o600), "wb") as file:
            shutil.copyfileobj(data, file, PIECE) if data is not None else None
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(path, member.mode)
        os.utime(path, (member.mtime, member.mtime))


def main(words: list[str]) -> int:
    """One job."""
    sys.setrecursionlimit(10_000)
    jobs: dict[str, Callable[[], object]] = {
        "place": lambda: Placing(json.loads(words[1]), Counted(sys.stdin.buffer)).run(),
        "mark": lambda: mark(words[1]),
        "layer": lambda: layer(words[1], sys.stdout.buffer),
        "apply": lambda: apply(sys.stdin.buffer),
        "folder": lambda: folder(words[1], words[2]),
    }
    try:
        jobs[words[0]]()
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.path.clear()  # nothing that lies in this root is imported
    sys.exit(main(sys.argv[1:]))
