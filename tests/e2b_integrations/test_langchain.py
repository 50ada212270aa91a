"""LangChain's deep agents with `langchain-e2b`, as published."""

from __future__ import annotations

import pytest

from tests.e2b import sdks
from tests.e2b_integrations.harness import failures, server
from tests.support import scale

pytestmark = pytest.mark.skipif(not scale.EVERYTHING, reason=scale.IN_CI)


@pytest.mark.timeout(580)  # it may have to be fetched
@pytest.mark.parametrize("isolation", scale.RUNTIMES)
def test_its_deep_agents_work_unmodified(isolation: str) -> None:
    """Every tool of theirs, on every runtime."""
    release = sdks.packages(f"langchain-e2b-{sdks.NEWEST}", "langchain-e2b")
    with server(f'[e2b]\nisolation = "{isolation}"\n') as made:
        made.need()
        wrong = failures(made, release, "with_langchain.py")
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())
