"""Write a finished tree to disk: from the top down into a fresh folder, by descriptors, hard links to layers' files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ringfence.templates.image.model import File, Folder, Link, Root, Text

CHUNK: Final = 1024 * 1024
TOLD_EVERY: Final = 2000
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINK: Final = frozenset({errno.EMLINK, errno.EXDEV})


def _numbered(node: File) -> str:
    return str(node.number)


def write(
    root: Root,
    place: Path,
    layers: Mapping[str, int],
    tell: Callable[[int], None],
    name_of: Callable[[File], str] = _numbered,
) -> None:
    """Make the tree at `place`, which must not exist. `layers` are descriptors of the layers' files, by layer.

    `name_of` says what a file is called there: its number, unless it comes from a root of ours.
    """
    place.mkdir(mode=0o755)
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _Writer(layers, tell, name_of).fill(root.top, top)


class _Writer:
    def __init__(self, layers: Mapping[str, int], tell: Callable[[int], None], name_of: Callable[[File], str]) -> None:
        self._name_of = name_of
        self._layers = layers
        self._tell = tell
        self._count = 0

    def fill(self, folder: Folder, fd: int) -> None:
        """Write what is in one folder, then what is in its folders. Closes `fd`."""
        try:
            for name in sorted(folder.children):
                node = folder.children[name]
                self._count += 1
                if self._count % TOLD_EVERY == 0:
                    self._tell(self._count)
                if isinstance(node, Folder):
                    os.mkdir(name, 0o755, dir_fd=fd)
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    self.fill(node, os.open(name, flags, dir_fd=fd))
                elif isinstance(node, Link):
                    os.symlink(node.target, name, dir_fd=fd)
                elif isinstance(node, Text):
                    self._text(node, name, fd)
                else:
                    self._file(node, name, fd)
        finally:
            os.close(fd)

    def _text(self, node: Text, name: str, fd: int) -> None:
        with os.fdopen(os.open(name, _NEW, 0o755 if node.executable else 0o644, dir_fd=fd), "wb") as file:
            file.write(node.content)

    def _file(self, node: File, name: str, fd: int) -> None:
        source = self._layers[node.layer]
        try:
            os.link(self._name_of(node), name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._copy(source, node, name, fd)

    def _copy(self, source: int, node: File, name: str, fd: int) -> None:
        """A file system has a most of names for one file, and none on another disk: then it is a file of its own."""
        from_fd = os.open(self._name_of(node), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        with os.fdopen(from_fd, "rb") as old, os.fdopen(os.open(name, _NEW, 0o644, dir_fd=fd), "wb") as new:
            while data := old.read(CHUNK):
                new.write(data)
            info = os.fstat(old.fileno())
            os.utime(new.fileno(), ns=(info.st_mtime_ns, info.st_mtime_ns))
            os.fchmod(new.fileno(), 0o755 if node.executable else 0o644)
