"""Every step of the set-up made to fail in turn: nothing may run, the answer names the step, nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.guest import steps
from tests.attacks.conftest import TEMPLATES
from tests.support import ledger
from tests.support.node import Node

pytestmark = [
    pytest.mark.row(156),
    pytest.mark.skipif(os.geteuid() != 0, reason="the control groups to look into are root's"),
    pytest.mark.skipif(not (TEMPLATES / "index" / "base.json").exists(), reason="no built template"),
]

INSTANCE = "attackfaults1"


@pytest.mark.parametrize("layer", steps.LAYERS)
def test_a_step_that_fails_refuses_the_sandbox(layer: str) -> None:
    """No sandbox starts without this layer; the refusal names it, and nothing is left of the attempt."""
    before = ledger.snapshot(Path("/nonexistent/ringfence-ledger"))
    with Node(INSTANCE, fault=layer) as node:
        with pytest.raises(SandboxRefused) as refusal:
            node.claim()
        assert layer in refusal.value.cause
        assert node.supervisor.status()["sandboxes"] == 0
        with pytest.raises(SandboxRefused) as refusal:
            node.claim(lone=True)  # whose process 1 is set up by a machine
        assert layer in refusal.value.cause
    assert ledger.groups_of(INSTANCE) == set()
    assert ledger.settle(Path("/nonexistent/ringfence-ledger"), before) == []


def test_nothing_runs_in_an_interpreter_that_could_not_be_reseeded() -> None:
    """The interpreter renews its random state after its fork; where that fails, the program does not run in it."""
    with Node(INSTANCE, fault="reseed") as node:
        try:
            sandbox = node.claim()
        except SandboxRefused:
            return
        ran = node.perform(sandbox, {"op": "run", "code": "print('it ran')"})
        assert "it ran" not in str(ran.said)
        assert (ran.how, ran.code) != ("exited", 0)
