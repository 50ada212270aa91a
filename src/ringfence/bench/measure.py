"""One bench, from nothing to nothing: servers started, everything measured in turn, all of it gone again.

Processes: this one measures and generates load. Below it run the measured server (node, api, zygotes, sandboxes), the
unfenced server for comparison, and for each sample of a peer that peer's own. What is compared alternates.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ringfence.bench import egress, ingress, interactive, isolations, machine, peers, throughput
from ringfence.bench.calm import Gate
from ringfence.bench.comparison import unfenced
from ringfence.bench.density import Crowd
from ringfence.bench.e2b import measure as clients
from ringfence.bench.exchange import Connection, Target
from ringfence.bench.latency import Pace, alternate, served, spawned
from ringfence.bench.leftovers import left
from ringfence.bench.plan import Clock, Plan
from ringfence.bench.plot import drawn
from ringfence.bench.processes import tree
from ringfence.bench.programs import NUMPY, PANDAS, PLAIN, FailedRun, Outside, Program
from ringfence.bench.report import Report, headline, of_rounds, verdicts
from ringfence.bench.server import Measured, Walls, measured, walls
from ringfence.domain.errors import RingfenceError
from ringfence.templates.catalog import Built, Catalog

Say = Callable[[str], None]
LATENCIES: Final = {"oneshot": PLAIN, "numpy": NUMPY, "pandas": PANDAS}
IDLE_TEMPLATE: Final = "python"
CALM_SECONDS: Final = 0.2  # that may go into waiting for a calm machine, for each round of the two clients


@dataclass
class Bench:
    """What every measure needs, while both servers run."""

    plan: Plan
    server: Measured
    yardstick: Target
    outside: Outside
    found: list[peers.Found]
    clock: Clock
    say: Say
    work: Path
    templates: Path
    report: Report = field(default_factory=dict)
    chance: random.Random = field(default_factory=random.Random)

    def everything(self) -> None:
        """Each measure of the plan. One that fails is told, and costs nothing but itself."""
        for name in self.plan.measures:
            if self.clock.over():
                self.report["left_out"].append(name)
                continue
            self.say(f"{self.clock.spent():5.1f} s  {name}")
            try:
                self._measure(name)
            except (RingfenceError, FailedRun, OSError, TimeoutError) as error:
                self.report["failed"][name] = f"{type(error).__name__}: {error}"

    def _measure(self, name: str) -> None:
        plan = self.plan
        if name in LATENCIES:
            pace: Pace = getattr(plan, name)
            self.report["latency"][name] = self._latency(LATENCIES[name], pace)
        elif name == "throughput":
            self._throughput()
        elif name == "density":
            self.report["density"] = Crowd(self.server, IDLE_TEMPLATE, plan.density).measure()
        elif name == "runtimes":
            self.report["runtimes"] = isolations.measure(
                self.server, self.found, plan.runtimes, self._gate(plan.runtimes)
            )
        elif name == "egress":
            self.report["egress"] = egress.measure(
                self.server, self.outside, plan.egress, self._gate(plan.egress), self.chance
            )
        elif name == "ingress":
            self.report["ingress"] = ingress.measure(
                self.server, plan.published, plan.ingress, plan.edge_seconds, self.work, self.chance
            )
        elif name == "e2b":
            gate = Gate(sum(plan.e2b.values()) * CALM_SECONDS)
            self.report["e2b"] = clients.measure(self.work, self.templates, plan.e2b, gate, self.chance)
        else:
            with Connection(self.server.target) as connection:
                gate = self._gate(plan.interactive)
                self.report["interactive"] = interactive.measure(connection, IDLE_TEMPLATE, plan.interactive, gate)

    def _gate(self, pace: Pace) -> Gate:
        return Gate(pace.seconds * self.plan.calm_part)

    def _latency(self, program: Program, pace: Pace) -> Report:
        with Connection(self.server.target) as fenced, Connection(self.yardstick) as plain:
            ours, way = served("ringfence", fenced, program, {"code": program.code})
            by_exec, _ = served("ringfence_exec", fenced, program, {"argv": ["python3", "-c", program.code]})
            base, _ = served("unfenced", plain, program, {"code": program.code})
            rows = [spawned("bare", self.outside.command(program), program), base, ours, by_exec]
            rows += [
                spawned(each.peer.name, each.commands[program.name], program, peer=True)
                for each in self.found
                if program.name in each.commands
            ]
            rounds = alternate(rows, pace, self._gate(pace), self.chance)
            return of_rounds(rounds, [row.name for row in rows], way.steps())

    def _throughput(self) -> None:
        """Ours and the yardstick in turn at each number of connections, in random order."""
        kernel = throughput.Kernel.now()
        sides: dict[str, dict[str, Any]] = {"ringfence": {}, "unfenced": {}}
        gate = Gate(sum(self.plan.load_seconds.values()) * self.plan.calm_part, each=1.0)
        for connections, seconds in self.plan.load_seconds.items():
            for side in self.chance.sample(list(sides), 2):
                gate.wait()
                if side == "ringfence":
                    found = throughput.fenced(self.server, PLAIN, connections, seconds)
                else:
                    load = throughput.drive(self.yardstick, PLAIN, connections, self.plan.yardstick_seconds)
                    found = throughput.told(load)
                sides[side][str(connections)] = found
        self.report["throughput"] = sides
        self.report["kernel"] = {"before": kernel, "after": throughput.Kernel.now()}


@contextlib.contextmanager
def _both_servers(work: Path, templates: Path, outside: Outside) -> Iterator[tuple[Measured, Target]]:
    commands = {program.name: outside.command(program) for program in LATENCIES.values()}
    with measured(work / "server", templates) as server, unfenced(work / "unfenced", commands) as yardstick:
        yield server, yardstick


def _setting(outside: Outside, built: Mapping[str, Built]) -> Report:
    return {
        "machine": machine.facts(),
        "versions": {
            **machine.versions(),
            "measured_python": f"{outside.version}, {outside.path}",
            "templates": {name: each.digest[:12] for name, each in built.items()},
        },
        "load_average": {"start": machine.load_average()},
        "latency": {},
        "failed": {},
        "left_out": [],
    }


def _warm(server: Measured, say: Say) -> Walls:
    """A zygote of each template, and what stands around a program. Only then the server's groups can be found."""
    with Connection(server.target) as connection:
        for program in LATENCIES.values():
            connection.exchange(server.run(program.template, code=program.code)).json()
        found = walls(connection, PLAIN.template)
    server.look()
    say(f"layers in force: {len(found.in_force)}" + (f", missing: {', '.join(found.missing)}" if found.missing else ""))
    return found


