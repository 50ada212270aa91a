"""The OpenAI Agents SDK, as published, with the releases of E2B's clients that it is pinned to."""

from __future__ import annotations

import pytest

from tests.e2b import sdks
from tests.e2b_integrations.harness import failures, server
from tests.support import scale

pytestmark = pytest.mark.skipif(not scale.EVERYTHING, reason=scale.IN_CI)


@pytest.mark.timeout(580)  # it may have to be fetched
@pytest.mark.parametrize("isolation", scale.RUNTIMES)
def test_its_sandbox_agents_work_unmodified(isolation: str) -> None:
    """Its defaults and its options: commands, patches, terminals, files, archives, pauses, ports, refusals.

    Its client asks for memory to be kept when it pauses, whatever its user wants. In a jail that is refused, elsewhere
    the operator says that files will do.
    """
    release = sdks.packages(f"openai-agents-{sdks.NEWEST}", "openai-agents[e2b]")
    files_will_do = "false" if isolation == "jail" else "true"
    terminals = "10" if isolation == "gvisor" else "40"  # gVisor takes half a second of a core for each
    env = {"FILES_ONLY_PAUSE": files_will_do, "TERMINALS": terminals}
    with server(f'[e2b]\nisolation = "{isolation}"\nfiles_only_pause = {files_will_do}\n') as made:
        made.need()
        wrong = failures(made, release, "with_openai_agents.py", **env)
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())
