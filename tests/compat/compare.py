"""What differs between the host and a sandbox, and the reasons we know. Pure: no program is run here."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tests.compat.places import Ending
from tests.compat.programs import Program

REASONS = Path(__file__).parent / "reasons.toml"
ABSENT = "absent"
PLATFORM = "platform"


@dataclass(frozen=True)
class Difference:
    """One thing that is otherwise in a sandbox: a test's ending, or (with no test) the whole output or exit."""

    program: str
    place: str
    what: str
    on_host: str
    there: str

    @property
    def key(self) -> str:
        """What the patterns of a reason are matched with."""
        return self.what if self.what.startswith(self.program) else f"{self.program}: {self.what}"


@dataclass(frozen=True)
class Reason:
    """Why some differences are as they should be, or known and accepted."""

    title: str
    why: str
    places: tuple[str, ...]
    patterns: tuple[str, ...]

    def explains(self, difference: Difference) -> bool:
        """Whether it speaks of this one."""
        return difference.place in self.places and any(fnmatchcase(difference.key, p) for p in self.patterns)


def read_reasons(path: Path = REASONS) -> list[Reason]:
    """The committed reasons, in their order; the first that fits a difference is its reason."""
    entries = tomllib.loads(path.read_text())["reason"]
    return [Reason(e["title"], e["why"], tuple(e["places"]), tuple(e["differences"])) for e in entries]


def reason_for(difference: Difference, reasons: Sequence[Reason]) -> Reason | None:
    """The first reason that explains it. Nothing explains a failure of the platform: it says nothing of isolation."""
    if difference.what == PLATFORM:
        return None
    return next((reason for reason in reasons if reason.explains(difference)), None)


def agree(hosts: Sequence[Ending], theirs: Sequence[Ending]) -> bool:
    """Whether the program ended the same way at least once: what varies by itself is not held against a sandbox."""
    return any(ours.same_as(other) for ours in hosts for other in theirs)


def _tests(endings: Sequence[Ending]) -> dict[str, set[str]]:
    """Each test's endings over several attempts."""
    tests: dict[str, set[str]] = {}
    for ending in endings:
        for line in ending.stdout.decode("utf-8", "replace").splitlines():
            name, _, how = line.rpartition(" ")
            tests.setdefault(name, set()).add(how)
    for name, hows in tests.items():
        if any(f"{name} ".encode() not in ending.stdout for ending in endings):
            hows.add(ABSENT)
    return tests


def _words(values: set[str]) -> str:
    return " or ".join(sorted(values))


def _fates(endings: Sequence[Ending]) -> set[str]:
    return {" ".join(str(part) for part in ending.fate if part is not None) for ending in endings}


def differences(program: Program, place: str, hosts: Sequence[Ending], theirs: Sequence[Ending]) -> list[Difference]:
    """What was different in every attempt; and a failure of the platform in any, also where another went well."""
    failures = {ending.how for ending in theirs if ending.ours}
    if failures:
        return [Difference(program.name, place, PLATFORM, "ran", _words(failures))]
    if agree(hosts, theirs):
        return []
    finished = all(ending.how == "exited" for ending in (*hosts, *theirs))
    if program.lines_are_tests and finished:
        here, there = _tests(hosts), _tests(theirs)
        names = [n for n in sorted(here | there) if not here.get(n, {ABSENT}) & there.get(n, {ABSENT})]
        if names:
            pairs = ((n, _words(here.get(n, {ABSENT})), _words(there.get(n, {ABSENT}))) for n in names)
            return [Difference(program.name, place, *pair) for pair in pairs]
    if _fates(hosts).isdisjoint(_fates(theirs)):
        return [Difference(program.name, place, "exit", _words(_fates(hosts)), _words(_fates(theirs)))]
    if program.lines_are_tests:
        return []  # each test ended the same way in some attempt
    return [Difference(program.name, place, "output", *_first_difference(hosts[0], theirs[0]))]


def _first_difference(ours: Ending, other: Ending) -> tuple[str, str]:
    """The first line that differs, of both."""
    mine, its = (ending.stdout.decode("utf-8", "replace").splitlines() for ending in (ours, other))
    length = max(len(mine), len(its))
    padded = ((mine[n : n + 1] or [ABSENT], its[n : n + 1] or [ABSENT]) for n in range(length))
    return next(((a[0][:200], b[0][:200]) for a, b in padded if a != b), ("", ""))
