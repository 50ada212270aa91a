"""A block of our own in /etc/hosts: written as often as wanted, taken out without a trace, nothing else touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ringfence.domain.errors import Conflict, PlatformFault

LARGEST: Final = 16 * 1024 * 1024  # bytes of a hosts file; some block lists are large
_BEGIN: Final = b"# ringfence hosts: begin (written by `ringfence hosts --write`, removed by --remove)"
_END: Final = b"# ringfence hosts: end"


def block(address: str, names: Iterable[str]) -> bytes:
    """The lines for these names, between our marks."""
    lines = [f"{address} {name}".encode() for name in dict.fromkeys(names)]
    return b"\n".join([_BEGIN, *lines, _END]) + b"\n"


class HostsFile:
    """One hosts file. Every other byte of it stays, whatever its line ends and its encoding."""

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.realpath(path))

    def put(self, lines: bytes) -> bool:
        """Write our block, in its old place or at the end; whether anything changed. Raises Conflict, PlatformFault."""
        return self._edit(lines)

    def remove(self) -> bool:
        """Take our block out; whether it was there. Raises Conflict, PlatformFault."""
        return self._edit(b"")

    def _edit(self, lines: bytes) -> bool:
        try:
            with self._alone() as before:
                after = _replaced(before, lines)
                if after != before:
                    self._write(before, after)
                return after != before
        except OSError as error:
            raise PlatformFault(
                f"{self._path} cannot be changed: {error.strerror or error}",
                code="hosts_not_written",
                remediation="run it as root, or name another file with --file",
            ) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bytes]:
        """What the file holds, while nobody else of us changes it; its directory is locked: it may be replaced."""
        place = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)
            data = self._path.read_bytes()
            if len(data) > LARGEST:
                raise Conflict(f"{self._path} is larger than {LARGEST} bytes", code="hosts_too_large")
            yield data
        finally:
            os.close(place)

    def _write(self, before: bytes, after: bytes) -> None:
        """A whole new file in the old one's place, with its owner and mode.

        In a container the file is a mount of its own and cannot be replaced: then only what differs is written, behind
        what stays, in one call.
        """
        old = self._path.stat()
        fresh = self._path.with_name(f".{self._path.name}.ringfence")
        fresh.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
                out.write(after)
                out.flush()
                os.fchmod(out.fileno(), stat.S_IMODE(old.st_mode))
                with contextlib.suppress(PermissionError):
                    os.fchown(out.fileno(), old.st_uid, old.st_gid)
                os.fsync(out.fileno())
            fresh.replace(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            if error.errno != errno.EBUSY:
                raise
            self._overwrite(before, after)

    def _overwrite(self, before: bytes, after: bytes) -> None:
        pairs = enumerate(zip(before, after, strict=False))
        same = next((at for at, (old, new) in pairs if old != new), min(len(before), len(after)))
        file = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(file, after[same:], same)
            os.ftruncate(file, len(after))
            os.fsync(file)
        finally:
            os.close(file)


def _replaced(text: bytes, lines: bytes) -> bytes:
    """The file with our block as it should be. Raises Conflict when its marks are not a pair: nothing is guessed."""
    whole = text.splitlines(keepends=True)
    begins = [number for number, line in enumerate(whole) if line.rstrip(b"\r\n") == _BEGIN]
    ends = [number for number, line in enumerate(whole) if line.rstrip(b"\r\n") == _END]
    if not begins and not ends:
        if not lines:
            return text
        return text + (b"" if not text or text.endswith(b"\n") else b"\n") + lines
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise Conflict(
            "the marks of our block in the hosts file are not one pair",
            code="hosts_marks",
            remediation="take out the lines between them, and the marks, by hand",
        )
    return b"".join(whole[: begins[0]]) + lines + b"".join(whole[ends[0] + 1 :])
