"""Samples as percentiles and ratios. Medians travel between machines; means follow whoever disturbed the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Round = Mapping[str, float]  # one sample of each row that took part


@dataclass(frozen=True, slots=True)
class Summary:
    """A set of samples, in their own unit (milliseconds unless a name says otherwise)."""

    n: int
    p5: float
    p50: float
    p95: float
    p99: float


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of an ordered, non-empty sequence lies, interpolated."""
    at = part * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(values: Sequence[float]) -> Summary | None:
    """The percentiles, or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(len(ordered), *(round(percentile(ordered, part), 4) for part in (0.05, 0.50, 0.95, 0.99)))


def column(rounds: Sequence[Round], name: str) -> list[float]:
    """Every sample of one row."""
    return [each[name] for each in rounds if name in each]


def paired(rounds: Sequence[Round], above: str, below: str) -> Summary | None:
    """`above` divided by `below` within each round that has both: what slowed one round down slowed both."""
    return summary([each[above] / each[below] for each in rounds if each.get(below) and above in each])


def apart(rounds: Sequence[Round], above: str, below: str) -> Summary | None:
    """`above` less `below` within each round that has both."""
    return summary([each[above] - each[below] for each in rounds if below in each and above in each])


def ratio(above: float | None, below: float | None) -> float | None:
    """One figure over another; None when either is missing."""
    return round(above / below, 4) if above is not None and below else None
