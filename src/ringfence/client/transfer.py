"""Local files on either end of an upload or a download; the only place in the SDK that touches the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Final

PIECE: Final = 256 * 1024

Local = str | os.PathLike[str] | BinaryIO


@contextlib.contextmanager
def source(local: Local) -> Iterator[IO[bytes]]:
    """A file to read from: a path is opened and closed, an open file is left open."""
    if isinstance(local, str | os.PathLike):
        with Path(local).open("rb") as file:
            yield file
    else:
        yield local


@contextlib.contextmanager
def target(local: Local) -> Iterator[IO[bytes]]:
    """A file to write to. A path gets its content whole or not at all: a broken transfer leaves what was there."""
    if not isinstance(local, str | os.PathLike):
        yield local
        return
    path = Path(local)
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced by a file
        with path.open("wb") as file:
            yield file
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file.file
            os.fchmod(file.fileno(), mode)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes, a piece at a time."""
    while piece := file.read(PIECE):
        yield piece
