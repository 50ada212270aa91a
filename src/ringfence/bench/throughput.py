"""One-shot runs a second, counted only while teardown keeps up: what is left behind is told with it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from ringfence.bench import groups
from ringfence.bench.exchange import Answer, Target
from ringfence.bench.latency import right_answer
from ringfence.bench.load import Generator, Load, always
from ringfence.bench.processes import machine_cpu_seconds
from ringfence.bench.programs import Program
from ringfence.bench.server import Measured

SETTLE_SECONDS: Final = 10.0
WARM_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel still keeps of sandboxes, machine-wide."""

    dying_groups: int | None
    network_namespaces: int | None

    @classmethod
    def now(cls) -> Kernel:
        """As of now."""
        return cls(groups.dying_groups(), groups.network_namespaces())


def drive(target: Target, program: Program, connections: int, seconds: float) -> Load:
    """One-shot runs of a program on so many connections."""
    request = target.request("POST", "/v1/runs", {"template": program.template, "code": program.code})

    def right(answer: Answer) -> bool:
        return right_answer(answer, program.printed)

    return Generator(target, always(request, right)).drive(connections, seconds)


def fenced(server: Measured, program: Program, connections: int, seconds: float) -> dict[str, Any]:
    """A load on the measured server, with its processor time by part and the backlog it left."""
    drive(server.target, program, connections, WARM_SECONDS)  # the pool learns what is wanted
    before, machine = server.cpu_seconds(), machine_cpu_seconds()
    load = drive(server.target, program, connections, seconds)
    left = server.groups.sandboxes()
    settled = settle(server)
    runs = load.runs + load.late
    spent = {part: value - before.get(part, 0.0) for part, value in server.cpu_seconds().items()}
    spent["client"] = load.client_cpu_seconds
    spent["rest_of_machine"] = max(0.0, machine_cpu_seconds() - machine - sum(spent.values()))
    return {
        **told(load),
        "cpu_ms_per_run": {part: round(value * 1e3 / runs, 3) for part, value in spent.items()} if runs else {},
        "backlog_sandboxes": max(0, left - server.groups.sandboxes()),
        "backlog_seconds": round(settled, 2),
        "per_second_with_backlog": round(runs / (seconds + settled), 1),
    }


def told(load: Load) -> dict[str, Any]:
    """A load's figures for the report."""
    return {
        "connections": load.connections,
        "seconds": load.seconds,
        "runs": load.runs,
        "failures": load.failures,
        "reasons": load.reasons,
        "per_second": load.per_second,
        "latency_ms": load.latency,
    }


def settle(server: Measured) -> float:
    """Wait until no more sandboxes go, so that only warm ones are left; the seconds it took."""
    began = steady = time.monotonic()
    count = server.groups.sandboxes()
    while time.monotonic() - began < SETTLE_SECONDS:
        time.sleep(0.02)
        now = server.groups.sandboxes()
        if now < count:
            steady = time.monotonic()
        elif time.monotonic() - steady > 0.1:
            break
        count = min(count, now)
    return steady - began