def bench(plan: Plan, templates: Path, *, plot: bool, say: Say) -> tuple[Report, bytes | None]:
    """Measure, and return the whole report and its picture. Raises RingfenceError when nothing could be measured."""
    clock, children = Clock(plan.seconds), frozenset(tree(os.getpid()))
    catalog = Catalog(templates)
    built = {name: catalog.read(name) for name in ("base", "python")}
    roots = {name: each.root for name, each in built.items()}
    outside = Outside(roots)
    report = _setting(outside, built)
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as name:
        place = peers.Place(roots, Path(name))
        place.work.chmod(0o755)  # the servers drop to a uid that must be able to walk through
        with _both_servers(place.work, templates, outside) as (server, yardstick):
            report["walls"] = _warm(server, say)
            wanted = [LATENCIES[each] for each in plan.measures if each in LATENCIES]
            if "runtimes" in plan.measures and PLAIN not in wanted:
                wanted.append(PLAIN)
            found = peers.look(place, wanted) if wanted else []
            report["peers"] = {each.peer.name: each.told() for each in found}
            Bench(plan, server, yardstick, outside, found, clock, say, place.work, templates, report).everything()
            report = {**headline(report), **report}
            report["bars"] = verdicts(report)
            picture = _picture(server, report) if plot else None
        peers.clear(place)
    report["left"] = left(place.work, server.groups, children)
    report["load_average"]["end"] = machine.load_average()
    report["seconds"] = round(clock.spent(), 1)
    return report, picture


def _picture(server: Measured, report: Report) -> bytes | None:
    try:
        with Connection(server.target) as connection:
            return drawn(connection, report)
    except (RingfenceError, OSError) as error:
        report["failed"]["plot"] = str(error)
        return None
