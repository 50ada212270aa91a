"""What E2B's own client gets out of a server, beside what ours gets, on each way to isolate.

Each client is a program of its own (see program.py) that makes a round when it is told to: both once in every turn, in
an order shuffled anew, after the pools are full again. Both ask for the same template, limits and isolation, over plain
HTTP on the loopback, and keep their connections: so a row compares the two protocols and clients, and what each makes
the server do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from ringfence.bench.calm import Gate
from ringfence.bench.e2b import fetched, program
from ringfence.bench.exchange import Connection
from ringfence.bench.programs import FailedRun
from ringfence.bench.server import Measured, measured, settled
from ringfence.bench.stats import Round, column, paired, summary
from ringfence.config import E2bSettings
from ringfence.domain.errors import PlatformFault
from ringfence.store.base import e2b_spelling
from ringfence.templates.catalog import Catalog

TEMPLATE: Final = "code-interpreter-v1"  # what E2B's code interpreter asks for
STEPS: Final = ("create", "first_command", "first_code", "next_code", "up", "down", "kill")
CLIENTS: Final = ("e2b", "ringfence")
WARM: Final = 2
ANSWER_SECONDS: Final = 120.0
MOST_REASONS: Final = 10


class Program:
    """A client at work."""

    def __init__(self, name: str, create: Mapping[str, Any], env: dict[str, str], errors: IO[bytes]) -> None:
        words = [sys.executable, "-P", str(Path(program.__file__)), name, json.dumps(dict(create))]
        self.name = name
        self._errors = errors
        self._child = subprocess.Popen(
            words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd="/"
        )
        self._orders, self._answers = (each.fileno() for each in (self._child.stdin, self._child.stdout) if each)

    def ready(self) -> None:
        """Return when it has imported what it needs. Raises PlatformFault."""
        self._line()

    def turn(self) -> dict[str, float]:
        """One round, milliseconds by step. Raises FailedRun, or PlatformFault when there is no more of it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, b"\n")
        found = self._line()
        if "error" in found:
            raise FailedRun(f"{self.name}: {found['error']}")
        spent: dict[str, float] = found["spent"]
        return spent

    def _line(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            woken, _, _ = select.select([self._answers], [], [], ANSWER_SECONDS)
            piece = os.read(self._answers, 65536) if woken else b""
            if not piece:
                self._errors.seek(0)
                said = self._errors.read()[-300:].decode(errors="replace")
                raise PlatformFault(f"the {self.name} client does not go on: {said}", code="client_lost")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """It ends with its input, and otherwise it is killed."""
        with contextlib.suppress(BrokenPipeError):
            self._child.communicate(timeout=10)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def _env(server: Measured, name: str, place: Path | None) -> dict[str, str]:
    """The environment of a user's program."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("E2B_", "PYTHON", "RINGFENCE_"))}
    kept |= {"NO_PROXY": server.target.host, "no_proxy": server.target.host}
    url, key = f"http://{server.target.host}:{server.target.port}", server.target.key
    if name == "ringfence":
        return {**kept, "RINGFENCE_URL": url, "RINGFENCE_KEY": key}
    theirs = {"E2B_API_KEY": e2b_spelling(key), "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
    return {**kept, **theirs, "PYTHONPATH": str(place)}


@contextlib.contextmanager
def _program(server: Measured, name: str, create: Mapping[str, Any], place: Path | None) -> Iterator[Program]:
    with tempfile.TemporaryFile() as errors:
        made = Program(name, create, _env(server, name, place), errors)
        try:
            made.ready()
            yield made
        finally:
            made.end()


def measure(
    work: Path, templates: Path, rounds: Mapping[str, int], gate: Gate, chance: random.Random
) -> dict[str, Any]:
    """Percentiles of each step by either client, and theirs over ours; `rounds` by way to isolate.

    What is not here (a client that cannot be fetched, a runtime, the template) is told under `absent`.
    """
    found: dict[str, Any] = {
        "template": TEMPLATE, "absent": {}, "version": None, "isolations": {}, "failures": 0, "reasons": [],
    }  # fmt: skip
    if TEMPLATE not in Catalog(templates).load():
        found["absent"]["everything"] = f"there is no template {TEMPLATE}: ringfence templates build {TEMPLATE}"
        return found
    place: Path | None = None
    try:
        place = fetched.interpreter()
        found["version"] = _version(place)
    except PlatformFault as error:
        found["absent"]["e2b"] = error.cause
    for isolation, count in rounds.items():
        settings = E2bSettings(isolation=isolation)
        with measured(work / f"e2b-{isolation}", templates, settings) as server:
            why = _lacking(server, isolation)
            if why:
                found["absent"][isolation] = why
                continue
            create = {"template": TEMPLATE, "isolation": isolation, "limits": settings.limits}
            with contextlib.ExitStack() as stack:
                names = CLIENTS if place is not None else CLIENTS[1:]
                programs = [stack.enter_context(_program(server, name, create, place)) for name in names]
                turns = _turns(server, isolation, programs, count, gate, chance, found)
            found["isolations"][isolation] = _told(turns)
    return found


def _version(place: Path) -> str | None:
    versions = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions(path=[str(place)])}
    return ", ".join(f"{name} {versions[name]}" for name in ("e2b", "e2b-code-interpreter") if name in versions)


def _lacking(server: Measured, isolation: str) -> str:
    with Connection(server.target) as connection:
        for each in connection.ask("GET", "/v1/runtimes")["runtimes"]:
            if each["name"] == isolation:
                return "" if each["available"] else each["reason"]
    return "there is no such runtime"


def _turns(
    server: Measured,
    isolation: str,
    programs: list[Program],
    count: int,
    gate: Gate,
    chance: random.Random,
    found: dict[str, Any],
) -> list[Round]:
    """A sample of each step by each client, as `client.step`; the first rounds are not counted."""
    turns: list[Round] = []
    with Connection(server.target) as connection:
        for turn in range(WARM + count):
            sample: dict[str, float] = {}
            for each in chance.sample(programs, len(programs)):
                settled(connection, isolation)
                gate.wait()
                try:
                    sample |= {f"{each.name}.{step}": taken for step, taken in each.turn().items()}
                except FailedRun as error:
                    found["failures"] += 1
                    found["reasons"] = [*found["reasons"], f"{isolation}: {error}"][:MOST_REASONS]
            if turn >= WARM:
                turns.append(sample)
    return turns


def _told(turns: list[Round]) -> dict[str, Any]:
    rows = {name: {step: summary(column(turns, f"{name}.{step}")) for step in STEPS} for name in CLIENTS}
    ratios = {step: paired(turns, f"e2b.{step}", f"ringfence.{step}") for step in STEPS}
    return {**rows, "ratio_in_pairs": ratios, "rounds": len(turns)}
