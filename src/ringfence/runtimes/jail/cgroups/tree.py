"""What v1 and v2 share: a sandbox's group is one directory of the same name in each of a few trees."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.runtimes.jail.cgroups.base import Groups, Pids
from ringfence.runtimes.jail.cgroups.governor import Dial, Governor

#: Everything of ours lies below a directory of this name.
PARENT: Final = "ringfence"
#: The agent, which is not the tenant's, and one spare for the moment in which it has forked and not yet exec'ed.
OWN_PROCESSES: Final = 2
#: 100 ms, the kernel's own default; the least quota it accepts, 1 ms, is then just 0.01 cpus, our least limit.
CPU_PERIOD_US: Final = 100_000
#: A group is looked at again this soon after it was found busy, and then ever later up to the second figure.
FIRST_PAUSE, LAST_PAUSE = 0.001, 0.05

#: Each round signals those born since the one before; with no pids controller a fork bomb could go on for ever,
#: and `remove` calls again.
KILL_ROUNDS: Final = 64
CLOSE_SECONDS: Final = 15.0  # for all hierarchies together; usually it is milliseconds

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def put(path: Path | str, value: int | str) -> None:
    """Write one value to a kernel file. O_NONBLOCK asks newer kernels not to reclaim memory on our time."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def get(path: Path | str) -> str:
    """Read a kernel file whole."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65_536):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(fd)


def get_table(path: Path | str) -> dict[str, int]:
    """Read a kernel file of `key number` lines."""
    lines = (line.partition(" ") for line in get(path).splitlines())
    return {key: int(value) for key, _, value in lines if value.isdigit()}


def number_or_0(path: Path | str) -> int:
    """Read a kernel file's one number; 0 when there is no such file, or it says `max`."""
    try:
        return int(get(path))
    except (OSError, ValueError):
        return 0


def table_or_empty(path: Path | str) -> dict[str, int]:
    """Read a kernel file of `key number` lines; empty when there is no such file."""
    try:
        return get_table(path)
    except OSError:
        return {}


def checked(name: str) -> str:
    """Return a name that is exactly one directory of ours, or raise SandboxRefused."""
    if not _NAME.fullmatch(name):
        raise SandboxRefused(f"{name!r:.80} cannot name a resource group", code="bad_group_name")
    return name


def remove_empty(path: Path) -> None:
    """Remove a directory unless it is busy, holds groups, or is gone already; the caller looks whether it is."""
    with contextlib.suppress(OSError):
        path.rmdir()


class Tree(Groups, Dial):
    """Groups as directories: `parents` are `<...>/ringfence/<instance>`, one per hierarchy, already made."""

    def __init__(self, parents: tuple[Path, ...], enforces: frozenset[str], missing: dict[str, str]) -> None:
        self.enforces = enforces
        self.missing = missing
        self._parents = parents
        self._places = tuple(map(str, parents))
        self.governor = Governor(self if "memory" in enforces else None)

    @abstractmethod
    def _settings(self, limits: Limits) -> Iterator[tuple[Path, str, int | str, bool]]:
        """(parent, file, value, must it exist) in the order in which they are written."""

    def _paths(self, name: str) -> list[Path]:
        return [parent / checked(name) for parent in self._parents]

    def create(self, name: str, limits: Limits) -> None:
        """Make the directories, then write every limit."""
        made: list[str] = []
        doing = "make the group"
        try:
            for place in self._places:
                os.mkdir(f"{place}/{checked(name)}")
                made.append(f"{place}/{name}")
            for parent, file, value, needed in self._settings(limits):
                doing = f"set {file} to {value}"
                path = f"{parent}/{name}/{file}"
                if needed or os.path.exists(path):
                    put(path, value)
        except OSError as error:
            for path in made:
                _gone(path)
            raise self._refused(doing, name, error) from error

    def attach(self, name: str, pid: int) -> None:
        """Write the pid to every hierarchy."""
        for place in self._places:
            try:
                put(f"{place}/{checked(name)}/cgroup.procs", pid)
            except OSError as error:
                raise self._refused(f"attach process {pid}", name, error) from error

    def _refused(self, doing: str, name: str, error: OSError) -> SandboxRefused:
        return SandboxRefused(
            f"layer {self.kind}: could not {doing} for {name}: {error.strerror}",
            code="group_refused",
            remediation="run `ringfence doctor` to see which controllers this host gives us",
        )

    def pids(self, name: str) -> Pids:
        """All processes, whatever hierarchy they are in."""
        return sorted(_procs(self._paths(name)))

    def kill(self, name: str) -> None:
        """Let nobody fork any more, then signal everybody until nobody new turns up."""
        paths = self._paths(name)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                put(path / "pids.max", 0)
        done: set[int] = set()
        for _ in range(KILL_ROUNDS):
            fresh = _procs(paths) - done
            if not fresh:
                return
            _kill(fresh, paths)
            done |= fresh

    def remove(self, name: str, deadline_seconds: float) -> bool:
        """Kill and rmdir until nothing is left or the time is up."""
        self.governor.forget(name)
        deadline = time.monotonic() + deadline_seconds
        pause = FIRST_PAUSE
        while not self._removed(name):
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
        return True

    def _removed(self, name: str) -> bool:
        if all(_gone(f"{place}/{checked(name)}") for place in self._places):
            return True  # the usual case: what was in it died with its pid namespace
        if _procs(self._paths(name)):
            self.kill(name)
        return False

    def list(self) -> set[str]:
        """Directories below any parent."""
        return {entry.name for parent in self._parents for entry in _entries(parent) if entry.is_dir()}

    def close(self) -> None:
        """Stop governing; give back `<instance>`, and `ringfence` when no other instance uses it."""
        self.governor.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for parent in self._parents:
            # The kernel counts a group just removed as its parent's for some milliseconds yet.
            while not _gone(str(parent)) and not any(_groups_in(parent)) and time.monotonic() < deadline:
                time.sleep(FIRST_PAUSE)
            remove_empty(parent.parent)


def _gone(path: str) -> bool:
    """Remove a directory; True when it is not there any more."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _groups_in(parent: Path) -> Iterator[str]:
    return (entry.name for entry in _entries(parent) if entry.is_dir())


def _entries(parent: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
        yield from entries


def _procs(paths: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for path in paths:
        try:
            found.update(map(int, get(path / "cgroup.procs").split()))
        except OSError as error:
            # ENODEV: removed between open and read.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


def _kill(pids: set[int], paths: Iterable[Path]) -> None:
    """SIGKILL to each of these that is still in the group, and to nobody else.

    A number may be reused between reading it and using it. So pidfds are taken and the list is read again: a
    process listed before and after cannot have been replaced by a stranger in between.
    """
    with contextlib.ExitStack() as fds:
        held: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
                fds.callback(os.close, held[pid])
        for pid in _procs(paths) & held.keys():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[pid], signal.SIGKILL)
