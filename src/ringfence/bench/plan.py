"""How much is measured: a quick look that ends within a minute, or enough rounds to trust a p99."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ringfence.bench.latency import Pace

MEASURES: Final = (
    "oneshot",
    "numpy",
    "pandas",
    "throughput",
    "density",
    "interactive",
    "runtimes",
    "egress",
    "ingress",
    "e2b",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes. `calm_part` is the part of a measure's time that may go into waiting for a calm machine."""

    oneshot: Pace
    numpy: Pace
    pandas: Pace
    interactive: Pace
    runtimes: Pace
    egress: Pace
    ingress: Pace  # of the requests that are sent one by one
    e2b: Mapping[str, int]  # rounds of both clients, by way to isolate
    edge_seconds: Mapping[int, float]  # of each load on published ports, by number of connections
    published: int
    load_seconds: Mapping[int, float]  # by number of connections
    yardstick_seconds: float
    density: int
    seconds: float  # no new measure begins after this
    calm_part: float = 0.4
    measures: tuple[str, ...] = MEASURES


FULL: Final = Plan(
    oneshot=Pace(300, 60),
    numpy=Pace(80, 60),
    pandas=Pace(30, 45),
    interactive=Pace(60, 30),
    runtimes=Pace(30, 90),
    egress=Pace(150, 60),
    ingress=Pace(2000, 15),
    e2b={"jail": 100, "container": 20, "gvisor": 15},
    edge_seconds={1: 3, 8: 5, 64: 5},
    published=1000,
    load_seconds={1: 4, 2: 4, 8: 5, 64: 5},
    yardstick_seconds=3,
    density=200,
    seconds=900,
)
QUICK: Final = Plan(
    oneshot=Pace(40, 5),
    numpy=Pace(12, 4.5),
    pandas=Pace(3, 2),
    interactive=Pace(15, 3),
    runtimes=Pace(3, 9),
    egress=Pace(20, 4),
    ingress=Pace(300, 2),
    e2b={"jail": 15, "container": 5, "gvisor": 5},
    edge_seconds={8: 1.0},
    published=50,
    load_seconds={1: 0.7, 2: 0.7, 8: 2.0, 64: 1.0},
    yardstick_seconds=0.7,
    density=100,
    seconds=36,
    measures=("oneshot", "numpy", "throughput", "density", "interactive"),
)


class Clock:
    """The time since the bench began."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds

    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    def over(self) -> bool:
        """True when nothing new should begin."""
        return self.spent() > self._seconds
