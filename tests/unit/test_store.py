"""The store: guarded moves, one tenant per query, durable soon, and honest when it cannot write."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ringfence import wire
from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.domain.process import How
from ringfence.domain.sandbox import State, new_id
from ringfence.store.base import Answered, Claim, Filter, NewEvent, PauseRow, PortRow, digest_of
from ringfence.store.sqlite import MOST_ANSWERS, KeyRing, SqliteStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An open store in a file."""
    made = SqliteStore(tmp_path / "ringfence.db")
    made.start()
    yield made
    made.close()


def run(at: float = 1.0, **labels: str) -> wire.Run:
    """A running run."""
    return wire.Run(id=new_id("r"), state="running", template="base", created_at=at, labels=labels)


def sandbox(at: float = 1.0, state: State = State.RUNNING) -> wire.Sandbox:
    """A sandbox."""
    return wire.Sandbox(id=new_id("s"), template="base", state=state, created_at=at)


def ended(row: wire.Run) -> wire.Run:
    """The same, finished with output."""
    fate = wire.Exit(how=How.EXITED, code=0)
    return msgspec.structs.replace(row, state="finished", exit=fate, stdout="secret output")


async def test_a_run_ends_once_and_its_output_is_not_kept(store: SqliteStore) -> None:
    """A late second end changes nothing: the WHERE repeats the state it must leave."""
    row = run()
    store.run_started("ada", row)
    store.run_ended("ada", ended(row))
    store.run_ended("ada", msgspec.structs.replace(row, state="failed"))
    await store.flush()
    kept = store.run("ada", row.id)
    assert kept is not None
    assert (kept.state, kept.stdout) == ("finished", None)


async def test_nobody_reads_or_moves_anothers_rows(store: SqliteStore) -> None:
    """Each query names the tenant; a foreign id is an unknown id."""
    row, box = run(a="b"), sandbox()
    store.run_started("ada", row)
    store.sandbox_created("ada", box)
    store.event(NewEvent("ada", "x", 1.0, sandbox=box.id, run=row.id))
    store.run_ended("bob", ended(row))
    store.sandbox_changed("bob", msgspec.structs.replace(box, state=State.FAILED))
    await store.flush()
    assert store.run("bob", row.id) is None
    assert store.sandbox("bob", box.id) is None
    assert store.runs("bob", Filter(labels=(("a", "b"),))) == []
    assert store.runs("bob", Filter(cursor=row.id)) == []
    assert store.sandboxes("bob", Filter()) == []
    assert store.events("bob", 0, 10) == store.events_about("bob", row.id, 10) == []
    mine = store.run("ada", row.id)
    assert mine is not None
    assert mine.state == "running"
    assert [tenant for tenant, _ in store.live_sandboxes()] == ["ada"]


