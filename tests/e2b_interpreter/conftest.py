"""One server for all of these tests, one shared sandbox for each way to isolate, and others for who breaks them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.runtimes.oci.versions import choose, installed, lacking
from ringfence.templates.catalog import Catalog
from tests.e2b import sdks
from tests.e2b_interpreter.harness import TEMPLATE, TEMPLATES, Sandbox, Server
from tests.support import scale


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server."""
    if os.geteuid() != 0:
        pytest.skip("a node for containers needs root")
    if TEMPLATE not in Catalog(Path(TEMPLATES)).load():
        sdks.absent(f"run: ringfence templates build {TEMPLATE}")
    with Server() as started:
        yield started


@pytest.fixture(scope="session", params=scale.RUNTIMES)
def isolation(request: pytest.FixtureRequest) -> str:
    """A way to isolate that this host has."""
    name: str = request.param
    if name != "jail" and choose(name, installed()) is None:
        sdks.absent(lacking(name, installed()))
    return name


@pytest.fixture(scope="module")
def sandbox(server: Server, isolation: str) -> Iterator[Sandbox]:
    """A sandbox that a module's tests share."""
    with server.sandbox(isolation) as made:
        yield made
