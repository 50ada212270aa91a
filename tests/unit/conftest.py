"""A node with the fake runtime, and an api's connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.nodewire import Node, Wire, node


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Node]:
    """A node."""
    async with node(tmp_path) as made:
        yield made


@pytest.fixture
async def wire(served: Node) -> AsyncIterator[Wire]:
    """An api's connection to it."""
    connected = await served.connect()
    yield connected
    connected.close()