async def test_lists_go_from_new_to_old_page_by_page(store: SqliteStore) -> None:
    """Rows of the same moment are neither shown twice nor lost."""
    rows = [run(at=float(i // 3)) for i in range(10)]
    for row in rows:
        store.run_started("ada", row)
    await store.flush()
    seen: list[str] = []
    cursor = None
    while page := store.runs("ada", Filter(limit=3, cursor=cursor)):
        seen += [row.id for row in page]
        cursor = page[-1].id
    assert sorted(seen) == sorted(row.id for row in rows)
    assert [r.created_at for r in store.runs("ada", Filter())] == sorted((r.created_at for r in rows), reverse=True)


async def test_labels_narrow_together(store: SqliteStore) -> None:
    """A row must carry every label asked for."""
    both, one = run(team="x", stage="test"), run(team="x")
    store.run_started("ada", both)
    store.run_started("ada", one)
    await store.flush()
    found = store.runs("ada", Filter(labels=(("team", "x"), ("stage", "test"))))
    assert [row.id for row in found] == [both.id]
    assert len(store.runs("ada", Filter(labels=(("team", "x"),)))) == 2


async def test_a_sandbox_that_ended_stays_ended(store: SqliteStore) -> None:
    """No terminal state is left again."""
    box = sandbox()
    store.sandbox_created("ada", box)
    store.sandbox_changed("ada", msgspec.structs.replace(box, state=State.STOPPED))
    store.sandbox_changed("ada", msgspec.structs.replace(box, state=State.RUNNING))
    store.sandbox_created("ada", box)
    await store.flush()
    row = store.sandbox("ada", box.id)
    assert row is not None
    assert row.state is State.STOPPED
    assert store.live_sandboxes() == []


async def test_events_have_growing_cursors(store: SqliteStore) -> None:
    """What comes after a cursor, oldest first."""
    for n in range(5):
        store.event(NewEvent("ada", f"e{n}", float(n), data={"n": n}))
    await store.flush()
    first = store.events("ada", 0, 2)
    rest = store.events("ada", first[-1].id, 10)
    assert [e.type for e in first + rest] == ["e0", "e1", "e2", "e3", "e4"]
    assert store.last_event("ada") == rest[-1].id
    assert store.last_event("bob") == 0


async def test_the_first_answer_to_a_key_stays(store: SqliteStore) -> None:
    """For its tenant, its route and its key alone, until it expires."""
    claim = Claim("ada", "POST /v1/runs", "k", b"d")
    soon = time.time() + 86_400
    await store.keep(claim, Answered(b"d", 200, b"first"), soon)
    await store.keep(claim, Answered(b"e", 200, b"second"), soon)
    assert store.answered(claim) == Answered(b"d", 200, b"first")
    assert store.answered(Claim("bob", "POST /v1/runs", "k", b"d")) is None
    assert store.answered(Claim("ada", "POST /v1/sandboxes", "k", b"d")) is None
    old = Claim("ada", "r", "old", b"d")
    await store.keep(old, Answered(b"d", 200, b"x"), time.time() - 1)
    assert store.answered(old) is None


async def test_tidying_keeps_what_is_open_and_what_is_new(store: SqliteStore) -> None:
    """Old and ended goes, with its labels; one tenant's surplus never costs another's."""
    open_, old, new = run(at=1.0), run(at=1.0, team="x"), run(at=1000.0)
    for row in (open_, old, new):
        store.run_started("ada", row)
    store.run_ended("ada", ended(old))
    store.run_ended("ada", ended(new))
    for n in range(20):
        store.event(NewEvent("ada", "noise", float(n)))
    store.event(NewEvent("bob", "quiet", 0.0))
    await store.tidy(before=500.0, keep_runs=100, keep_events=5)
    assert {row.id for row in store.runs("ada", Filter())} == {open_.id, new.id}
    assert len(store.events("ada", 0, 100)) == 5
    assert len(store.events("bob", 0, 100)) == 1
    await store.tidy(before=0.0, keep_runs=0, keep_events=5)
    assert [row.id for row in store.runs("ada", Filter())] == [open_.id]


async def test_kept_answers_are_bounded(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's oldest go first."""
    assert MOST_ANSWERS == 20_000
    monkeypatch.setattr("ringfence.store.sqlite.MOST_ANSWERS", 3)
    until = time.time() + 1000
    for n in range(6):
        store.event(NewEvent("ada", "x", 1.0))
        await store.keep(Claim("ada", "r", str(n), b"d"), Answered(b"d", 200, b"x"), until + n)
    await store.tidy(0.0, 100, 100)
    kept = [n for n in range(6) if store.answered(Claim("ada", "r", str(n), b"d")) is not None]
    assert kept == [3, 4, 5]


async def test_a_row_is_durable_soon_without_being_waited_for(store: SqliteStore, tmp_path: Path) -> None:
    """Another process sees it after the gathering time and a commit."""
    row = run()
    store.run_started("ada", row)
    with sqlite3.connect(tmp_path / "ringfence.db") as other:
        for _ in range(6000):
            if other.execute("SELECT count(*) FROM runs").fetchone()[0]:
                return
            await asyncio.sleep(0.01)
    pytest.fail("the row was never committed")


async def test_a_store_that_cannot_write_says_so_and_loses_nothing(store: SqliteStore, tmp_path: Path) -> None:
    """While another holds the lock it is not ready; afterwards what was queued is there."""
    store._write.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / "ringfence.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    row = run()
    store.run_started("ada", row)
    for _ in range(6000):
        if not store.ready():
            break
        await asyncio.sleep(0.01)
    assert not store.ready()
    other.execute("ROLLBACK")
    other.close()
    await store.flush()
    assert store.ready()
    assert store.run("ada", row.id) is not None


async def test_one_bad_row_costs_only_itself(store: SqliteStore) -> None:
    """A row the database refuses does not take its batch with it."""
    good = run()
    store.run_started("ada", msgspec.structs.replace(run(), state="odd"))
    store.run_started("ada", good)
    await store.flush()
    assert [row.id for row in store.runs("ada", Filter())] == [good.id]


def test_a_key_is_found_by_its_digest_and_kept_nowhere(tmp_path: Path) -> None:
    """The files hold no key; revocation and expiry are seen at once by a store that is open."""
    path = tmp_path / "ringfence.db"
    ring, store = KeyRing(path), SqliteStore(path)
    secret, made = ring.add("ada", "ci", time.time() + 60)
    found = store.key(digest_of(secret))
    assert found is not None
    assert (found.tenant, found.valid(time.time()), found.valid(time.time() + 61)) == ("ada", True, False)
    assert ring.revoke(made.id)
    assert not ring.revoke(made.id)
    again = store.key(digest_of(secret))
    assert again is not None
    assert not again.valid(time.time())
    assert store.key(digest_of(secret + "x")) is None
    assert [key.name for key in ring.list("ada")] == ["ci"]
    ring.close()
    store._writer.start()
    store.close()
    assert all(secret.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("tenant", ["", "a b", "ä", "x" * 65, "a/b", "a\n"])
def test_a_tenants_name_is_plain(tmp_path: Path, tenant: str) -> None:
    """It appears in logs, labels and answers."""
    ring = KeyRing(tmp_path / "x.db")
    with pytest.raises(BadRequest):
        ring.add(tenant)
    ring.close()


def test_a_store_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Another version, or a link where the file should be."""
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(PlatformFault, match="version 99"):
        SqliteStore(other)
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path)
    with pytest.raises(PlatformFault, match="regular"):
        SqliteStore(link)


# --- paused sandboxes ---


def kept(row: wire.Sandbox, tenant: str = "ada") -> PauseRow:
    """What is kept of it."""
    return PauseRow(row.id, tenant, 5, b"digest", 10.0)


async def test_a_paused_row_leaves_only_by_its_own_doors(store: SqliteStore) -> None:
    """A late word of the node's changes nothing; resuming and ending do, once, and take what was kept along."""
    row = sandbox()
    store.sandbox_created("ada", row)
    paused = msgspec.structs.replace(row, state=State.PAUSED)
    assert await store.sandbox_paused(paused, kept(row))
    assert not await store.sandbox_paused(paused, kept(row))
    store.sandbox_changed("ada", msgspec.structs.replace(row, state=State.FAILED))
    store.port_saved(PortRow("ada", row.id, 80, b"{}"))
    await store.flush()
    assert [one.id for one in store.sandboxes("ada", Filter(state="paused"))] == [row.id]
    assert (store.live_sandboxes(), store.pauses()) == ([], [kept(row)])
    assert [port.port for port in store.ports()] == [80]
    assert not await store.sandbox_unpaused("bob", row)
    assert await store.sandbox_unpaused("ada", row)
    assert not await store.sandbox_unpaused("ada", row)
    assert (store.pauses(), len(store.live_sandboxes())) == ([], 1)


async def test_what_has_ended_cannot_be_paused(store: SqliteStore) -> None:
    """The end came first: nothing is kept."""
    row = sandbox()
    store.sandbox_created("ada", row)
    store.sandbox_changed("ada", msgspec.structs.replace(row, state=State.STOPPED))
    assert not await store.sandbox_paused(msgspec.structs.replace(row, state=State.PAUSED), kept(row))
    assert store.pauses() == []


async def test_a_store_of_the_first_version_is_carried_over(tmp_path: Path) -> None:
    """Its rows, labels and ports are there, and its sandboxes can be paused; a later version is refused."""
    path, row = tmp_path / "ringfence.db", sandbox()
    made = SqliteStore(path)
    made.start()
    made.sandbox_created("ada", msgspec.structs.replace(row, labels={"a": "b"}))
    made.port_saved(PortRow("ada", row.id, 80, b"{}"))
    await made.flush()
    made.close()
    connection = sqlite3.connect(path, isolation_level=None)
    old = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'sandboxes'").fetchone()[0]
    rows = connection.execute("SELECT * FROM sandboxes").fetchall()
    for statement in ("DROP TABLE pauses", "DROP TABLE sandboxes", old.replace("'paused', ", "")):
        connection.execute(statement)
    connection.executemany("INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    again = SqliteStore(path)
    again.start()
    assert [one.id for one in again.sandboxes("ada", Filter(labels=(("a", "b"),)))] == [row.id]
    assert [port.port for port in again.ports()] == [80]
    assert await again.sandbox_paused(msgspec.structs.replace(row, state=State.PAUSED), kept(row))
    again.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(PlatformFault):
        SqliteStore(path)


async def test_a_tenant_without_a_key_is_known_as_that(store: SqliteStore, tmp_path: Path) -> None:
    """From its last key's revocation or expiry on; a key without an end keeps it."""
    ring = KeyRing(tmp_path / "ringfence.db")
    assert store.keyless_since("ada") is None
    _, first = ring.add("ada")
    assert store.keyless_since("ada") is None
    ring.revoke(first.id)
    since = store.keyless_since("ada")
    assert since is not None
    assert since <= time.time()
    ring.add("ada", expires_at=since + 500)
    assert store.keyless_since("ada") == since + 500
    ring.add("ada")
    assert store.keyless_since("ada") is None
    assert store.keyless_since("bob") is None
    ring.close()
