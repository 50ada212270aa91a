"""What a bench says: its figures, its verdicts, its tables and its one object."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from ringfence.bench import report as module
from ringfence.bench.command import code, planned
from ringfence.bench.latency import Rounds
from ringfence.bench.plan import FULL, QUICK
from ringfence.bench.report import headline, of_rounds, verdicts
from ringfence.bench.server import Walls
from ringfence.bench.stats import summary
from ringfence.bench.tables import number, show
from ringfence.domain.errors import BadRequest

NEEDED = {
    "oneshot_ratio", "oneshot_numpy_ratio", "runs_per_second_8", "idle_charged_mib", "oneshot_p50_ms",
    "baseline_p50_ms", "failures", "density_n", "execs_answered", "peers", "bars", "left", "walls",
}  # fmt: skip


def load(per_second: float, failures: int = 0) -> dict[str, Any]:
    """One load's figures."""
    return {
        "per_second": per_second, "failures": failures, "latency_ms": summary([1.0, 2.0]), "backlog_sandboxes": 3,
        "backlog_seconds": 0.02, "cpu_ms_per_run": {"api": 0.4, "node": 0.6},
    }  # fmt: skip


def rounds(ours: float, base: float) -> dict[str, Any]:
    """A latency measure of two rows."""
    names = ["bare", "unfenced", "ringfence"]
    found = Rounds([dict(zip(names, (base, base, ours), strict=True))] * 5)
    return of_rounds(found, names, {"run": summary([0.1, 0.2])})


def policies(added: float = 1.0) -> dict[str, Any]:
    """What policies cost."""
    names, same = ("unsaid", "none", "one_rule", "many_rules"), summary([0.0])
    costs = {name: summary([added]) if "rule" in name else same for name in names}
    return {
        "latency_ms": {name: summary([3.0]) for name in names}, "added_ms": costs, "failures": {},
        "ratio_to_unsaid_in_pairs": {name: summary([1.0]) for name in names}, "rounds": 1,
        "connection_ms": {"direct": summary([0.1]), "gate": summary([1.2])},
    }  # fmt: skip


def ports(count: int = 1000, **changed: Any) -> dict[str, Any]:
    """What published ports cost."""
    ways = ("direct", "traefik", "ringfence")
    return {
        "asked_for": count, "wrong_answers": 0, "strangers_tried": 3 * count, "strangers_let_in": 0, "absent": {},
        "latency_ms": {name: summary([0.5]) for name in ways}, "added_ms": {"ringfence": summary([1.5])},
        "loads": {name: {"8": load(600.0)} for name in ways},
    } | changed  # fmt: skip


def clients(**changed: Any) -> dict[str, Any]:
    """What E2B's client takes beside ours."""
    steps = ("create", "first_command", "first_code", "next_code", "up", "down", "kill")
    rows = {name: {step: summary([2.0]) for step in steps} for name in ("e2b", "ringfence", "ratio_in_pairs")}
    return {
        "template": "code-interpreter-v1", "absent": {}, "version": "e2b 2.0", "failures": 0, "reasons": [],
        "isolations": {"jail": rows},
    } | changed  # fmt: skip


def made(**changed: Any) -> dict[str, Any]:
    """A whole report in which every promise holds."""
    base: dict[str, Any] = {
        "latency": {"oneshot": rounds(2.0, 8.0), "numpy": rounds(2.5, 50.0)},
        "throughput": {"ringfence": {"8": load(500.0)}, "unfenced": {"8": load(200.0)}},
        "density": {"template": "python", "asked_for": 2000, "alive": 2000, "execs_answered": 2000,
                    "idle_charged_mib": 1.1},
        "runtimes": {"template": "base", "by_hand": {}, "absent": {}, "runtimes": {
            name: {"warm_code": summary([4.0, 4.0]), "idle_charged_mib": 1.0} for name in ("container", "gvisor")}},
        "egress": policies(), "ingress": ports(), "e2b": clients(),
        "failed": {}, "left_out": [], "left": [], "seconds": 1.0,
        "machine": {"cpu": "c", "cores": 2, "memory_mib": 1, "virtual_machine": True, "system": "s", "kernel": "k"},
        "versions": {"measured_python": "Python 3"}, "load_average": {"start": [0], "end": [0]},
        "walls": Walls("jail", "cgroup v1", ("seccomp",), ()),
        "peers": {"runc": {"state": "absent", "version": "", "encloses": "namespaces"}},
    } | changed  # fmt: skip
    whole = {**headline(base), **base}
    return whole | {"bars": verdicts(whole)}


def verdict(report: dict[str, Any], figure: str) -> Any:
    """One verdict."""
    return next(each for each in report["bars"] if each.figure == figure)


def test_a_report_is_one_object_with_every_promised_figure() -> None:
    """It survives JSON, and has the names that scripts read."""
    report = json.loads(msgspec.json.encode(made()))
    assert set(report) >= NEEDED
    assert (report["oneshot_ratio"], report["oneshot_numpy_ratio"]) == (0.25, 0.05)
    assert [each["passed"] for each in report["bars"]] == [True] * 9


def test_a_figure_past_its_bar_is_short() -> None:
    """Slower than promised is said to be so."""
    report = made(latency={"oneshot": rounds(4.0, 8.0), "numpy": rounds(2.5, 50.0)})
    assert verdict(report, "oneshot_ratio").passed is False


def test_a_fast_load_with_failures_is_short() -> None:
    """A rate does not count when runs failed."""
    sides = {"ringfence": {"8": load(900.0, failures=1)}, "unfenced": {}}
    assert verdict(made(throughput=sides), "runs_per_second_8").passed is False


