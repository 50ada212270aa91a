"""Run a builder's external command: lines as they come, a deadline, and no orphan if we are killed."""

from __future__ import annotations

import collections
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ringfence.domain.errors import PlatformFault

TAIL_LINES: Final = 40
LINE_BYTES: Final = 4096
WORDS: Final = 300
NOT_FOUND: Final = 127
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

# A login by plain `su` leaves the administrator's folders out of PATH.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The host's variables are passed on, proxies and certificates among them, except those that change what is built.
FIT: Final = (
    *("env", "-u", "PYTHONPATH"),
    # This one would make Debian compile modules that hash their source at every import.
    *("-u", "SOURCE_DATE_EPOCH"),
    # Constants of sets are written into .pyc files in hash order.
    *("LC_ALL=C.UTF-8", "PYTHONHASHSEED=0", "DEBIAN_FRONTEND=noninteractive", f"PATH={PATH}"),
)

# The kernel kills this child when its parent dies, however the parent dies.
DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
# All that the command starts shares one process-id namespace and falls with its first process;
# its mounts are its own, so nothing stays mounted below a root that is about to be removed.
FENCED: Final = (*DIES_WITH_US, "unshare", "--mount", "--pid", "--fork", "--kill-child")


class CommandError(Exception):
    """A command ended badly; `tail` is the end of what it said."""

    def __init__(self, program: str, status: int, tail: Sequence[str]) -> None:
        super().__init__(f"{program} ended with status {status}")
        self.program = program
        self.status = status
        self.tail = tuple(tail)

    def last_words(self, *starts: str) -> str:
        """Return the last line that begins with one of `starts`, else the last line, else what ended."""
        chosen = (line for line in reversed(self.tail) if line.startswith(starts))
        return next(chosen, next((line for line in reversed(self.tail) if line), str(self)))[:WORDS]

    def says(self, text: str) -> bool:
        """Whether the end of the command's output contains `text`."""
        return any(text in line for line in self.tail)


OnLine = Callable[[str], None]


def ignore(_line: str) -> None:
    """Take a line and do nothing with it."""


def run(
    argv: Sequence[str],
    *,
    on_line: OnLine = ignore,
    deadline: float = 1800.0,
    env: Mapping[str, str] = NOTHING,
    program: str = "",
) -> None:
    """Run `argv` to its end, giving each output line to `on_line`.

    Raises CommandError for a non-zero status and PlatformFault when the program is missing or the disk is full.
    """
    program = program or argv[0]
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    variables = [f"{name}={value}" for name, value in env.items()]
    status = _stream([*FIT, *variables, *argv], tail, on_line, deadline)
    if status == 0:
        return
    if status == NOT_FOUND:
        cause = f"a tool of the builder is not installed: {tail[-1] if tail else program}"
        raise PlatformFault(cause, code="tool_missing", remediation="run: make setup")
    failed = CommandError(program, status, tail)
    if failed.says("No space left on device") or failed.says("enough free space"):
        raise no_space() from failed
    if failed.says("unshare: "):
        raise PlatformFault(
            f"this machine does not let the builder make namespaces: {failed.last_words('unshare: ')}",
            code="namespaces_denied",
            remediation="build as root; inside a container it must be a privileged one",
        )
    raise failed


def no_space(cause: str = "the disk became full while a template was being built") -> PlatformFault:
    """Return the refusal for a full disk."""
    return PlatformFault(cause, code="no_space", remediation="free some space, or choose another templates directory")


def _stream(argv: Sequence[str], tail: collections.deque[str], on_line: OnLine, deadline: float) -> int:
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o022
    )
    timer = threading.Timer(deadline, process.kill)
    timer.daemon = True
    timer.start()
    with process:
        try:
            for raw in iter(lambda: process.stdout.readline(LINE_BYTES) if process.stdout else b"", b""):
                line = raw.decode("utf-8", "replace").rstrip()
                tail.append(line)
                on_line(line)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    return process.returncode
