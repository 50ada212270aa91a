"""Write a cpio archive in the "newc" form, which the kernel unpacks as its first file system.

Several may follow each other in one file, each adding to the ones before. Written here because it lets an ordinary
user make files that belong to root in the guest, with no tool beyond Python.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import BinaryIO

ALIGN = 4
BLOCK = 512


class Archive:
    """An archive being written. Everything in it belongs to root unless said otherwise."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._directories: set[str] = set()

    def add(self, name: str, mode: int, data: bytes = b"", owner: tuple[int, int] = (0, 0)) -> None:
        """One entry: a file with its bytes, a symlink with its target, or a directory."""
        self._number += 1
        encoded = os.fsencode(name) + b"\0"
        fields = (self._number, mode, *owner, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._padded(b"070701" + b"".join(b"%08x" % field for field in fields) + encoded)
        self._padded(data)

    def _padded(self, data: bytes) -> None:
        self._file.write(data + b"\0" * (-len(data) % ALIGN))

    def directory(self, name: str) -> None:
        """A directory and all above it, once each: the kernel does not make what is missing."""
        for parent in [*reversed(Path(name).parents), Path(name)]:
            if str(parent) not in (".", *self._directories):
                self._directories.add(str(parent))
                self.add(str(parent), stat.S_IFDIR | 0o755)

    def tar(self, path: Path) -> None:
        """Everything in a tar file but devices, which devtmpfs makes."""
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                owner = (member.uid, member.gid)
                if member.isdir():
                    self._directories.add(name)
                    self.add(name, stat.S_IFDIR | member.mode, owner=owner)
                elif member.issym():
                    self.add(name, stat.S_IFLNK | 0o777, os.fsencode(member.linkname), owner)
                elif member.isreg() or member.islnk():
                    source = tar.extractfile(member)
                    self.add(name, stat.S_IFREG | member.mode, source.read() if source else b"", owner)

    def tree(self, source: Path, target: str, without: AbstractSet[str] = frozenset()) -> None:
        """A directory as `target`, with its owners; what has one of these names is left out, wherever it is."""
        self.directory(target)
        for entry in walk(source, without):
            name = f"{target}/{os.path.relpath(entry.path, source)}"
            info = entry.stat(follow_symlinks=False)
            owner = (info.st_uid, info.st_gid)
            if entry.is_symlink():
                self.add(name, info.st_mode, os.fsencode(os.readlink(entry.path)), owner)
            elif entry.is_dir():
                self.add(name, info.st_mode, owner=owner)
            elif entry.is_file():
                self.add(name, info.st_mode, Path(entry.path).read_bytes(), owner)

    def close(self) -> None:
        """The end mark, padded so that another archive may follow."""
        self.add("TRAILER!!!", 0)
        self._file.write(b"\0" * (-self._file.tell() % BLOCK))


def walk(source: Path, without: AbstractSet[str]) -> Iterator[os.DirEntry[str]]:
    """Every entry below a directory, each directory before what is in it."""
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name in without:
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(Path(entry.path), without)
