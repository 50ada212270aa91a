"""What every test may use: one event loop implementation, the node's own, for tests that are coroutines."""

from __future__ import annotations

import pytest

from tests.support import scale


def pytest_report_header() -> str:
    """Say how long the long tests are."""
    return f"chaos: {scale.ROUNDS} rounds, {scale.RUNS} mixed runs"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutine tests run on asyncio, as the node and the api do."""
    return "asyncio"
