"""Rows agree with what the node said, in whatever order it was heard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import wire
from ringfence.domain.sandbox import State, new_id
from ringfence.engine.answers import NodeEvent
from ringfence.engine.feed import Feed
from ringfence.engine.ledger import MOST_EARLY, Ledger
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.policy import Admission, Policy
from ringfence.engine.turns import Turns
from ringfence.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An open store in a file."""
    made = SqliteStore(tmp_path / "ringfence.db")
    made.start()
    yield made
    made.close()


@pytest.fixture
def ledger(store: SqliteStore, tmp_path: Path) -> Ledger:
    """A ledger whose node is not connected."""
    return Ledger(store, NodeClient(tmp_path / "none.sock"), Feed(store), Admission(Policy()), Turns())


def sandbox() -> wire.Sandbox:
    """One that lives."""
    return wire.Sandbox(id=new_id("s"), template="base", state=State.RUNNING, created_at=time.time())


def death(of: str) -> NodeEvent:
    """What the node says when a sandbox dies under it."""
    return NodeEvent("sandbox.failed", "ada", of, time.time(), {"reason": "its launcher died"})


async def test_an_end_heard_before_its_beginning_is_an_end(ledger: Ledger, store: SqliteStore) -> None:
    """A sandbox that dies while the answer naming it is under way does not stay `running` for a minute."""
    born_dead = sandbox()
    ledger._seen(death(born_dead.id))
    ledger.sandbox_made("ada", born_dead)
    await store.flush()
    row = store.sandbox("ada", born_dead.id)
    assert row is not None
    assert row.state is State.FAILED
    assert row.error is not None
    assert row.error.cause == "its launcher died"
    assert [event.type for event in store.events("ada", 0, 10)] == ["sandbox.created", "sandbox.failed"]


async def test_ends_of_strangers_are_kept_within_bounds(ledger: Ledger) -> None:
    """Every run's own sandbox ends without a row: what is remembered of them does not grow."""
    for _ in range(MOST_EARLY + 50):
        ledger._seen(death(new_id("s")))
    assert len(ledger._early) == MOST_EARLY


async def test_another_tenants_end_is_not_ones_own(ledger: Ledger, store: SqliteStore) -> None:
    """An event counts for the tenant it names alone."""
    lives = sandbox()
    ledger._seen(NodeEvent("sandbox.failed", "eve", lives.id, time.time()))
    ledger.sandbox_made("ada", lives)
    await store.flush()
    row = store.sandbox("ada", lives.id)
    assert row is not None
    assert row.state is State.RUNNING
