"""What goes in (a command) and what comes out (one Exit), as frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class How(enum.StrEnum):
    """How a program ended. Our own faults are not here: they are raised (see errors.py)."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_CAPPED = "output_capped"
    DISK_FULL = "disk_full"
    POLICY_KILLED = "policy_killed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run consumed. Measured by the node from outside unless `source` says otherwise."""

    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    output_bytes: int = 0
    source: str = "cgroup"
    memory_bytes: int = 0  # now; of a sandbox that lives


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds spent per phase, on the node's monotonic clock.

    queue: waiting for a warm sandbox; claim: taking it; start: request to first instruction;
    run: the program itself; collect: its end to the last byte handed on.
    """

    queue: float = 0.0
    claim: float = 0.0
    start: float = 0.0
    run: float = 0.0
    collect: float = 0.0


@dataclass(frozen=True, slots=True)
class Exit:
    """A program's fate: exactly one per program."""

    how: How
    code: int | None = None
    signal: int | None = None
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)

    @property
    def ok(self) -> bool:
        """True only for a program that ended by itself with code 0."""
        return self.how is How.EXITED and self.code == 0
