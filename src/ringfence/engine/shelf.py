"""Where paused sandboxes' files are kept: one opaque file each, named by the sandbox, reached through one descriptor.

What a sandbox sent is counted, hashed, written and read back, and never anything else: no program of the host's learns
what is in it. A file has its own name only when it is whole and on disk. Everything that may wait for the disk is done
in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

from ringfence.domain.errors import Overloaded, OverQuota, PlatformFault, TooLarge
from ringfence.store.base import PauseRow

PIECE: Final = 1024 * 1024  # bytes gathered for one write
KEPT_FREE: Final = 256 * 1024 * 1024  # of the disk: records are on it too, and they come first
PART: Final = ".part"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place must not hang us
T = TypeVar("T")


def _host_full() -> Overloaded:
    return Overloaded(
        "the server's disk has no room for this sandbox's files",
        code="paused_disk_full",
        remediation="the operator must free the disk that holds the state directory",
    )


class Shelf:
    """The files. Not for two processes at once: what is counted is in memory."""

    def __init__(self, place: int, kept_free: int = KEPT_FREE) -> None:
        """`place` is an open directory of our own."""
        self._place = place
        self._kept_free = kept_free
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="shelf")  # so that what is asked is done in order
        self._of: dict[str, PauseRow] = {}
        self._held: Counter[str] = Counter()

    async def do(self, work: Callable[[], T]) -> T:
        """Wait for the disk elsewhere."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # --- what is there ---

    def adopt(self, rows: list[PauseRow]) -> list[PauseRow]:
        """At the start: count what is kept, remove what nobody knows; returns those whose file is not there."""
        known = {row.sandbox: row for row in rows}
        there = set(os.listdir(self._place))
        for name in there - set(known):
            os.unlink(name, dir_fd=self._place)
        for name in there & set(known):
            self._count(known[name])
        return [row for row in rows if row.sandbox not in there]

    def _count(self, row: PauseRow) -> None:
        self._of[row.sandbox] = row
        self._held[row.tenant] += row.size

    def used(self, tenant: str) -> int:
        """Bytes of a tenant's, those being written included."""
        return self._held[tenant]

    def row(self, sandbox_id: str) -> PauseRow | None:
        """What is kept of a sandbox."""
        return self._of.get(sandbox_id)

    def rows(self) -> list[PauseRow]:
        """All of it."""
        return list(self._of.values())

    def fits(self, size: int) -> None:
        """Raises Overloaded when the disk has no room for so many bytes more."""
        disk = os.fstatvfs(self._place)
        if disk.f_bavail * disk.f_frsize < size + self._kept_free:
            raise _host_full()

    async def remove(self, sandbox_id: str) -> None:
        """Keep nothing of it any more; harmless when nothing is."""
        row = self._of.pop(sandbox_id, None)
        if row is not None:
            self.release(row.tenant, row.size)
        await self.do(lambda: self._unlink(sandbox_id))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._place)

    # --- in ---

    def writing(self, tenant: str, sandbox_id: str, most: int, quota: int) -> Blob:
        """A new file of at most `most` bytes, which a tenant with `quota` may have."""
        return Blob(self, tenant, sandbox_id, most, quota)

    def part(self, sandbox_id: str) -> int:
        """A descriptor of a new file that is not whole yet."""
        self._unlink(sandbox_id + PART)
        return os.open(sandbox_id + PART, _CREATE, 0o600, dir_fd=self._place)

    def take(self, tenant: str, size: int, quota: int) -> None:
        """Count bytes before they are written. Raises OverQuota, Overloaded."""
        if self._held[tenant] + size > quota:
            raise OverQuota(
                "this tenant's paused sandboxes hold as many bytes as they may",
                code="paused_quota",
                remediation="stop paused sandboxes that are not needed, or have the operator raise max_paused_bytes",
            )
        self.fits(size)
        self._held[tenant] += size

    def release(self, tenant: str, size: int) -> None:
        """Count bytes no more."""
        self._held[tenant] -= size
        if not self._held[tenant]:
            del self._held[tenant]

    def drop(self, sandbox_id: str) -> None:
        """A file that nobody keeps, whole or not."""
        self._unlink(sandbox_id + PART)
        self._unlink(sandbox_id)

    def whole(self, fd: int, row: PauseRow) -> None:
        """The file is on disk from here on, under its own name."""
        os.fsync(fd)
        os.rename(row.sandbox + PART, row.sandbox, src_dir_fd=self._place, dst_dir_fd=self._place)
        os.fsync(self._place)

    def kept(self, row: PauseRow) -> None:
        """It is one of ours now; its bytes were counted while they were written."""
        self._of[row.sandbox] = row

    # --- out ---

    async def reading(self, row: PauseRow) -> AsyncGenerator[bytes]:
        """Its bytes, once all of them are known to be those that were written. Raises PlatformFault."""
        fd = await self.do(lambda: self._checked(row))
        try:
            while data := await self.do(lambda: os.read(fd, PIECE)):
                yield data
        finally:
            os.close(fd)

    def _checked(self, row: PauseRow) -> int:
        try:
            fd = os.open(row.sandbox, _READ, dir_fd=self._place)
        except OSError as error:
            raise _damaged(f"cannot be read: {error.strerror}") from None
        try:
            found, digest = os.fstat(fd), hashlib.sha256()
            if not stat.S_ISREG(found.st_mode) or found.st_size != row.size:
                raise _damaged("is not the file that was written")
            while data := os.read(fd, PIECE):
                digest.update(data)
            if digest.digest() != row.digest:
                raise _damaged("has changed since it was written")
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _damaged(why: str) -> PlatformFault:
    return PlatformFault(
        f"what was kept of this sandbox {why}",
        code="pause_damaged",
        remediation="stop it and create a new one; the server's disk needs a look",
    )


