"""Packages as they were published, fetched once into a cache outside the checkout and never changed.

The bench measures E2B's newest Python client; the tests fetch more releases the same way. Nothing of them is ever
imported into a process of ours: they are run as their users run them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ringfence.domain.errors import PlatformFault

NEWEST: Final = "newest"
NEWEST_SECONDS: Final = 86_400.0  # how long the newest release of a moment is taken for the newest
FETCH_SECONDS: Final = 300.0


def cache() -> Path:
    """Where they are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence" / "e2b"


def released(name: str, version: str) -> str:
    """A package's release as pip takes it."""
    return name if version == NEWEST else f"{name}=={version}"


def python(name: str, *wanted: str) -> Path:
    """A directory for PYTHONPATH with these packages and what they need, as wheels: nothing is built.

    `name` is what it is called in the cache; if that ends in NEWEST, it is fetched again after a day.
    Raises PlatformFault.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    tag = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return fetched(f"{tag}-{name}", lambda place: [*pip, "--target", str(place), *wanted])


def interpreter(client: str = NEWEST, version: str = NEWEST) -> Path:
    """The Python client with its code interpreter. Raises PlatformFault."""
    name = f"ci-{NEWEST}" if client == NEWEST else f"ci-{client}-{version}"
    return python(name, released("e2b", client), released("e2b-code-interpreter", version))


def fetched(name: str, command: Callable[[Path], list[str]]) -> Path:
    """The place of this name in the cache, filled by a command that is given a fresh one. Raises PlatformFault.

    What is there stays when something newer cannot be had.
    """
    places = cache()
    place, mark = places / name, places / f"{name}.complete"
    places.mkdir(parents=True, exist_ok=True)
    with (places / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several may want the same at once
        if mark.exists() and not (name.endswith(NEWEST) and time.time() - mark.stat().st_mtime > NEWEST_SECONDS):
            return place
        fresh = places / f"{name}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        why = _failed(command(fresh), fresh)
        if why and mark.exists():
            return place
        if why:
            raise PlatformFault(
                f"{name} cannot be fetched: {why}", code="not_fetched", remediation="is there a way to PyPI and npm?"
            )
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        mark.touch()
        return place


def _failed(words: list[str], place: Path) -> str:
    """Why a command did not do it; nothing if it did."""
    try:
        done = subprocess.run(words, capture_output=True, timeout=FETCH_SECONDS, check=False, cwd=place)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip()[-300:] or "no reason given" if done.returncode else ""
