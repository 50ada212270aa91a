"""`ringfence bench`: measure this machine, beside other ways to run the same program, and say whether promises hold.

What comes in is what the command line parsed: `names` of measures (none: all), `quick`, `seconds` (of each load),
`density`, `published`, `plot` and `save` (files), `check`, `state`, `json`, `colour`. A private server is always
started for it.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.text import Text

from ringfence import config
from ringfence.bench.measure import bench
from ringfence.bench.plan import FULL, MEASURES, QUICK, Plan
from ringfence.bench.report import Report
from ringfence.bench.tables import show
from ringfence.domain.errors import BadRequest

DONE: Final = 0
NOT_DONE: Final = 1
PIPE_WIDTH: Final = 160
MOST_DENSITY: Final = 4000  # one zygote's sandboxes


def planned(options: Mapping[str, Any]) -> Plan:
    """What to measure. Raises BadRequest for a measure there is not, or a density past what one zygote holds."""
    plan = QUICK if options.get("quick") else FULL
    names = tuple(options.get("names") or ())
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise BadRequest(
            f"no measure called {', '.join(unknown)}",
            code="unknown_measure",
            remediation=f"known are {', '.join(MEASURES)}",
        )
    counts = {name: options[name] for name in ("density", "published") if options.get(name) is not None}
    for name, count in counts.items():
        if not 1 <= count <= MOST_DENSITY:
            raise BadRequest(f"{name} must be from 1 to {MOST_DENSITY}", code="bad_density")
    if options.get("url"):
        raise BadRequest(
            "a bench always starts a server of its own: only then it knows what it measures", code="not_private"
        )
    changed: dict[str, Any] = {"measures": names, **counts} if names else dict(counts)
    if options.get("seconds"):
        for name in ("load_seconds", "edge_seconds"):
            changed[name] = dict.fromkeys(getattr(plan, name), float(options["seconds"]))
    return dataclasses.replace(plan, **changed)


def _put(path: str, data: bytes) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def _console(colour: bool) -> Console:
    tty = sys.stdout.isatty()
    return Console(highlight=False, no_color=None if colour else True, width=None if tty else PIPE_WIDTH)


def _say(words: str) -> None:
    if sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(Text(words, style="dim"))


def code(report: Report, *, check: bool) -> int:
    """0 when everything ran; with `check`, only when every promise held too."""
    if report["failed"] or report["left"]:
        return NOT_DONE
    return NOT_DONE if check and not all(each.passed for each in report["bars"]) else DONE


def _stop(number: int, _: FrameType | None) -> None:
    """Whoever ends a bench still gets everything cleared away."""
    raise SystemExit(128 + number)


def main(options: Mapping[str, Any]) -> int:
    """Measure and tell. Raises RingfenceError when nothing could be measured at all."""
    plan = planned(options)
    signal.signal(signal.SIGTERM, _stop)
    settings = config.read_server(state=options.get("state"))
    plot, save = options.get("plot"), options.get("save")
    report, picture = bench(plan, settings.templates_dir, plot=bool(plot), say=_say)
    data = msgspec.json.encode(report)
    if save:
        _put(save, msgspec.json.format(data, indent=2) + b"\n")
    if plot and picture is not None:
        _put(plot, picture)
    if options.get("json"):
        sys.stdout.write(data.decode() + "\n")
    else:
        show(_console(bool(options.get("colour", True))), report)
    sys.stdout.flush()
    return code(report, check=bool(options.get("check")))
