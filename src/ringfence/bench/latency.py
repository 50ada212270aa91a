"""One-shot latency to the completed answer: every row once a round, in an order shuffled anew each round."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.bench.calm import Gate
from ringfence.bench.exchange import Answer, Connection
from ringfence.bench.programs import Command, FailedRun, Program, timed
from ringfence.bench.stats import Round, Summary, column, summary

LEAST_ROUNDS: Final = 3
DEAR_MS: Final = 60.0  # a row dearer than this takes part in every second round, twice as dear in every third, ...
WARM_RUNS: Final = 4
PHASES: Final = ("queue", "claim", "start", "run", "collect")


@dataclass(frozen=True, slots=True)
class Pace:
    """How many rounds, and how long at most."""

    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the program; `take` returns milliseconds and raises FailedRun."""

    name: str
    take: Callable[[], float]
    warm_runs: int = 1
    peer: bool = False  # measured for comparison: when it is dear, not in every round


@dataclass(slots=True)
class Rounds:
    """What the rounds gave."""

    samples: list[Round] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    calm: int = 0
    forced: int = 0

    def of(self, name: str) -> Summary | None:
        """One row's percentiles."""
        return summary(column(self.samples, name))


def right_answer(answer: Answer, printed: bytes) -> bool:
    """A run that ended well and printed just that. By substring: decoding would cost more than asking."""
    stdout = msgspec.json.encode(printed.decode())
    return answer.status == 200 and b'"exited","code":0,' in answer.body and b'"stdout":' + stdout in answer.body


class OverHttp:
    """One-shot runs over one kept-alive connection; their answers are kept for the steps they tell."""

    def __init__(self, connection: Connection, request: bytes, printed: bytes) -> None:
        self._connection = connection
        self._request = request
        self._printed = printed
        self.answers: list[tuple[float, bytes]] = []

    def __call__(self) -> float:
        """Send, wait for the whole answer, check it."""
        answer, taken, _ = self._connection.timed(self._request)
        if not right_answer(answer, self._printed):
            raise FailedRun(f"{answer.status}: {answer.body[:300]!r}")
        self.answers.append((taken, answer.body))
        return taken

    def steps(self) -> dict[str, Any]:
        """Where the time went: the node's phases, and what is left for HTTP, the api and the way between."""
        spent: dict[str, list[float]] = {name: [] for name in (*PHASES, "http_and_api")}
        for taken, body in self.answers:
            timings = msgspec.json.decode(body, type=wire.Run).timings
            if timings is not None:
                phases = {name: getattr(timings, name) for name in PHASES}
                for name, value in phases.items():
                    spent[name].append(value)
                spent["http_and_api"].append(taken - sum(phases.values()))
        return {name: summary(values) for name, values in spent.items()}


def stride(row: Row) -> int:
    """Run a row unmeasured, until all it needs is warm; in which of the rounds it then takes part."""
    for _ in range(row.warm_runs - 1):
        row.take()
    taken = row.take()
    return max(1, math.floor(taken / DEAR_MS)) if row.peer else 1


def spawned(name: str, command: Command, program: Program, *, peer: bool = False) -> Row:
    """A row that starts a process from here."""
    return Row(name, lambda: timed(command, program.printed), peer=peer)


def served(name: str, connection: Connection, program: Program, body: Mapping[str, Any]) -> tuple[Row, OverHttp]:
    """A row that asks a server for a one-shot run."""
    request = connection.target.request("POST", "/v1/runs", {"template": program.template, **body})
    way = OverHttp(connection, request, program.printed)
    return Row(name, way, WARM_RUNS), way


def alternate(rows: Sequence[Row], pace: Pace, gate: Gate, chance: random.Random) -> Rounds:
    """Rounds until there are enough or the time is over, three at least. A failure costs its own sample alone.

    Raises FailedRun when a row does not even start.
    """
    found = Rounds()
    strides = {row.name: stride(row) for row in rows}
    until = time.monotonic() + pace.seconds
    for turn in range(pace.rounds):
        if time.monotonic() > until and turn >= LEAST_ROUNDS:
            break
        due = [row for row in rows if turn % strides[row.name] == 0]
        chance.shuffle(due)
        found.samples.append(_round(due, gate, found))
    found.calm, found.forced = gate.calm, gate.forced
    return found


def _round(due: Sequence[Row], gate: Gate, found: Rounds) -> Round:
    samples: dict[str, float] = {}
    for row in due:
        gate.wait()
        try:
            samples[row.name] = row.take()
        except (FailedRun, OSError) as error:
            found.failures[row.name] = found.failures.get(row.name, 0) + 1
            found.reasons.append(f"{row.name}: {error}"[:300])
    return samples
