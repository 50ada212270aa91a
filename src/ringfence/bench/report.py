"""The figures that are promised, beside their bars; and the one object a bench gives. Pure: no machine is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ringfence.bench.latency import Rounds
from ringfence.bench.stats import paired, ratio

Report = dict[str, Any]
PROMISED_DENSITY: Final = 2000
PROMISED_PORTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise: a figure of the report and the least or most it may be."""

    figure: str
    limit: float
    least: bool
    words: str


BARS: Final = (
    Bar("oneshot_ratio", 0.35, least=False, words="one-shot p50 over the unsandboxed run behind the same server"),
    Bar("oneshot_numpy_ratio", 0.1, least=False, words="the same with `import numpy` on both sides"),
    Bar("runs_per_second_8", 400, least=True, words="one-shot runs a second on 8 connections, none failing"),
    Bar("container_warm_ms", 5, least=False, words="a warm container claimed, to its first output"),
    Bar("gvisor_warm_ms", 20, least=False, words="a warm sandbox under gVisor claimed, to its first output"),
    Bar("egress_none_ratio", 1.05, least=False, words="a one-shot run with the policy `none` over one without, p50"),
    Bar("egress_policy_ms", 3, least=False, words="what a policy adds to a one-shot run with a warm slot, p50"),
    Bar("ingress_added_ms", 3, least=False, words="what a published port adds to the server hit directly, p50"),
    Bar("idle_charged_mib", 1.2, least=False, words="memory charged per idle sandbox, every one answering"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what became of it: `passed` is None for a figure that was not measured."""

    figure: str
    value: float | None
    bar: str
    passed: bool | None
    note: str


def _p50(report: Report, measure: str, row: str) -> float | None:
    found = report.get("latency", {}).get(measure, {}).get("rows", {}).get(row)
    return found.p50 if found is not None else None


def _warm_p50(report: Report, runtime: str) -> float | None:
    found = report.get("runtimes", {}).get("runtimes", {}).get(runtime, {}).get("warm_code")
    return found.p50 if found is not None else None


def _egress(report: Report, figure: str, row: str) -> float | None:
    found = report.get("egress", {}).get(figure, {}).get(row)
    return found.p50 if found is not None else None


def _ingress_added(report: Report) -> float | None:
    found = report.get("ingress", {}).get("added_ms", {}).get("ringfence")
    return found.p50 if found is not None else None


def _load_of(report: Report, side: str, connections: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get("throughput", {}).get(side, {}).get(str(connections), {})
    return found


def headline(report: Report) -> Report:
    """The figures to look at first, by the names they are promised under."""
    density = report.get("density", {})
    oneshot, baseline = _p50(report, "oneshot", "ringfence"), _p50(report, "oneshot", "unfenced")
    numpy, numpy_baseline = _p50(report, "numpy", "ringfence"), _p50(report, "numpy", "unfenced")
    return {
        "oneshot_ratio": ratio(oneshot, baseline),
        "oneshot_numpy_ratio": ratio(numpy, numpy_baseline),
        "runs_per_second_8": _load_of(report, "ringfence", 8).get("per_second"),
        "container_warm_ms": _warm_p50(report, "container"),
        "gvisor_warm_ms": _warm_p50(report, "gvisor"),
        "egress_none_ratio": _egress(report, "ratio_to_unsaid_in_pairs", "none"),
        "egress_policy_ms": _egress(report, "added_ms", "one_rule"),
        "ingress_added_ms": _ingress_added(report),
        "idle_charged_mib": density.get("idle_charged_mib"),
        "oneshot_p50_ms": oneshot,
        "baseline_p50_ms": baseline,
        "bare_p50_ms": _p50(report, "oneshot", "bare"),
        "oneshot_numpy_p50_ms": numpy,
        "baseline_numpy_p50_ms": numpy_baseline,
        "failures": failures(report),
        "density_n": density.get("alive"),
        "execs_answered": density.get("execs_answered"),
    }


def failures(report: Report) -> int:
    """Every run that did not do what it should, in any measure."""
    rows: list[int] = [count for each in report.get("latency", {}).values() for count in each["failures"].values()]
    loads: list[int] = [load["failures"] for side in report.get("throughput", {}).values() for load in side.values()]
    density = report.get("density", {})
    silent: int = density.get("asked_for", 0) - density.get("execs_answered", 0)
    policies: int = sum(report.get("egress", {}).get("failures", {}).values())
    clients = int(report.get("e2b", {}).get("failures", 0))
    return silent + sum(rows) + sum(loads) + policies + clients + _misled(report)


def _misled(report: Report) -> int:
    """Answers through published ports that were wrong, late or somebody else's."""
    found = report.get("ingress", {})
    loads: list[int] = [load["failures"] for load in found.get("loads", {}).get("ringfence", {}).values()]
    return int(found.get("wrong_answers", 0)) + int(found.get("strangers_let_in", 0)) + sum(loads)


def verdicts(report: Report) -> list[Verdict]:
    """Each bar, passed or short."""
    return [_verdict(bar, report) for bar in BARS]


def _verdict(bar: Bar, report: Report) -> Verdict:
    value = report.get(bar.figure)
    sign = ">=" if bar.least else "<="
    words = f"{sign} {bar.limit:g}"
    if value is None:
        return Verdict(bar.figure, None, words, None, "not measured")
    passed, note = (value >= bar.limit if bar.least else value <= bar.limit), ""
    if bar.figure == "runs_per_second_8":
        failed = _load_of(report, "ringfence", 8).get("failures", 0)
        passed, note = passed and not failed, f"{failed} failed"
    if bar.figure == "ingress_added_ms":
        wrong, ports = _misled(report), report["ingress"]["asked_for"]
        passed, note = passed and not wrong, f"{wrong} wrong answers of {ports} published"
        if ports < PROMISED_PORTS:
            note += f"; the promise is for {PROMISED_PORTS}"
    if bar.figure == "idle_charged_mib":
        alive, answered = report.get("density_n") or 0, report.get("execs_answered") or 0
        passed, note = passed and alive == answered, f"{answered} of {alive} answered"
        if alive < PROMISED_DENSITY:
            note += f"; the promise is for {PROMISED_DENSITY} (--density {PROMISED_DENSITY})"
    return Verdict(bar.figure, value, words, passed, note)


def of_rounds(rounds: Rounds, names: Sequence[str], steps: Mapping[str, Any]) -> Report:
    """One latency measure: percentiles by row, ratios pair by pair, and where ringfence's time went."""
    return {
        "rows": {name: rounds.of(name) for name in names},
        "ratio_to_unfenced_in_pairs": {name: paired(rounds.samples, name, "unfenced") for name in names},
        "steps": dict(steps),
        "failures": rounds.failures,
        "reasons": rounds.reasons[:10],
        "rounds": len(rounds.samples),
        "calm_samples": rounds.calm,
        "forced_samples": rounds.forced,
    }
