"""Exit codes: one table, shown by `ringfence --help` and used everywhere."""

from __future__ import annotations

from typing import Final

from ringfence.domain.errors import PlatformFault, RingfenceError
from ringfence.domain.process import How
from ringfence.wire import Exit

USAGE: Final = 2
FAULT: Final = 125
REFUSED: Final = 126
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
BY_HOW: Final[dict[How, int]] = {
    How.OUTPUT_CAPPED: 121,
    How.DISK_FULL: 122,
    How.POLICY_KILLED: 123,
    How.TIMED_OUT: 124,
    How.OUT_OF_MEMORY: 137,
    How.STOPPED: 143,
}

MEANING: Final = (
    ("0 to 120", "the program's own exit code (it may also choose a higher one; stderr then says nothing)"),
    ("2", "the command line was not understood"),
    ("121", "the program wrote more than its output limit"),
    ("122", "the program filled its disk"),
    ("123", "the program was killed for breaking a rule"),
    ("124", "the program ran out of time"),
    ("125", "our fault: the server failed or cannot be reached"),
    ("126", "refused: a bad request, a wrong key, no such thing, over quota"),
    ("128+N", "the program was killed by signal N"),
    ("130", "you interrupted it"),
    ("137", "the program ran out of memory"),
    ("143", "the program or its sandbox was stopped"),
)


def for_exit(exit_: Exit) -> int:
    """The code a shell sees for a program's fate."""
    if exit_.how is How.EXITED:
        return exit_.code or 0
    if exit_.how is How.SIGNALLED:
        return 128 + (exit_.signal or 0)
    return BY_HOW[exit_.how]


def for_error(error: RingfenceError) -> int:
    """The code a shell sees when we refused or failed."""
    return FAULT if isinstance(error, PlatformFault) else REFUSED
