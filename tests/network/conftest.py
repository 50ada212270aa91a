"""One lab for all tests of a module: it takes a second to build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.network.lab import Lab, opened
from tests.network.labnode import LabNode, need
from tests.support import scale

settings.register_profile("network", deadline=None)  # a busy machine is no failure
settings.load_profile("network")


def pytest_configure(config: pytest.Config) -> None:
    """The marker by which a test says which rows of the catalogue it stands for (tests/attacks/rows.py)."""
    config.addinivalue_line("markers", "row(*numbers): rows of the catalogue of hostile behaviours")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The host, the internet and the network under test."""
    folder: Path = tmp_path_factory.mktemp("lab")
    with opened(folder) as made:
        yield made


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[LabNode]:
    """One for all tests of a module, with every runtime that this machine has."""
    need("jail")
    made = LabNode(lab)
    yield made
    made.close()


@pytest.fixture(params=scale.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Which way to isolate."""
    need(request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with nothing captured, and ends its own sandboxes."""
    if "lab" not in request.fixturenames:
        yield
        return
    made: Lab = request.getfixturevalue("lab")
    made.capture.clear()
    made.inner.clear()
    made.events.clear()
    made.names.asked.clear()
    for visits in made.visits.values():
        visits.clear()
    yield
    while made.sandboxes:
        made.sandboxes.pop().close()