def test_small_sandboxes_that_do_not_answer_are_short() -> None:
    """Density counts only sandboxes that are alive."""
    density = {"asked_for": 100, "alive": 100, "execs_answered": 99, "idle_charged_mib": 0.5}
    found = verdict(made(density=density | {"template": "python"}), "idle_charged_mib")
    assert (found.passed, "99 of 100 answered" in found.note, "--density 2000" in found.note) == (False, True, True)


@pytest.mark.parametrize(
    "changed",
    [{"wrong_answers": 1}, {"strangers_let_in": 1}, {"loads": {"ringfence": {"8": load(600.0, failures=1)}}}],
)
def test_a_quick_edge_that_errs_is_short(changed: dict[str, Any]) -> None:
    """One wrong answer, or one stranger let in, and no latency counts."""
    found = verdict(made(ingress=ports(**changed)), "ingress_added_ms")
    assert (found.passed, "1 wrong answers of 1000" in found.note) == (False, True)


def test_fewer_published_ports_than_promised_are_told() -> None:
    """A small bench says that it was one."""
    assert "the promise is for 1000" in verdict(made(ingress=ports(50)), "ingress_added_ms").note


def test_a_dear_policy_is_short() -> None:
    """More than three milliseconds for a policy are more than was promised; none at all must cost nothing."""
    dear = policies(added=4.0) | {"ratio_to_unsaid_in_pairs": {"none": summary([1.2])}}
    report = made(egress=dear)
    assert (verdict(report, "egress_policy_ms").passed, verdict(report, "egress_none_ratio").passed) == (False, False)


def test_what_was_not_measured_is_neither_passed_nor_short() -> None:
    """A missing figure is told as missing."""
    report = made(throughput={})
    assert verdict(report, "runs_per_second_8").passed is None
    assert report["runs_per_second_8"] is None


def test_failures_of_every_measure_are_added() -> None:
    """One number says whether anything went wrong anywhere."""
    density = {"asked_for": 10, "alive": 9, "execs_answered": 8}
    report = {"latency": {"oneshot": {"failures": {"bwrap": 2}}}, "density": density}
    report["throughput"] = {"ringfence": {"8": {"failures": 3}}}
    report["ingress"] = ports(wrong_answers=1, strangers_let_in=2)
    report["e2b"] = clients(failures=4)
    assert module.failures(report) == 14


@pytest.mark.parametrize(("changed", "plain", "strict"), [
    ({}, 0, 0),
    ({"throughput": {}}, 0, 1),
    ({"failed": {"numpy": "why"}}, 1, 1),
    ({"left": ["process 1"]}, 1, 1),
])  # fmt: skip
def test_the_exit_code_is_about_running_and_with_check_about_promises(
    changed: dict[str, Any], plain: int, strict: int
) -> None:
    """A short figure is a finding, not an error, unless it was asked to be one."""
    report = made(**changed)
    assert (code(report, check=False), code(report, check=True)) == (plain, strict)


def test_people_get_tables() -> None:
    """Every figure has a row, and every remark a line."""
    out = io.StringIO()
    show(Console(file=out, width=200), made(left=["process 7"], failed={"pandas": "no such module"}))
    text = out.getvalue()
    for words in ("pass", "ringfence over HTTP", "One-shot runs a second", "alive at once", "all 1 layers in force",
                  "left behind: process 7", "FAILED pandas: no such module", "runc (absent)", "a policy of one rule",
                  "through the gate", "published at once", "Traefik alone", "Requests under load",
                  "E2B's client beside ours: jail", "first run_code", "E2B's client: e2b 2.0"):  # fmt: skip
        assert words in text


def test_a_client_that_cannot_be_fetched_is_told_and_ours_is_still_there() -> None:
    """Without a way to PyPI the bench says so, and goes on."""
    out = io.StringIO()
    none = dict.fromkeys(("create", "up"))
    rows = {"e2b": none, "ratio_in_pairs": none, "ringfence": {"create": summary([7.5])}}
    alone = clients(absent={"e2b": "cannot be fetched"}, version=None, isolations={"jail": rows})
    show(Console(file=out, width=200), made(e2b=alone))
    assert "e2b: e2b not measured: cannot be fetched" in out.getvalue()
    assert "7.50" in out.getvalue()


def test_missing_layers_are_shouted() -> None:
    """A figure without all walls is not to be taken for one with them."""
    out = io.StringIO()
    show(Console(file=out, width=200), made(walls=Walls("jail", "rlimits", ("seccomp",), ("landlock",))))
    assert "MISSING: landlock" in out.getvalue()


def test_numbers_have_the_digits_that_mean_something() -> None:
    """Three digits or so, and a dash for nothing."""
    assert [number(value) for value in (None, 7, 0.123, 12.34, 123.4, "x")] == ["-", "7", "0.12", "12.3", "123", "x"]


def test_options_change_the_plan() -> None:
    """What the command line says is what is measured."""
    assert planned({}) == FULL
    assert planned({"quick": True}) == QUICK
    plan = planned({"names": ("density",), "density": 2000, "seconds": 1.0})
    assert (plan.measures, plan.density, set(plan.load_seconds.values())) == (("density",), 2000, {1.0})
    assert planned({"published": 7}).published == 7


@pytest.mark.parametrize(
    "options", [{"names": ("speed",)}, {"density": 0}, {"density": 5000}, {"published": 0}, {"url": "http://x"}]
)
def test_impossible_benches_are_refused(options: dict[str, Any]) -> None:
    """Nothing is started for a request that makes no sense."""
    with pytest.raises(BadRequest):
        planned(options)
