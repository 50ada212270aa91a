"""Percentiles and ratios, as a bench reports them."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.bench.stats import Summary, apart, column, paired, percentile, ratio, summary

SAMPLES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)


@given(SAMPLES)
def test_the_middle_is_the_median(samples: list[float]) -> None:
    """The 50th percentile is what everybody calls the median."""
    assert percentile(sorted(samples), 0.5) == pytest.approx(statistics.median(samples))


@given(SAMPLES)
def test_percentiles_are_in_order_and_within_the_samples(samples: list[float]) -> None:
    """No percentile lies outside of what was measured, and a higher one is not lower."""
    found = summary(samples)
    assert found is not None
    parts = [found.p5, found.p50, found.p95, found.p99]
    assert parts == sorted(parts)
    assert min(samples) - 1e-3 <= found.p5
    assert found.p99 <= max(samples) + 1e-3


def test_nothing_measured_has_no_percentiles() -> None:
    """An empty row is absent, not zero."""
    assert summary([]) is None
    assert column([{"a": 1.0}, {}], "b") == []


def test_differences_are_taken_within_a_round() -> None:
    """What disturbed both sides of a round is no difference between them."""
    found = apart([{"a": 3.0, "b": 1.0}, {"a": 102.0, "b": 100.0}, {"a": 5.0}], "a", "b")
    assert found == Summary(2, 2.0, 2.0, 2.0, 2.0)


def test_ratios_are_taken_within_a_round() -> None:
    """A round that was slow for both counts as much as a quick one; a round that lacks either does not count."""
    rounds = [{"ours": 1.0, "base": 2.0}, {"ours": 50.0, "base": 100.0}, {"ours": 1.0}, {"base": 1.0}]
    assert paired(rounds, "ours", "base") == Summary(2, 0.5, 0.5, 0.5, 0.5)


def test_a_ratio_needs_both_figures() -> None:
    """What was not measured gives no ratio, rather than a good one."""
    assert ratio(1.0, 4.0) == 0.25
    assert [ratio(None, 4.0), ratio(1.0, None), ratio(1.0, 0.0)] == [None, None, None]
