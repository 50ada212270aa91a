"""What was observed of one attack, and what a judge makes of it. Values only: judging does no input or output."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Class(enum.StrEnum):
    """What a success of the attack would mean. The first six must never happen; the others stay inside."""

    ESCAPE = "Escape"
    HOST_LEAK = "HostLeak"
    EXFIL = "Exfil"
    LATERAL = "Lateral"
    HOST_DOS = "HostDoS"
    PEER_DOS = "PeerDoS"
    SELF_DOS = "SelfDoS"
    INTERNAL_ESC = "InternalEsc"
    INTEGRITY = "Integrity"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of an attacking program, as its owner sees it. `refused` tells why there was none."""

    how: str
    code: int | None = None
    signal: int | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    stdout_bytes: int = 0
    stderr: str = ""
    truncated: bool = False
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    wall_seconds: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything seen of one probe: its runs, the neighbour beside it, the host beneath it."""

    runs: tuple[Ran, ...]
    neighbour: str = ""  # what is wrong with the sandbox beside it; empty when it answered as before
    host: tuple[str, ...] = ()  # what changed on the host, in plain sentences

    @property
    def ran(self) -> Ran:
        """The first run; most probes have only this one."""
        return self.runs[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the fence held, and what was seen. `differs` says why it was judged otherwise than elsewhere."""

    held: bool
    seen: str
    differs: str = ""


Judge = Callable[[Observation], Verdict]


def judge(by: Judge, observation: Observation) -> Verdict:
    """The host and the neighbour first, whatever the program itself saw; then the probe's own judge."""
    if observation.host:
        return Verdict(held=False, seen="on the host: " + "; ".join(observation.host))
    if observation.neighbour:
        return Verdict(held=False, seen=f"the neighbour: {observation.neighbour}")
    refusals = [run.refused for run in observation.runs if run.refused]
    if refusals:
        return Verdict(held=False, seen=f"could not be tried: {refusals[0]}")
    return by(observation)
