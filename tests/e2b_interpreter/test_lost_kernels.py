"""Kernels that ended under their contexts: no state is taken for another's in silence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2b.server import Served
from tests.e2b.wire import Box, make
from tests.e2b_interpreter.harness import TEMPLATE
from tests.e2b_interpreter.restarting import NOTE, cell, kept, restartable


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with E2B's face."""
    with restartable() as made:
        yield made


@pytest.fixture
def box(server: Served) -> Iterator[Box]:
    """A sandbox for cells."""
    made = make(server, templateID=TEMPLATE)
    yield made
    made.kill()


def test_after_a_pause_lost_state_is_told(box: Box) -> None:
    """Files are kept, memory is not: in each context the first cell says so."""
    own = kept(box)
    cell(box, "open('file', 'w').write('kept')")
    with box.server.client() as client:
        client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).raise_for_status()
        client.post(f"/v2/sandboxes/{box.id}/connect", json={"timeout": 60}).raise_for_status()
    for words in ({}, {"context_id": own}):
        printed, complained, error = cell(box, "print(open('file').read()); mine", **words)
        assert (printed, error) == ("kept\n", "NameError")
        assert complained.startswith(NOTE)
        assert cell(box, "print(2)", **words) == ("2\n", "", "")
