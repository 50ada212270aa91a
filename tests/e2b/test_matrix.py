"""Released clients of E2B's, old and new, unmodified: each does all that `smoke.py` and `smoke.mjs` claim.

In CI each of them on the jail, in containers and under gVisor. By domain, so that ports are reached; some of those
that can be pointed at one URL for all sandboxes are, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.e2b import sdks
from tests.e2b.server import Served, named, serving
from tests.e2b.ways import Errors, Futures, Way, begun, judged, name, told
from tests.support import scale

HERE = Path(__file__).parent
BY_URL = [("python", sdks.NEWEST), ("javascript", sdks.NEWEST), *([("python", "2.20.0")] if sdks.EVERY else [])]
WAYS: list[Way] = [(*each, True) for each in sdks.RELEASES] + [(*each, False) for each in BY_URL]
ELSEWHERE: list[Way] = [way for way in WAYS if way[2] and (sdks.EVERY or way[1] == sdks.NEWEST)]


def _mib(way: Way) -> int:
    """How large a file goes both ways: 200 MB with each release; where not everything is tried, once a language."""
    return 200 if sdks.EVERY or not way[2] else 16


def smoke(server: Served, way: Way) -> Errors:
    """Run every claim with one release; what each raised."""
    language, version, domain = way
    env = {**server.env(domain=domain), "SMOKE_BIG_MIB": str(_mib(way))}
    if language == "python":
        env |= {"PYTHONPATH": str(sdks.python(version))}
        words = [sys.executable, "-P", str(HERE / "smoke.py")]
    else:
        words = [str(sdks.node()), str(HERE / "smoke.mjs"), str(sdks.javascript(version))]
    return told([*server.words(domain=domain), *words], env)


@contextmanager
def all_of(server: Served, ways: list[Way]) -> Iterator[Futures]:
    """These, beside each other, with the server's names known."""
    if os.geteuid() != 0:
        sdks.absent("names for one program alone need root")
    with named(server), begun(partial(smoke, server), ways) as futures:
        yield futures


@pytest.fixture(scope="module")
def running(server: Served) -> Iterator[Futures]:
    """On the jail."""
    with all_of(server, WAYS) as futures:
        yield futures


@pytest.fixture(scope="module", params=scale.OTHERS)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Futures]:
    """With sandboxes that a container tool makes."""
    with serving(f'[e2b]\nisolation = "{request.param}"\n') as server:
        server.need()
        with all_of(server, ELSEWHERE) as futures:
            yield futures


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS, ids=name)
def test_a_released_client_works_unmodified(running: Futures, way: Way) -> None:
    """Every claim, with this release."""
    judged(running[way].result())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ELSEWHERE, ids=name)
def test_it_works_on_every_runtime(elsewhere: Futures, way: Way) -> None:
    """Every claim, with this release, in containers and under gVisor."""
    judged(elsewhere[way].result())


def test_a_stream_that_broke_off_is_no_error_of_ours(server: Served, running: Futures) -> None:
    """Clients killed sandboxes while they were answered; the log has no line for each."""
    for done in running.values():
        done.result()
    said = (server.state / "log").read_text()
    assert "ERROR" not in said, said
