"""Real processes in real groups, and a ledger that shows that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringfence.domain.limits import MIB, Limits
from ringfence.runtimes.jail.cgroups.base import Groups
from ringfence.runtimes.jail.cgroups.detect import detect, mounts_in
from ringfence.runtimes.jail.cgroups.tree import PARENT
from ringfence.runtimes.jail.cgroups.watchman import Watchman

PATIENCE = 60  # seconds until a test gives up; nothing is timed with it
SMALL = Limits(memory_bytes=96 * MIB, scratch_bytes=256 * MIB, cpus=2.0, processes=16)

# Every program waits to be attached, so that all it ever does is counted.
WAIT = """
import errno, mmap, os, signal, sys, time
MIB = 1024 * 1024
sys.stdin.readline()
def say(*words): print(*words, flush=True)
def memory(mib):
    block = mmap.mmap(-1, mib * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, mib * MIB, 4096): block[page] = 1
    return block
def fill(path, mib):
    piece, written = bytes(MIB), 0
    with open(path, "wb", buffering=0) as file:
        try:
            while written < mib * MIB: written += file.write(piece)
        except OSError as error: say(errno.errorcode[error.errno], written // MIB)
        else: say("written", written // MIB)
"""


@dataclass
class Program:
    """One program in a group. `scratch` is a tmpfs that only it can see."""

    process: subprocess.Popen[str]
    scratch: Path

    def line(self) -> str:
        """Its next line of output; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Give it a line of input."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        """Its exit code once it has ended."""
        return self.process.wait(PATIENCE)

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL, which is how the OOM killer works, has ended it."""
        return self.ended() == -signal.SIGKILL


class Bench:
    """Groups of this machine for one test, with somebody to govern them."""

    def __init__(self, groups: Groups, instance: str, scratch: Path) -> None:
        self.groups = groups
        self._instance = instance
        self._scratch = scratch
        self._programs: list[Program] = []
        self.governing = threading.Lock()  # whoever holds it keeps the governor from its work
        self._watchman = Watchman(self, ahead=groups.governor.urgent)
        self._watchman.begin()

    @property
    def fd(self) -> int:
        """See Watchman."""
        return self.groups.governor.fd

    def govern(self) -> float | None:
        """See Watchman."""
        with self.governing:
            return self.groups.governor.govern()

    def create(self, limits: Limits = SMALL, name: str = "s1") -> str:
        """A governed group."""
        self.groups.create(name, limits)
        self.groups.governor.watch(name, limits)
        self._watchman.look()
        return name

    def run(self, name: str, code: str, limits: Limits = SMALL) -> Program:
        """Start a program in the group; it begins only when it is in."""
        command = [sys.executable, "-c", WAIT + f"SCRATCH = {str(self._scratch)!r}\n" + code]
        mount = f"mount -t tmpfs -o size={limits.scratch_bytes} tmpfs {self._scratch}"
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        program = Program(process, self._scratch)
        self._programs.append(program)
        self.groups.attach(name, process.pid)
        program.go_on()
        return program

    def directories(self, name: str) -> list[Path]:
        """The group's directory in each hierarchy, deepest name last."""
        return sorted(path for path in directories(self._instance) if path.name == name)

    def parents(self) -> list[Path]:
        """The instance's directory in each hierarchy."""
        return self.directories(self._instance)

    def limit(self, name: str, file: str) -> str | None:
        """A limit as the kernel holds it; None where it does not know it."""
        found = [(path / file).read_text().strip() for path in self.directories(name) if (path / file).exists()]
        return found[0] if found else None

    def close(self) -> None:
        """Remove every group, reap every program, stop governing."""
        busy = [name for name in self.groups.list() if not self.groups.remove(name, PATIENCE)]
        for program in self._programs:
            program.process.kill()
            program.process.communicate()
        self._watchman.close()
        self.groups.close()
        assert not busy


def directories(instance: str) -> set[Path]:
    """Every directory of one instance in every hierarchy of this machine."""
    mounts = mounts_in(Path("/proc/self/mountinfo").read_text())
    tops = {*mounts.v1.values(), *([mounts.v2] if mounts.v2 else [])}
    return {Path(folder) for top in tops for folder, _, _ in os.walk(top / PARENT / instance)}  # some may go meanwhile


def ledger(instance: str, scratch: Path) -> Counter[str]:
    """What there may be no more of after a test than before it; what an earlier test left may end meanwhile."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(scratch) in line]
    return Counter(
        [
            *(f"group {path}" for path in directories(instance)),
            *(f"mount {line}" for line in mounts),
            *(f"child {pid}" for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
            *(f"descriptor {os.readlink(f'/proc/self/fd/{fd}').split(':')[0]}" for fd in _descriptors()),
            *("thread" for _ in range(threading.active_count())),
        ]
    )


def _descriptors() -> list[str]:
    # The listing's own descriptor is closed again by the time it is looked at.
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


@contextlib.contextmanager
def bench(scratch: Path) -> Iterator[Bench]:
    """Offer root's groups under an instance name of their own; afterwards, prove that nothing is left.

    Skips where the machine gives no groups.
    """
    if os.geteuid():
        pytest.skip("resource groups need root")
    instance = f"test-{uuid.uuid4().hex[:8]}"
    before = ledger(instance, scratch)
    groups = detect(instance, root=True)
    if groups.missing:
        groups.close()
        pytest.skip(f"this machine does not enforce everything: {groups.missing}")
    with contextlib.closing(Bench(groups, instance, scratch)) as made:
        yield made
    assert ledger(instance, scratch) - before == Counter()
