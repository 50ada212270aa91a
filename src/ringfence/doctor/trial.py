"""Start one sandbox and end it: `python -m ringfence.doctor.trial --templates DIR` answers with one line of JSON.

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
from ringfence.runtimes.base import StartSpec
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.templates.catalog import Catalog

TEMPLATE: Final = "base"
SECONDS: Final = 90.0


async def attempt(templates: Path) -> dict[str, Any]:
    """What the jail says of itself here, and whether one sandbox became ready."""
    privileged = os.geteuid() == 0
    jail = Jail(detect(f"doctor{os.getpid()}", root=privileged), privileged=privileged)
    try:
        can = jail.capabilities()
        answer: dict[str, Any] = {
            "name": jail.name,
            "layers": [dataclasses.asdict(layer) for layer in jail.layers()],
            "limits_by": can.limits_by,
            "users": sorted(can.users),
        }
        return answer | await _started(jail, templates)
    finally:
        await jail.close()


async def _started(jail: Jail, templates: Path) -> dict[str, Any]:
    try:
        built = Catalog(templates).read(TEMPLATE)
    except RingfenceError as error:
        return {"tried": False, "usable": None, "trouble": error.cause, "fix": error.remediation}
    try:
        spec = StartSpec(new_id("s"), "doctor", built.template, built.root, built.digest, Limits())
        started = await jail.start(spec)
        await jail.stop(started.id)
    except RingfenceError as error:
        return {"tried": True, "usable": False, "trouble": error.cause, "fix": error.remediation}
    return {"tried": True, "usable": True, "trouble": "", "fix": ""}


def run(templates: Path) -> dict[str, Any]:
    """The trial, in a process of its own; trouble there is an answer here."""
    words = [sys.executable, "-m", "ringfence.doctor.trial", "--templates", str(templates)]
    failed = {"name": "jail", "layers": [], "limits_by": "", "users": [], "tried": True, "usable": False, "fix": ""}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return failed | {"trouble": f"no sandbox became ready in {SECONDS:g} seconds"}
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return failed | {"trouble": f"the trial broke off: {last[:300]}"}
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
