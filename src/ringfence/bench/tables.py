"""A report as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringfence.bench.report import Report
from ringfence.bench.stats import Summary, ratio

LABELS: Final = {
    "bare": "python3 -c, nothing around it",
    "unfenced": "python3 -c behind the same server, unsandboxed",
    "ringfence": "ringfence over HTTP, warm",
    "ringfence_exec": "ringfence over HTTP, exec of python3 -c",
    "bwrap": "bubblewrap --unshare-all",
    "runc": "runc run",
    "crun": "crun run",
    "nsjail": "nsjail",
    "firejail": "firejail",
    "runsc": "runsc run (gVisor)",
}
POLICY_WORDS: Final = {
    "unsaid": "no policy",
    "none": "the policy none",
    "one_rule": "a policy of one rule",
    "many_rules": "a policy of twenty rules",
}
WAY_WORDS: Final = {
    "direct": "the server hit directly",
    "traefik": "Traefik alone before it",
    "ringfence": "ringfence, to any of the sandboxes",
}
CLIENT_WORDS: Final = {
    "create": "create a sandbox",
    "first_command": "first command, a login shell's echo",
    "first_code": "first run_code",
    "next_code": "next run_code",
    "up": "1 MB up",
    "down": "1 MB down",
    "kill": "kill",
}
INGRESS_WORDS: Final = {
    "asked_for": "published at once",
    "wrong_answers": "answers that were not the sandbox's own, asking each",
    "strangers_tried": "requests of strangers",
    "strangers_let_in": "  of them let in",
    "charged_mib": "charged per published sandbox, its server included (MiB)",
    "node_and_api_mib": "node and api grew by, per sandbox (MiB)",
    "open_seconds": "seconds to create, publish and link them all",
    "close_seconds": "seconds to stop them all",
}
TITLES: Final = {
    "oneshot": "One-shot: print(1), to the completed answer",
    "numpy": "One-shot with import numpy",
    "pandas": "One-shot with import pandas",
}
STEP_WORDS: Final = {
    "queue": "waiting for a warm sandbox",
    "claim": "taking it",
    "start": "request to first instruction",
    "run": "the program",
    "collect": "its end to the answer",
    "http_and_api": "HTTP, api and the way to the node",
    "create": "create a sandbox",
    "create_to_first_byte": "create to the first byte of an echo",
    "first_code": "first code",
    "next_code": "next code",
    "delete": "delete, answered when nothing is left",
}
RUNTIME_WORDS: Final = {
    "cold": "a sandbox from nothing",
    "warm_code": "warm claim to first output, code",
    "warm_exec": "warm claim to first output, exec",
    "live_exec": "exec in a live sandbox, to first output",
    "live_code": "code in a live sandbox, to first output",
    "stop": "stop, until nothing is left",
}
DENSITY_WORDS: Final = {
    "alive": "alive at once",
    "execs_answered": "answered an exec",
    "idle_charged_mib": "charged per idle sandbox, kernel memory included (MiB)",
    "used_charged_mib": "charged per sandbox after its exec (MiB)",
    "pss_mib": "proportional set size per sandbox, zygotes included (MiB)",
    "node_and_api_mib": "node and api grew by, per sandbox (MiB)",
    "machine_mib": "what the machine lost per sandbox, whoever is charged for it (MiB)",
    "available_mib": "MemAvailable lost per sandbox (MiB)",
    "server_mib": "the server itself, zygotes included (MiB)",
    "fit_in_4_gib": "would fit in 4 GiB beside it",
    "create_seconds": "seconds to create them all",
    "exec_seconds": "seconds until every one had answered",
    "stop_seconds": "seconds to stop them all",
}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if not at else "right")
    return table


def number(value: Any) -> str:
    """A figure with as many digits as mean something."""
    if value is None:
        return "-"
    if isinstance(value, str | bool | int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _percentiles(found: Summary | None) -> list[str]:
    return [number(found.p50), number(found.p95), number(found.p99)] if found else ["-", "-", "-"]


def bars(report: Report) -> Table:
    """What is promised, and whether it held here."""
    table = _table("Promised", "figure", "measured", "promise", "verdict", "note")
    table.columns[4].justify = "left"
    for each in report["bars"]:
        word, style = ("-", "dim") if each.passed is None else ("pass", "green") if each.passed else ("short", "red")
        table.add_row(each.figure, number(each.value), each.bar, Text(word, style), each.note)
    return table


def _latency(name: str, measure: Report) -> Table:
    table = _table(TITLES[name] + " (ms)", "", "p50", "p95", "p99", "n", "x unsandboxed", "pair by pair, p5-p95")
    base = measure["rows"].get("unfenced")
    rows = [(row, found) for row, found in measure["rows"].items() if found is not None]
    for row, found in sorted(rows, key=lambda each: each[1].p50):
        pairs = measure["ratio_to_unfenced_in_pairs"][row]
        spread = f"{number(pairs.p5)}-{number(pairs.p95)}" if pairs else "-"
        times = number(ratio(found.p50, base.p50 if base else None))
        style = "bold" if row == "ringfence" else ""
        table.add_row(Text(LABELS[row], style), *_percentiles(found), str(found.n), times, spread)
    return table


def _steps(title: str, steps: Report, words: Sequence[str]) -> Table:
    table = _table(title, "", "p50", "p95", "p99")
    for name in words:
        if steps.get(name) is not None:
            table.add_row(STEP_WORDS[name], *_percentiles(steps[name]))
    return table


def _throughput(report: Report) -> Iterator[Table]:
    sides = report["throughput"]
    table = _table(
        "One-shot runs a second",
        "connections", "ringfence", "p50 ms", "p99 ms", "failed", "left to tear down", "torn down in s", "unsandboxed",
    )  # fmt: skip
    for connections, load in sides["ringfence"].items():
        found, plain = load["latency_ms"], sides["unfenced"].get(connections, {})
        table.add_row(
            connections, number(load["per_second"]), number(found.p50 if found else None),
            number(found.p99 if found else None), str(load["failures"]), str(load["backlog_sandboxes"]),
            number(load["backlog_seconds"]), number(plain.get("per_second")),
        )  # fmt: skip
    yield table
    parts = list(dict.fromkeys(part for load in sides["ringfence"].values() for part in load["cpu_ms_per_run"]))
    table = _table("Processor time per run (ms)", "connections", *(part.replace("_", " ") for part in parts), "sum")
    for connections, load in sides["ringfence"].items():
        spent = load["cpu_ms_per_run"]
        table.add_row(connections, *(number(spent.get(part)) for part in parts), number(sum(spent.values())))
    yield table


def _density(density: Report) -> Table:
    table = _table(f"Idle sandboxes of {density['template']}", "", "")
    for name, words in DENSITY_WORDS.items():
        if name in density:
            table.add_row(words, number(density[name]))
        if name == "machine_mib":
            for kind, value in density.get("machine_mib_by_kind", {}).items():
                table.add_row(f"  of it {kind}", number(value))
    return table


def _runtimes(found: Report) -> Table:
    """A column per runtime; below, the tools by hand."""
    names = list(found["runtimes"])
    table = _table(f"Ways to isolate, template {found['template']} (ms: p50, p95)", "", *names)
    for step, words in RUNTIME_WORDS.items():
        cells = [found["runtimes"][name].get(step) for name in names]
        table.add_row(words, *(f"{number(each.p50)}  {number(each.p95)}" if each else "-" for each in cells))
    idle = [number(found["runtimes"][name]["idle_charged_mib"]) for name in names]
    table.add_row("charged per idle sandbox (MiB)", *idle)
    for tool, each in found["by_hand"].items():
        if each is not None:
            table.add_row(f"{LABELS[tool]} by hand, to its end", f"{number(each.p50)}  {number(each.p95)}")
    return table


def _egress(found: Report) -> Iterator[Table]:
    table = _table("One-shot with an egress policy (ms)", "", "p50", "p95", "p99", "n", "added, p50", "p5-p95")
    for name, each in found["latency_ms"].items():
        added = found["added_ms"][name]
        spread = f"{number(added.p5)}-{number(added.p95)}" if added else "-"
        cells = [str(each.n) if each else "-", number(added.p50 if added else None), spread]
        table.add_row(POLICY_WORDS[name], *_percentiles(each), *cells)
    yield table
    if "connection_ms" in found:
        table = _table("A connection and a byte each way (ms)", "", "p50", "p95", "p99")
        for name, words in (("direct", "a plain process"), ("gate", "from a sandbox, through the gate")):
            table.add_row(words, *_percentiles(found["connection_ms"][name]))
        yield table


def _ingress(found: Report) -> Iterator[Table]:
    table = _table("Published sandboxes", "", "")
    for name, words in INGRESS_WORDS.items():
        table.add_row(words, number(found.get(name)))
    yield table
    table = _table("One request after the other (ms)", "", "p50", "p95", "p99", "added, p50", "added, p99")
    for name, each in found["latency_ms"].items():
        added = found["added_ms"].get(name)
        cells = [number(added.p50), number(added.p99)] if added else ["-", "-"]
        table.add_row(WAY_WORDS[name], *_percentiles(each), *cells)
    yield table
    columns = [f"{name}, {part}" for name in found["loads"] for part in ("a second", "p50 ms", "p99 ms")]
    table = _table("Requests under load", "connections", *columns, "failed", "api ms", "node ms", "sandboxes ms")
    for connections, ours in found["loads"]["ringfence"].items():
        row = []
        for load in (side[connections] for side in found["loads"].values()):
            taken = load["latency_ms"]
            row += [number(load["per_second"]), *([number(taken.p50), number(taken.p99)] if taken else ["-", "-"])]
        cpu = ours.get("cpu_ms_per_request", {})
        spent = [number(cpu.get(part)) for part in ("api", "node", "sandboxes")]
        table.add_row(connections, *row, str(ours["failures"]), *spent)
    yield table


def _clients(found: Report) -> Iterator[Table]:
    """A table for each way to isolate: what either client takes for each step, and theirs over ours."""
    for isolation, each in found["isolations"].items():
        title = f"E2B's client beside ours: {isolation}, template {found['template']} (ms)"
        table = _table(title, "", "e2b p50", "p99", "ringfence p50", "p99", "e2b / ringfence, pairs p50", "n")
        for step, words in CLIENT_WORDS.items():
            theirs, ours, times = (each[side].get(step) for side in ("e2b", "ringfence", "ratio_in_pairs"))
            cells = [number(value) for one in (theirs, ours) for value in ((one.p50, one.p99) if one else (None, None))]
            table.add_row(words, *cells, number(times.p50 if times else None), str(ours.n if ours else 0))
        yield table


def tables(report: Report) -> Iterator[Table]:
    """Every table there are figures for."""
    yield bars(report)
    for name, measure in report["latency"].items():
        yield _latency(name, measure)
    if "oneshot" in report["latency"]:
        steps = report["latency"]["oneshot"]["steps"]
        yield _steps("Where the time of ringfence's print(1) goes (ms)", steps, list(STEP_WORDS)[:6])
    if "throughput" in report:
        yield from _throughput(report)
    if "density" in report:
        yield _density(report["density"])
    if "runtimes" in report:
        yield _runtimes(report["runtimes"])
    if "egress" in report:
        yield from _egress(report["egress"])
    if "ingress" in report:
        yield from _ingress(report["ingress"])
    if "e2b" in report:
        yield from _clients(report["e2b"])
    if "interactive" in report:
        yield _steps(
            f"A sandbox that stays, {report['interactive']['template']} (ms)", report["interactive"], list(STEP_WORDS)
        )


def remarks(report: Report) -> Iterator[str]:
    """What must be known to read the figures."""
    machine, walls, load = report["machine"], report["walls"], report["load_average"]
    kind = "virtual machine" if machine["virtual_machine"] else "bare metal"
    yield f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']} MiB, {kind}"
    yield f"{machine['system']}, Linux {machine['kernel']}; {report['versions']['measured_python']}"
    yield f"load average at the start {load['start']}, at the end {load['end']}; took {report['seconds']} s"
    count, missing = len(walls.in_force), ", ".join(walls.missing)
    layers = f"all {count} layers in force" if walls.all else f"{count} layers in force, MISSING: {missing}"
    yield f"ringfence: runtime {walls.runtime}, {layers}, limits by {walls.limits_by}"
    for name, measure in report["latency"].items():
        forced, total = measure["forced_samples"], measure["calm_samples"] + measure["forced_samples"]
        if forced:
            yield f"{name}: {forced} of {total} samples were taken although others used the processors"
    for measure in ("egress", "ingress", "e2b"):
        for name, why in report.get(measure, {}).get("absent", {}).items():
            yield f"{measure}: {name} not measured: {why}"
    if report.get("e2b", {}).get("version"):
        yield f"E2B's client: {report['e2b']['version']}, unmodified"
    yield from (f"e2b: {reason}" for reason in report.get("e2b", {}).get("reasons", ()))
    absent = [f"{name} ({peer['state']})" for name, peer in report["peers"].items() if peer["state"] != "measured"]
    if absent:
        yield f"peers not measured: {', '.join(absent)}"
    for name, peer in report["peers"].items():
        if peer["state"] == "measured":
            yield f"{name} encloses: {peer['encloses']} ({peer['version']})"
    yield from (f"FAILED {name}: {why}" for name, why in report["failed"].items())
    if report["left_out"]:
        yield f"left out for lack of time: {', '.join(report['left_out'])}"
    yield f"left behind: {'; '.join(report['left']) or 'nothing'}"


def show(console: Console, report: Report) -> None:
    """Write it all."""
    for table in tables(report):
        console.print(table)
        console.print()
    for remark in remarks(report):
        console.print(Text(remark))
