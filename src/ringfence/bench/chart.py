"""Draws a bench's report. This file is not run here: it is sent into a sandbox, which has the libraries for it."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

OURS: Final = "#1f6f8b"
OTHERS: Final = "#b8b8b8"
BASE: Final = "#d98e04"
MEASURES: Final = ("oneshot", "numpy", "pandas")
PHASES: Final = ("queue", "claim", "start", "run", "collect", "http_and_api")


def colour(row: str) -> str:
    """Ours, the yardstick, or another's."""
    return OURS if row.startswith("ringfence") else BASE if row == "unfenced" else OTHERS


def latencies(axes: Any, title: str, measure: dict[str, Any]) -> None:
    """One bar a row, its p50 written beside it, a whisker to its p95."""
    rows = [(name, found) for name, found in measure["rows"].items() if found]
    rows.sort(key=lambda row: row[1]["p50"], reverse=True)
    names = [name for name, _ in rows]
    middles = [found["p50"] for _, found in rows]
    spread = [found["p95"] - found["p50"] for _, found in rows]
    bars = axes.barh(names, middles, color=[colour(name) for name in names], xerr=[[0] * len(rows), spread])
    axes.bar_label(bars, [f" {middle:.1f}" for middle in middles], label_type="center")
    axes.set_title(f"{title}: ms to the completed answer (p50; the whisker ends at p95)")


def loads(axes: Any, title: str, sides: dict[str, Any]) -> None:
    """How many a second by number of connections, ours beside others."""
    width = 0.8 / len(sides)
    for at, (side, found) in enumerate(sides.items()):
        places = [place + width * at for place in range(len(found))]
        values = [load["per_second"] for load in found.values()]
        bars = axes.bar(places, values, 0.95 * width, label=side, color=colour(side), alpha=1 - 0.3 * (at % 2))
        axes.bar_label(bars, [f"{value:.0f}" for value in values])
        axes.set_xticks([place + width * (len(sides) - 1) / 2 for place in range(len(found))], list(found))
    axes.legend()
    axes.set_title(title)


def steps(axes: Any, latency: dict[str, Any]) -> None:
    """Where the time of one run goes."""
    for title, measure in latency.items():
        left = 0.0
        for at, phase in enumerate(PHASES):
            found = (measure.get("steps") or {}).get(phase)
            width = found["p50"] if found else 0.0
            axes.barh([title], [width], left=left, color=f"C{at}", label=phase if title == "oneshot" else None)
            left += width
    axes.legend(fontsize="small")
    axes.set_title("where the time goes (p50 of each step, ms)")


def network(report: dict[str, Any]) -> list[Callable[[Any], None]]:
    """Pictures of what leaves a sandbox and of what comes to it."""
    egress, ingress = report.get("egress") or {}, report.get("ingress") or {}
    pictures: list[Callable[[Any], None]] = []
    if egress.get("latency_ms"):
        rows = {f"ringfence, {name}": found for name, found in egress["latency_ms"].items()}
        pictures.append(functools.partial(latencies, title="one-shot by egress policy", measure={"rows": rows}))
    if ingress.get("latency_ms"):
        count, rows = ingress["asked_for"], {"rows": ingress["latency_ms"]}
        pictures.append(functools.partial(latencies, title=f"a GET, {count} published", measure=rows))
        pictures.append(functools.partial(loads, title="requests a second, by connections", sides=ingress["loads"]))
    return pictures


def draw(report: dict[str, Any], place: str) -> None:
    """The whole picture, into one file."""
    plots = importlib.import_module("matplotlib.pyplot")
    latency = report.get("latency") or {}
    pictures: list[Callable[[Any], None]] = [
        functools.partial(latencies, title=name, measure=latency[name]) for name in MEASURES if name in latency
    ]
    if report.get("throughput"):
        title = "one-shot runs a second, by connections"
        pictures.append(functools.partial(loads, title=title, sides=report["throughput"]))
    pictures += network(report)
    if latency:
        pictures.append(functools.partial(steps, latency=latency))
    height = (len(pictures) + 1) // 2
    figure, grid = plots.subplots(height, 2, figsize=(15, 4.2 * height), squeeze=False)
    for axes, picture in zip(grid.flat, pictures, strict=False):
        picture(axes)
    for axes in grid.flat[len(pictures) :]:
        axes.axis("off")
    machine = report["machine"]
    figure.suptitle(f"ringfence bench: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}")
    figure.tight_layout()
    figure.savefig(place, dpi=100)


if __name__ == "__main__":
    draw(json.loads(Path("bench.json").read_text()), "bench.png")
