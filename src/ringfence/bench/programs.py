"""What is run: the smallest programs that show their work, and the interpreter that runs them outside of a sandbox."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.domain.errors import PlatformFault

RUN_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 20.0
READ_BYTES: Final = 65_536
PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
HOST_PYTHON: Final = Path("/usr/bin/python3")


@dataclass(frozen=True, slots=True)
class Program:
    """A line of Python, the template it belongs to, and exactly what it prints."""

    name: str
    template: str
    code: str
    printed: bytes


PLAIN: Final = Program("plain", "base", "print(1)", b"1\n")
NUMPY: Final = Program("numpy", "python", "import numpy; print(numpy.add(1, 1))", b"2\n")
PANDAS: Final = Program("pandas", "python", "import pandas; print(pandas.Series([1, 1]).sum())", b"2\n")
PROGRAMS: Final[Mapping[str, Program]] = {program.name: program for program in (PLAIN, NUMPY, PANDAS)}

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": PATH,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",  # as in the templates
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # a template's files are nobody's to change
}


@dataclass(frozen=True, slots=True)
class Command:
    """Words and an environment, ready to be started."""

    words: tuple[str, ...]
    env: Mapping[str, str]


class FailedRun(Exception):
    """A command that did not do what it was measured for."""


def timed(command: Command, printed: bytes) -> float:
    """Start it, read its output to the end, wait for it: the milliseconds. Raises FailedRun for any other output."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        began = time.perf_counter()
        pid = os.posix_spawn(
            command.words[0], list(command.words), dict(command.env), file_actions=_actions(writer), setpgroup=0
        )
        os.close(writer)
        writer = -1
        output = _all(reader, pid)
        _, status = os.waitpid(pid, 0)
        taken = (time.perf_counter() - began) * 1e3
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if status or output != printed:
        code = os.waitstatus_to_exitcode(status)
        raise FailedRun(f"{command.words[0]} ended with {code} and printed {output[:100]!r}")
    return taken


def _actions(writer: int) -> list[tuple[int, int, int] | tuple[int, int, str, int, int]]:
    return [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    ]


def _all(reader: int, group: int) -> bytes:
    """Everything until the end; a program that takes far too long is killed, and what it started with it."""
    pieces: list[bytes] = []
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(RUN_SECONDS * 1000):
        piece = os.read(reader, READ_BYTES)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
    os.killpg(group, signal.SIGKILL)
    return b""


def _done(command: Command) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command.words, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOOK_SECONDS, check=False,
            encoding="utf-8", errors="replace", env=command.env,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def said(words: Sequence[str]) -> str:
    """What a short command says on either stream; empty when it cannot be started or does not end well."""
    done = _done(Command(tuple(words), ENVIRONMENT))
    return (done.stdout or done.stderr).strip() if done is not None and not done.returncode else ""


def errors_of(command: Command) -> str:
    """What a command that fails says about it."""
    done = _done(command)
    return done.stderr.strip()[-250:] if done is not None else ""


def _by_its_own_loader(root: Path) -> tuple[str, ...]:
    """A template's interpreter with the template's C library, which may be newer than the host's."""
    python = str(root / "usr/bin/python3")
    loader, libraries = root / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/lib/x86_64-linux-gnu"
    return (str(loader), "--argv0", python, "--library-path", str(libraries), python)


class Outside:
    """The templates' own interpreter and packages, run on the host with nothing around them.

    The same files on both sides: what differs is the sandbox. Where a template's binary does not run on this host, it
    is the host's python3 with the template's packages.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        """`roots` are template root file systems by name. Raises PlatformFault when no interpreter works."""
        self._roots = roots
        self.version = ""
        self.own = True
        for own in (True, False):
            self.own = own
            self.version = said([*self.command(PLAIN).words[:-2], "-V"])
            if self.version:
                return
        raise PlatformFault(
            "no python3 runs outside of a sandbox here", code="no_python", remediation="install python3"
        )

    @property
    def path(self) -> str:
        """Whose binary it is, for people."""
        return "the template's" if self.own else str(HOST_PYTHON)

    def command(self, program: Program) -> Command:
        """`python3 -c CODE`."""
        root = self._roots[program.template]
        if self.own:
            return Command((*_by_its_own_loader(root), "-c", program.code), ENVIRONMENT)
        packages = ":".join(str(found) for found in sorted(root.glob("usr/local/lib/python3*/dist-packages")))
        env = {**ENVIRONMENT, "PYTHONPATH": packages} if packages else ENVIRONMENT
        return Command((str(HOST_PYTHON), "-c", program.code), env)
