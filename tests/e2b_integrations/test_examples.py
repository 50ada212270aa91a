"""The examples for frameworks run as their readers would run them."""

from __future__ import annotations

import pytest

from tests.e2b import sdks
from tests.e2b_integrations.harness import EXAMPLES, ran, server

SAYS = {
    "code_agent.py": ("smolagents", "smolagents[e2b]", "most was sold in the south"),
    "sandbox_agent.py": ("openai-agents", "openai-agents[e2b]", "the sandbox said 3.0\nthe sandbox said 2.0\nThe mean"),
    "deep_agent.py": ("langchain-e2b", "langchain-e2b", "tool: [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]"),
}


@pytest.mark.timeout(900)  # they may have to be fetched
def test_they_run_and_say_what_their_page_promises() -> None:
    """Unchanged, by the environment alone."""
    releases = {name: sdks.packages(f"{of}-{sdks.NEWEST}", wanted) for name, (of, wanted, _) in SAYS.items()}
    with server() as made:
        for name, (_, _, words) in SAYS.items():
            done = ran(made, releases[name], EXAMPLES / name)
            assert done.returncode == 0, done.stderr[-3000:]
            assert words in done.stdout, done.stdout


def test_every_one_is_tested_and_described() -> None:
    """No file lies there that this test or the README does not know."""
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(SAYS)
    assert all(name in (EXAMPLES / "README.md").read_text() for name in SAYS)
