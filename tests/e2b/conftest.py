"""One server for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2b.server import Served, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with E2B's face."""
    with serving() as made:
        yield made
