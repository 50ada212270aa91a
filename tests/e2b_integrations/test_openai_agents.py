"""The OpenAI Agents SDK, as published, with the releases of E2B's clients that it is pinned to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2b import sdks
from tests.e2b_integrations.harness import failures, server
from tests.support import scale

pytestmark = pytest.mark.skipif(not scale.EVERYTHING, reason=scale.IN_CI)
PROGRAM = "with_openai_agents.py"


def release() -> Path:
    """The newest, and what it is pinned to."""
    return sdks.packages(f"openai-agents-{sdks.NEWEST}", "openai-agents[e2b]")


@pytest.mark.timeout(400)  # it may have to be fetched
def test_its_sandbox_agents_work_unmodified() -> None:
    """Its defaults and its options: commands, patches, terminals, files, archives, pauses, ports, refusals."""
    fetched = release()
    with server() as made:
        wrong = failures(made, fetched, PROGRAM, FILES_ONLY_PAUSE="false")
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())


@pytest.mark.timeout(400)
def test_its_pause_on_leaving_keeps_files_where_the_operator_says_that_will_do() -> None:
    """Its client says that memory is to be kept whatever its user wants, which is why the operator has to say it."""
    fetched = release()
    with server("[e2b]\nfiles_only_pause = true\n") as made:
        wrong = failures(made, fetched, PROGRAM, FILES_ONLY_PAUSE="true", ONLY_CLAIM="a_pause_on_leaving")
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())
