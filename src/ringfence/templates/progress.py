"""What a build says while it works: a stage, how far, and one line of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a build: its stage, the share of the whole build behind it (0 to 1), and a line for people."""

    stage: str
    fraction: float
    text: str


Report = Callable[[Progress], None]


@dataclass(slots=True)
class Printer:
    """A plain report for logs and bare terminals: one line a step, with the seconds since the start."""

    name: str
    out: TextIO
    started: float = field(default_factory=time.monotonic)

    def __call__(self, progress: Progress) -> None:
        """Print one step."""
        seconds = time.monotonic() - self.started
        line = f"{self.name}: {progress.fraction:4.0%} {seconds:5.1f}s  {progress.stage}: {progress.text}"
        print(line, file=self.out, flush=True)


def within(report: Report, least: float, most: float) -> Report:
    """Give a part of the build its own scale from 0 to 1, laid into `least`..`most` of the whole."""

    def scaled(progress: Progress) -> None:
        fraction = least + (most - least) * progress.fraction
        report(Progress(progress.stage, fraction, progress.text))

    return scaled
