"""Start one sandbox of each runtime: `python -m ringfence.doctor.trial --templates DIR` answers with a line of JSON.

A process of its own, because finding out which control groups can be had may move the process that asks.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import RingfenceError
from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import new_id
from ringfence.runtimes.base import Runtime, StartSpec
from ringfence.runtimes.here import runtimes
from ringfence.templates.catalog import Catalog

TEMPLATE: Final = "base"
SECONDS: Final = 90.0


async def attempt(templates: Path) -> list[dict[str, Any]]:
    """What each runtime says of itself, whether sandboxes became ready, one with a wire; the absent with the reason."""
    here = runtimes(f"doctor{os.getpid()}", templates)
    answers = []
    for runtime in here.present:
        try:
            answers.append(await _described(runtime, templates) | {"warning": here.warnings.get(runtime.name, "")})
        finally:
            await runtime.close()
    return answers + [
        blank(name) | {"usable": None, "trouble": why, "absent": True} for name, why in here.absent.items()
    ]


def blank(name: str) -> dict[str, Any]:
    """What is said of a runtime of which nothing is known yet."""
    unknown: dict[str, Any] = {"name": name, "isolation": "", "layers": [], "limits_by": "", "users": []}
    return (
        unknown
        | {"tried": False, "usable": False, "trouble": "", "fix": "", "warning": "", "absent": False}
        | {"offline": ""}
    )


async def _described(runtime: Runtime, templates: Path) -> dict[str, Any]:
    can = runtime.capabilities()
    known = {
        "isolation": can.isolation,
        "layers": [dataclasses.asdict(layer) for layer in runtime.layers()],
        "limits_by": can.limits_by,
        "users": sorted(can.users),
    }
    started = await _started(runtime, templates, networked=False)
    wired = {"trouble": can.offline}
    if started["usable"] and not can.offline:
        wired = await _started(runtime, templates, networked=True)
    return blank(runtime.name) | known | started | {"offline": wired["trouble"]}


async def _started(runtime: Runtime, templates: Path, *, networked: bool) -> dict[str, Any]:
    try:
        built = Catalog(templates).read(TEMPLATE)
    except RingfenceError as error:
        return {"tried": False, "usable": None, "trouble": error.cause, "fix": error.remediation}
    try:
        spec = StartSpec(new_id("s"), "doctor", built.template, built.root, built.digest, Limits(), networked=networked)
        started = await runtime.start(spec)
        await runtime.stop(started.id)
    except RingfenceError as error:
        return {"tried": True, "usable": False, "trouble": error.cause, "fix": error.remediation}
    return {"tried": True, "usable": True, "trouble": "", "fix": ""}


def run(templates: Path) -> list[dict[str, Any]]:
    """The trial, in a process of its own; trouble there is an answer here."""
    words = [sys.executable, "-m", "ringfence.doctor.trial", "--templates", str(templates)]
    failed = blank("jail") | {"tried": True}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return [failed | {"trouble": f"no sandbox became ready in {SECONDS:g} seconds"}]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [failed | {"trouble": f"the trial broke off: {last[:300]}"}]
    return found


def main() -> int:
    """Answer on standard output; 0 when there was an answer."""
    parser = argparse.ArgumentParser(prog="ringfence-trial")
    parser.add_argument("--templates", type=Path, required=True)
    templates: Path = parser.parse_args().templates
    sys.stdout.write(json.dumps(asyncio.run(attempt(templates))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
