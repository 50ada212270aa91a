"""Released clients of E2B's, old and new, unmodified: each does all that `smoke.py` and `smoke.mjs` claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2b import sdks
from tests.e2b.server import Served, named, serving
from tests.support import scale

HERE = Path(__file__).parent
AT_ONCE = 3  # clients that work beside each other on one server
# Before these, a client cannot be pointed at one URL for all sandboxes.
BY_DOMAIN = {"python": {"2.2.4", "1.5.5"}, "javascript": {"2.0.1"}}
EVERY = [("python", version) for version in sdks.PYTHON] + [("javascript", version) for version in sdks.JAVASCRIPT]
# In domain mode, too.
TWICE = [("python", sdks.NEWEST), ("javascript", sdks.NEWEST), *([("python", "2.20.0")] if sdks.EVERY else [])]
Way = tuple[str, str, bool]
WAYS: list[Way] = [(*each, each[1] in BY_DOMAIN[each[0]]) for each in EVERY] + [(*each, True) for each in TWICE]


def _mib(way: Way) -> int:
    """How large a file goes both ways: the largest once for each language."""
    return 200 if way[1] == sdks.NEWEST and not way[2] else 16


def smoke(server: Served, language: str, version: str, *, domain: bool, mib: int = 200) -> dict[str, str | None]:
    """Run every claim with one release; what each raised."""
    env = {**server.env(domain=domain), "SMOKE_BIG_MIB": str(mib)}
    if language == "python":
        env |= {"PYTHONPATH": str(sdks.python(version))}
        words = [sys.executable, "-P", str(HERE / "smoke.py")]
    else:
        words = [str(sdks.node()), str(HERE / "smoke.mjs"), str(sdks.javascript(version))]
    words = [*server.words(domain=domain), *words]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=230, check=False, cwd="/")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    errors = {line["claim"]: line["error"] for line in lines}
    whole = done.returncode == sum(error is not None for error in errors.values())
    return errors if lines and whole else {**errors, "the end": done.stderr[-3000:]}


@pytest.fixture(scope="module")
def running(server: Served) -> Iterator[dict[Way, Future[dict[str, str | None]]]]:
    """All of them, begun at once."""
    if os.geteuid() != 0:
        sdks.absent("names for one program alone need root")
    with named(server), ThreadPoolExecutor(AT_ONCE) as pool:
        yield {way: pool.submit(smoke, server, *way[:2], domain=way[2], mib=_mib(way)) for way in WAYS}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-{way[1]}-{'domain' if way[2] else 'url'}")
def test_a_released_client_works_unmodified(running, way) -> None:
    """Every claim, with this release."""
    errors = {name: error for name, error in running[way].result().items() if error}
    assert not errors, "\n".join(f"{name}: {error}" for name, error in errors.items())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("isolation", scale.OTHERS)
def test_it_works_on_every_runtime(isolation: str) -> None:
    """The newest client of each language, beside each other, with sandboxes that a container tool makes."""
    with serving(f'[e2b]\nisolation = "{isolation}"\n') as server:
        server.need()
        with ThreadPoolExecutor() as pool:
            done = {
                language: pool.submit(smoke, server, language, sdks.NEWEST, domain=False, mib=16)
                for language in ("python", "javascript")
            }
        errors = [
            f"{language}, {name}: {error}"
            for language, found in done.items()
            for name, error in found.result().items()
            if error
        ]
        assert not errors, "\n".join(errors)
