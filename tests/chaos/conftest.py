"""What chaos needs: time, root, and a template to run things in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.attack.own_server import OwnServer
from tests.support import ledger
from tests.support.scale import ROUNDS, RUNS

NOWHERE = Path("/nonexistent/ringfence-ledger")
TEMPLATES = Path(os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates"))


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server of our own; when it has stopped nothing is left."""
    before = ledger.snapshot(NOWHERE)
    own = OwnServer(TEMPLATES)
    with own:
        yield own
    assert ledger.settle(own.state, before) == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chaos needs time, root and a template."""
    reason = ""
    if os.geteuid() != 0:
        reason = "only root can look into every group and kill what it finds"
    elif not (TEMPLATES / "index" / "base.json").exists():
        reason = f"no template `base` is built in {TEMPLATES}"
    for item in items:
        if Path(__file__).parent in Path(str(item.fspath)).parents:
            item.add_marker(pytest.mark.timeout(120 + 20 * ROUNDS + RUNS))
            if reason and os.environ.get("CI") != "true":
                item.add_marker(pytest.mark.skip(reason=reason))
