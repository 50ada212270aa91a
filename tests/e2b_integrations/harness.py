"""A framework's newest release and the program that tries it, against a server in domain mode."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2b import sdks
from tests.e2b.server import Served, named, serving
from tests.e2b.ways import Errors, broken, told

HERE = Path(__file__).parent / "programs"
EXAMPLES = Path(__file__).parents[2] / "examples" / "e2b"


@contextmanager
def server(settings: str = "") -> Iterator[Served]:
    """A server that these programs find by its name."""
    if os.geteuid() != 0:
        sdks.absent("names for one program alone need root")
    with serving(settings) as made, named(made):
        yield made


def ran(made: Served, release: Path, program: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A program run as its user would: a framework beside it, a key and a domain around it, nothing changed."""
    around = {**made.env(domain=True), "PYTHONPATH": f"{release}:{HERE}", **env}
    words = [*made.words(domain=True), sys.executable, "-P", str(program)]
    return subprocess.run(words, env=around, capture_output=True, text=True, timeout=270, check=False, cwd="/")


def failures(made: Served, release: Path, program: str, **env: str) -> Errors:
    """The claims of a program that do not hold, each with its error."""
    words = [*made.words(domain=True), sys.executable, "-P", str(HERE / program)]
    return broken(told(words, {**made.env(domain=True), "PYTHONPATH": f"{release}:{HERE}", **env}))
