"""A client's program run as its user would run it: which release, by which way to the server, and what came of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

CLAIMS = Path(__file__).parents[1] / "claims"  # for programs of claims, behind the release they try
AT_ONCE = 3  # clients that work beside each other on one server
Way = tuple[str, str, bool]  # a language, a release, and whether the server is found by its domain
Errors = dict[str, str | None]
Futures = dict[Way, Future[Errors]]


def name(way: Way) -> str:
    """Of a case."""
    return f"{way[0]}-{way[1]}-{'domain' if way[2] else 'url'}"


def told(words: list[str], env: dict[str, str]) -> Errors:
    """Run a program of claims; what each of them raised."""
    path = f"{env['PYTHONPATH']}:{CLAIMS}" if "PYTHONPATH" in env else str(CLAIMS)
    around = {**env, "PYTHONPATH": path}
    done = subprocess.run(words, env=around, capture_output=True, text=True, timeout=480, check=False, cwd="/")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"claim"')]
    errors = {line["claim"]: line["error"] for line in lines}
    whole = done.returncode == sum(error is not None for error in errors.values())
    return errors if lines and whole else {**errors, "the end": done.stderr[-3000:]}


@contextmanager
def begun(run: Callable[[Way], Errors], ways: list[Way]) -> Iterator[Futures]:
    """All of them, begun at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {way: pool.submit(run, way) for way in ways}


def broken(errors: Errors) -> Errors:
    """The claims that do not hold, each with its error."""
    return {claim: error for claim, error in errors.items() if error}


def judged(errors: Errors) -> None:
    """Every claim held."""
    wrong = broken(errors)
    assert not wrong, "\n".join(f"{claim}: {error}" for claim, error in wrong.items())
