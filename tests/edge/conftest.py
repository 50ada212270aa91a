"""One api with an edge for each module, and a sandbox for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.inside import Box, EdgeApi, box


@pytest.fixture(scope="module")
def api() -> Iterator[EdgeApi]:
    """An api with an edge."""
    with EdgeApi() as made:
        yield made


@pytest.fixture
def ada(api: EdgeApi) -> Iterator[Box]:
    """A sandbox of ada's."""
    with box(api) as made:
        yield made