class Blob:
    """One file being written. Use it in an `async with`: whatever is not finished there is removed."""

    def __init__(self, shelf: Shelf, tenant: str, sandbox_id: str, most: int, quota: int) -> None:
        self._vault = shelf
        self._tenant = tenant
        self._sandbox = sandbox_id
        self._most = most
        self._quota = quota
        self._size = 0
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._fd = -1
        self._kept = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._kept:
            self._vault.release(self._tenant, self._size)
        # In the order of the thread that writes: nothing of this file is under way any more when it goes.
        await asyncio.shield(self._vault.do(self._leave))

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        if not self._kept:
            self._vault.drop(self._sandbox)

    async def write(self, data: bytes) -> None:
        """Take more bytes. Raises TooLarge, OverQuota, Overloaded for a full disk."""
        self._buffer += data
        if self._size + len(self._buffer) > self._most:
            raise TooLarge(
                "the sandbox sent more than it can hold",
                code="pause_too_large",
                remediation="remove files inside, or stop it",
            )
        if len(self._buffer) >= PIECE:
            await self._flush()

    async def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        self._vault.take(self._tenant, len(data), self._quota)
        self._size += len(data)
        await self._vault.do(lambda: self._put(data))

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        view = memoryview(data)
        try:
            if self._fd < 0:  # opened on this thread, which also closes it: whoever waits may be gone by then
                self._fd = self._vault.part(self._sandbox)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise _host_full() from None
            raise PlatformFault(f"a paused sandbox's files cannot be written: {error.strerror}") from None

    async def finish(self, expires: float, begins: bytes = b"") -> PauseRow:
        """All came: on disk when this returns, and to be removed again unless kept() follows."""
        await self._flush()
        row = PauseRow(self._sandbox, self._tenant, self._size, self._digest.digest(), expires, begins)
        await self._vault.do(lambda: self._vault.whole(self._fd, row))
        return row

    def keep(self, row: PauseRow) -> None:
        """The record says so: it stays."""
        self._kept = True
        self._vault.kept(row)
