"""smolagents, as published: its agents write code, and the code runs here."""

from __future__ import annotations

import pytest

from tests.e2b import sdks
from tests.e2b_integrations.harness import failures, server
from tests.e2b_interpreter.harness import TEMPLATE
from tests.support import scale

pytestmark = pytest.mark.skipif(not scale.EVERYTHING, reason=scale.IN_CI)


@pytest.mark.timeout(580)  # it may have to be fetched
@pytest.mark.parametrize("isolation", scale.RUNTIMES)
def test_its_code_agents_work_unmodified(isolation: str) -> None:
    """With `executor_type="e2b"`: steps, errors, tools, values, pictures, packages, options, a step without end."""
    release = sdks.packages(f"smolagents-{sdks.NEWEST}", "smolagents[e2b]")
    with server(f'[e2b]\nisolation = "{isolation}"\n') as made:
        made.need(TEMPLATE)
        wrong = failures(made, release, "with_smolagents.py")
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())
