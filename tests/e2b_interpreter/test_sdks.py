"""Released pairs of E2B's clients and code interpreters, unmodified, each doing all that the smoke programs claim.

In CI each of them on the jail, in containers and under gVisor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b.server import Served, serving
from tests.e2b.ways import Errors, Futures, Way, begun, judged, name, told
from tests.e2b.wire import Box, make
from tests.e2b_interpreter.harness import TEMPLATE, TEMPLATES
from tests.support import scale

HERE = Path(__file__).parent
# The others cannot be pointed at one URL for all sandboxes where cells are run.
BY_URL = {("python", sdks.NEWEST), ("python", "2.45.1"), ("javascript", sdks.NEWEST), ("javascript", "2.45.0")}
ELSEWHERE: list[Way] = [(*each, each not in BY_URL) for each in sdks.RELEASES if sdks.EVERY or each[1] == sdks.NEWEST]
WAYS: list[Way] = [(*each, each not in BY_URL) for each in sdks.RELEASES]
WAYS += [("javascript", sdks.NEWEST, True)] if sdks.EVERY else []


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with E2B's face."""
    if TEMPLATE not in Catalog(Path(TEMPLATES)).load():
        sdks.absent(f"run: ringfence templates build {TEMPLATE}")
    with serving() as made:
        yield made


def smoke(server: Served, way: Way) -> Errors:
    """Every claim of one pair; what each raised."""
    language, version, domain = way
    env = server.env(domain=domain)
    if language == "python":
        words = [sys.executable, "-P", str(HERE / "smoke.py")]
        return told(words, {**env, "PYTHONPATH": str(sdks.python(version))})
    return told([str(sdks.node()), str(HERE / "smoke.mjs"), str(sdks.javascript(version))], env)


@pytest.fixture(scope="module")
def running(server: Served) -> Iterator[Futures]:
    """On the jail."""
    with begun(partial(smoke, server), WAYS) as futures:
        yield futures


@pytest.fixture(scope="module", params=scale.OTHERS)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Futures]:
    """With sandboxes that a container tool makes."""
    with serving(f'[e2b]\nisolation = "{request.param}"\n') as server:
        server.need(TEMPLATE)
        with begun(partial(smoke, server), ELSEWHERE) as futures:
            yield futures


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS, ids=name)
def test_a_released_pair_works_unmodified(running: Futures, way: Way) -> None:
    """Every claim, with this pair, by a URL or by a domain."""
    judged(running[way].result())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ELSEWHERE, ids=name)
def test_it_works_on_every_runtime(elsewhere: Futures, way: Way) -> None:
    """Every claim, with this pair, in containers and under gVisor."""
    judged(elsewhere[way].result())


def kernels(box: Box) -> list[int]:
    """Those that run, as our own API lists them."""
    headers = {"Authorization": f"Bearer {box.server.key}"}
    with httpx.Client(base_url=box.server.url, headers=headers, timeout=60) as client:
        listed = client.get(f"/v1/sandboxes/{box.id}/processes").raise_for_status().json()["processes"]
    return [each["pid"] for each in listed if each["running"]]


def test_a_sandbox_for_cells_starts_with_a_kernel(server: Served) -> None:
    """It is there before a cell is, it is the one that the first cell gets, and no command of the client's."""
    box = make(server, templateID=TEMPLATE)
    try:
        deadline = time.monotonic() + 60
        while not (first := kernels(box)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with box.client(**{"E2b-Sandbox-Port": "49999"}) as client:
            assert '"text": "2"' in client.post("/execute", json={"code": "1 + 1"}).text
        assert kernels(box) == first
        assert box.call("/process.Process/List", {}).json() == {"processes": []}
    finally:
        box.kill()
