"""`ringfence doctor`: what this machine can enforce, what is missing, and what would add it.

The exit code is 0 when every layer of the jail can be put in force, 1 when it runs with a layer missing (which one,
and why, is said) or another runtime that is here does not run, 2 when the jail cannot run. The host's own settings are
warned about and change no exit code, nor does a network that sandboxes cannot have: asking for one is then refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ringfence import config
from ringfence.doctor import features, host, network, trial

SOUND: Final = 0
DEGRADED: Final = 1
UNUSABLE: Final = 2
GREEN, YELLOW, RED, PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
Trial = Callable[[Path], list[dict[str, Any]]]


def verdict(found: Sequence[features.Feature], runtimes: Sequence[Mapping[str, Any]]) -> int:
    """The exit code for these findings; the jail is the first runtime. One that is absent is no fault."""
    lacking = [feature for feature in found if feature.needed and not feature.ok]
    if lacking or runtimes[0]["usable"] is False:
        return UNUSABLE
    # Elsewhere a layer can be missing by nature: gVisor's kernel has no Landlock, and nothing that it would guard.
    missing = [layer for layer in runtimes[0]["layers"] if not layer["in_force"]]
    failing = [runtime for runtime in runtimes if runtime["usable"] is False]
    return DEGRADED if missing or failing else SOUND


def gather(templates: Path, attempt: Trial = trial.run) -> dict[str, Any]:
    """Everything, as the JSON shows it."""
    found = features.examine()
    lacking = [feature.name for feature in found if feature.needed and not feature.ok]
    if lacking:
        trouble = f"this machine lacks {', '.join(lacking)}"
        runtimes = [trial.blank("jail") | {"trouble": trouble}]
    else:
        runtimes = attempt(templates)
    return {
        "exit": verdict(found, runtimes),
        "root": os.geteuid() == 0,
        "control_groups": features.cgroup_kind(Path("/proc/self/mountinfo").read_text()),
        "features": [dataclasses.asdict(feature) for feature in found],
        "runtimes": runtimes,
        "network": dataclasses.asdict(network.examine()),
        "host": [dataclasses.asdict(finding) for finding in host.examine()],
    }


class Page:
    """Lines for people."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def line(self, mark: str, paint: str, text: str) -> None:
        """One line, its mark painted where that is wanted."""
        word = f"{paint}{mark}{PLAIN}" if self._colour else mark
        clean = "".join(c if c.isprintable() else "?" for c in text)
        sys.stdout.write(f"  {word:{8 + (len(word) - len(mark))}}{clean}\n")

    def title(self, text: str) -> None:
        """The start of a part."""
        sys.stdout.write(f"\n{text}\n")


def _show_runtime(page: Page, runtime: Mapping[str, Any]) -> None:
    if runtime["absent"]:
        page.title(f"Runtime {runtime['name']}: absent")
        page.line("absent", YELLOW, runtime["trouble"])
        return
    page.title(f"Runtime {runtime['name']}: {runtime['isolation']}; limits by {runtime['limits_by'] or 'nothing'}")
    if runtime["warning"]:
        page.line("warn", YELLOW, runtime["warning"])
    for layer in runtime["layers"]:
        if layer["in_force"]:
            page.line("ok", GREEN, layer["name"])
        else:
            page.line("missing", RED, f"{layer['name']}: {layer['reason']}")
    if runtime["usable"]:
        page.line("ok", GREEN, "a sandbox was started and ended")
        if runtime["offline"]:
            page.line("absent", YELLOW, f"egress policies: {runtime['offline']}")
        else:
            page.line("ok", GREEN, "egress policies: one with a wire to the gate, too")
    else:
        mark, paint = ("failed", RED) if runtime["usable"] is False else ("untried", YELLOW)
        page.line(mark, paint, runtime["trouble"])
        if runtime["fix"]:
            page.line("hint", YELLOW, runtime["fix"])


def _show(found: Mapping[str, Any], page: Page) -> None:
    page.title(f"Kernel: control groups {found['control_groups']}, {'root' if found['root'] else 'an ordinary user'}")
    for feature in found["features"]:
        mark = "ok" if feature["ok"] else "missing" if feature["needed"] else "absent"
        paint = GREEN if feature["ok"] else RED if feature["needed"] else YELLOW
        page.line(mark, paint, feature["name"] if feature["ok"] else f"{feature['name']}: {feature['seen']}")
        if not feature["ok"]:
            page.line("hint", YELLOW, f"{feature['why']}; {feature['fix']}")
    for runtime in found["runtimes"]:
        _show_runtime(page, runtime)
    page.title("Network for sandboxes, by egress policy")
    if found["network"]["ok"]:
        page.line("ok", GREEN, "the router and the gate were opened and closed")
    else:
        page.line("absent", YELLOW, found["network"]["reason"])
        page.line("hint", YELLOW, found["network"]["fix"])
    page.title("Host settings: warnings, each with what mends it")
    for finding in found["host"]:
        if not finding["ok"]:
            page.line("warn", YELLOW, f"{finding['name']} is {finding['seen']}, better {finding['wanted']}")
            page.line("hint", YELLOW, f"{finding['why']}; {finding['fix']}")
    fine = sum(finding["ok"] for finding in found["host"])
    page.line("ok", GREEN, f"{fine} of {len(found['host'])} are as they should be")


def main(options: Mapping[str, Any]) -> int:
    """Examine and report; `json`, `colour` and `state` are what the command line parsed. Returns the exit code."""
    settings = config.read_server(state=options.get("state"))
    found = gather(settings.templates_dir)
    if options.get("json"):
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _show(found, Page(bool(options.get("colour", True))))
        words = {SOUND: "every layer is in force", DEGRADED: "usable, with layers missing", UNUSABLE: "not usable"}
        sys.stdout.write(f"\n{words[found['exit']]}\n")
    return int(found["exit"])
