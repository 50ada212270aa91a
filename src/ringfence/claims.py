"""Numbers that only one server of this machine may use at a time: ranges of uids, first of all.

Two servers know nothing of each other, and each would begin at the first. So whoever uses a number holds a lock on a
file named after it. The kernel lets go of it when that process dies, however it dies; the file that is left then means
nothing, and goes with the next who takes the number, or with the next server's start.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from ringfence.domain.errors import SandboxRefused

DIRECTORY: Final = Path("/run/ringfence/claims")  # root's alone; gone at the next boot, as what it is about
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Claims:
    """One kind of numbers. What was given back longest ago is taken next. Not for several threads at once."""

    def __init__(self, kind: str, numbers: range, directory: Path = DIRECTORY) -> None:
        """`kind` names them on this machine. Touches nothing yet."""
        self._kind = kind
        self._directory = directory
        self._swept = False
        self.free: collections.deque[int] = collections.deque(numbers)
        self._held: dict[int, int] = {}

    def take(self) -> int:
        """A number that nobody on this machine uses. Raises SandboxRefused when there is none, or it cannot be told."""
        try:
            self._prepare()
            for _ in range(len(self.free)):
                lock = self._lock(self.free[0])
                if lock >= 0:
                    number = self.free.popleft()
                    self._held[number] = lock
                    return number
                self.free.rotate(-1)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                cause = f"no descriptors for another sandbox: {error}"
                raise SandboxRefused(cause, code="no_descriptors") from error
            raise SandboxRefused(
                f"a uid range could not be marked as taken: {self._directory}: {error.strerror}",
                code="no_uid_range",
                remediation=f"let root make files in {self._directory}, on a file system with locks",
            ) from error
        raise SandboxRefused(f"every number for {self._kind} is in use on this machine", code="no_uid_range")

    def give(self, number: int) -> None:
        """Nothing uses it any more. Harmless for one that is not held."""
        lock = self._held.pop(number, -1)
        if lock >= 0:
            self._drop(number, lock)
            self.free.append(number)

    def close(self) -> None:
        """Give all back."""
        for number in list(self._held):
            self.give(number)

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._kind}-{number}"

    def _prepare(self) -> None:
        if not self._swept:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._directory.glob(f"{self._kind}-*"):
                number = left.name.rpartition("-")[2]
                lock = self._lock(int(number)) if number.isdigit() else -1
                if lock >= 0:
                    self._drop(int(number), lock)
            self._swept = True

    def _lock(self, number: int) -> int:
        """A descriptor that holds the number; -1 when another has it."""
        while True:
            lock = os.open(self._path(number), _FLAGS, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return -1
            except OSError:
                os.close(lock)
                raise
            # Its last holder removes the file before letting go: then this lock is on a file that nobody finds.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self._path(number))):
                    return lock
            os.close(lock)

    def _drop(self, number: int, lock: int) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(number))
        os.close(lock)
