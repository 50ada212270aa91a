"""Pausing and resuming: one thing at a time, the record decides, and no moment at which a crash leaves half of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ringfence import wire
from ringfence.domain.errors import BadRequest, Conflict, NotFound, OverQuota, PlatformFault, RingfenceError
from ringfence.engine import pause as pausing
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Ceiling, Policy
from ringfence.node import supervisor
from ringfence.runtimes.fake import Fake
from ringfence.store.base import Filter
from ringfence.store.sqlite import KeyRing
from tests.support.house import House, house
from tests.support.nodewire import until

pytestmark = pytest.mark.anyio
PAUSING = ("worth trying", "taken", "on disk", "recorded as paused", "stopped")
RESUMING = ("checked", "started", "sent", "put back", "alive", "recorded as running", "removed")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    """A server."""
    async with house(tmp_path) as made:
        yield made


def frozen_at(engine: Engine, moment: str) -> asyncio.Event:
    """Whoever comes to that moment stays there for ever; the event says that somebody did."""
    reached = asyncio.Event()

    async def at(where: str) -> None:
        if where == moment:
            reached.set()
            await asyncio.Event().wait()

    engine.pauses.at = at
    return reached


def code_of(error: BaseException) -> str:
    """A refusal's code."""
    return error.code if isinstance(error, RingfenceError) else repr(error)


# --- what is kept ---


async def test_a_paused_sandbox_is_its_files_and_its_record(home: House) -> None:
    """Nothing of it is left at the node; it is shown as paused, and found by that."""
    name = await home.made(wake=False, on_timeout="pause")
    before = await home.engine.sandboxes.get("ada", name)
    paused = await home.engine.pauses.pause("ada", name)
    assert paused.paused is not None
    assert (paused.state, paused.paused.kept, paused.paused.reason) == ("paused", "files", "by its owner")
    assert name not in home.live
    assert home.node.runtime.host.left.isdisjoint({name})
    assert await home.engine.sandboxes.get("ada", name) == paused
    assert [row.id for row in await home.engine.sandboxes.page("ada", Filter(state="paused"))] == [name]
    assert home.engine.admission.sandboxes("ada") == 0
    again = await home.engine.pauses.resume("ada", name)
    assert (again.created_at, again.labels, again.limits) == (before.created_at, before.labels, before.limits)
    assert (again.template_digest, again.on_timeout, again.wake) == (before.template_digest, "pause", False)
    assert again.ttl_seconds == before.ttl_seconds
    assert await home.note(name) == b"kept"
    assert home.api.files() == []
    assert await home.events(name) == ["sandbox.created", "sandbox.paused", "sandbox.resumed"]


async def test_programs_end_and_their_owners_hear_why(home: House) -> None:
    """A program that runs while its sandbox is paused is told to have been stopped by that."""
    name = await home.made()
    running = asyncio.create_task(
        home.engine.processes.collected("ada", name, wire.ProcessRequest(shell="echo on; sleep 100"))
    )
    await until(lambda: home.node.supervisor.table.get("ada", name).programs, "the program")
    await home.engine.pauses.pause("ada", name)
    result = await running
    assert (result.exit.how, result.exit.reason) == ("stopped", "its sandbox was paused: files are kept, programs end")


async def test_what_uses_a_paused_sandbox_is_refused(home: House) -> None:
    """Every verb but looking, resuming and stopping, with what to do about it."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    engine, process = home.engine, wire.ProcessRequest(shell="echo")
    for asked in (
        engine.processes.collected("ada", name, process),
        engine.processes.detached("ada", name, process),
        engine.processes.list("ada", name),
        engine.files.write("ada", name, "x", b""),
        engine.files.entries("ada", name, ".", 1),
        engine.sandboxes.extend("ada", name, 100),
        engine.sandboxes.allow("ada", name, "none"),
        engine.pauses.pause("ada", name),
    ):
        with pytest.raises(Conflict) as refusal:
            await asked
        assert (refusal.value.code, "resume" in refusal.value.remediation) == ("sandbox_paused", True)
    assert await home.state(name) == "paused"


async def test_nobody_learns_of_anothers(home: House) -> None:
    """To another tenant a paused sandbox is one that never was."""
    name = await home.made(wake=True)
    await home.engine.pauses.pause("ada", name)
    for asked in (
        home.engine.pauses.pause("bob", name),
        home.engine.pauses.resume("bob", name),
        home.engine.sandboxes.stop("bob", name),
        home.engine.sandboxes.get("bob", name),
        home.engine.files.write("bob", name, "x", b""),
    ):
        with pytest.raises(NotFound):
            await asked
    assert await home.state(name) == "paused"


async def test_what_cannot_be_done_is_said(home: House) -> None:
    """Memory, a running sandbox, an ended one, one that never was."""
    name = await home.made()
    with pytest.raises(BadRequest) as refusal:
        await home.engine.pauses.pause("ada", name, memory=True)
    assert refusal.value.code == "pause_memory_unsupported"
    with pytest.raises(Conflict) as running:
        await home.engine.pauses.resume("ada", name)
    assert running.value.code == "sandbox_running"
    await home.engine.sandboxes.stop("ada", name)
    for asked in (home.engine.pauses.pause("ada", name), home.engine.pauses.resume("ada", name)):
        with pytest.raises(Conflict) as ended:
            await asked
        assert ended.value.code == "sandbox_ended"
    with pytest.raises(NotFound):
        await home.engine.pauses.pause("ada", "s" + "a" * 26)


# --- ending ---


async def test_a_paused_sandbox_is_stopped(home: House) -> None:
    """Its file is removed, and it ends as any other."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    assert home.api.files() == [name]
    stopped = await home.engine.sandboxes.stop("ada", name)
    assert (stopped.state, stopped.paused) == ("stopped", None)
    assert home.api.files() == []
    assert home.api.shelf.used("ada") == 0
    with pytest.raises(Conflict):
        await home.engine.pauses.resume("ada", name)
    assert (await home.engine.sandboxes.stop("ada", name)).state == "stopped"


async def test_what_is_paused_for_too_long_ends(tmp_path: Path) -> None:
    """The operator's setting bounds how long files are kept."""
    async with house(tmp_path, Policy(keep_paused_seconds=0.01)) as home:
        name = await home.made()
        await home.engine.pauses.pause("ada", name)
        await asyncio.sleep(0.02)
        await home.engine.pauses.tidy()
        ended = await home.engine.sandboxes.get("ada", name)
        assert ended.exit is not None
        assert (ended.state, ended.exit.how, home.api.files()) == ("stopped", "timed_out", [])


async def test_what_no_key_can_resume_any_more_ends(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant whose last key is gone for good leaves nothing on the disk."""
    monkeypatch.setattr(pausing, "KEYLESS_SECONDS", 0.0)
    ring = KeyRing(home.api.place / "ringfence.db")
    _, key = ring.add("ada")
    name, others = await home.made(), await home.made("bob")
    await home.engine.pauses.pause("ada", name)
    await home.engine.pauses.pause("bob", others)
    await home.engine.pauses.tidy()
    assert await home.state(name) == "paused"
    ring.revoke(key.id)
    ring.close()
    await home.engine.pauses.tidy()
    assert (await home.state(name), home.api.files()) == ("stopped", [others])


async def test_a_rebuilt_template_is_not_taken_for_the_old_one(home: House, tmp_path: Path) -> None:
    """Files of one template are not put into another; the sandbox stays paused."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    index = tmp_path / "templates" / "index" / "base.json"
    text = index.read_text()
    (tmp_path / "templates" / ("e" * 64) / "root").mkdir(parents=True)
    index.write_text(text.replace("d" * 64, "e" * 64))
    with pytest.raises(Conflict) as refusal:
        await home.engine.pauses.resume("ada", name)
    assert refusal.value.code == "template_gone"
    index.unlink()
    with pytest.raises(Conflict):
        await home.engine.pauses.resume("ada", name)
    assert await home.state(name) == "paused"
    index.write_text(text)
    await home.engine.pauses.resume("ada", name)
    assert await home.note(name) == b"kept"


@pytest.mark.parametrize("harm", ["changed", "cut", "longer", "gone", "link"])
async def test_a_damaged_file_is_not_put_back(home: House, harm: str) -> None:
    """What is kept is checked before anything is started: neither half of it nor another file comes in."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    file = home.api.place / "paused" / name
    data = file.read_bytes()
    file.unlink()
    if harm == "link":
        (home.api.place / "secret").write_bytes(data)
        file.symlink_to(home.api.place / "secret")
    elif harm != "gone":
        file.write_bytes({"changed": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"x"}[harm])
    begun = len(home.node.runtime.started)
    with pytest.raises(PlatformFault) as fault:
        await home.engine.pauses.resume("ada", name)
    assert fault.value.code == "pause_damaged"
    assert name not in {spec.id for spec in home.node.runtime.started[begun:]}
    assert await home.state(name) == "paused"


# --- room ---


async def test_a_tenants_room_is_its_own(tmp_path: Path) -> None:
    """Past its bytes a tenant is refused before any program ends; another is not, and room given back is room."""
    policy = Policy(ceiling=lambda tenant: Ceiling(max_paused_bytes=900 if tenant == "ada" else 10**9))
    async with house(tmp_path, policy) as home:
        first, second, others = await home.made(), await home.made(), await home.made("bob")
        await home.engine.files.write("ada", second, "more", b"x" * 1000)
        await home.engine.files.write("bob", others, "more", b"x" * 1000)
        await home.engine.pauses.pause("ada", first)
        sleeper = await home.engine.processes.detached(
            "ada", second, wire.ProcessRequest(shell="sleep 100", detach=True)
        )
        with pytest.raises(OverQuota) as refusal:
            await home.engine.pauses.pause("ada", second)
        assert refusal.value.code == "paused_quota"
        rows = await home.engine.processes.list("ada", second)
        assert [row.running for row in rows if row.pid == sleeper.pid] == [True]
        await home.engine.pauses.pause("bob", others)
        assert home.api.shelf.used("ada") == (home.api.place / "paused" / first).stat().st_size


async def test_an_agent_that_understates_is_stopped_at_the_quota(tmp_path: Path) -> None:
    """What is counted is what is written: an archive that outgrows its room leaves nothing, and the sandbox runs on."""
    policy = Policy(ceiling=lambda _: Ceiling(max_paused_bytes=50_000))
    async with house(tmp_path, policy) as home:
        name = await home.made()
        await home.engine.files.write("ada", name, "big", os.urandom(40_000))  # in the fake's archive a third larger
        with pytest.raises(OverQuota):
            await home.engine.pauses.pause("ada", name)
        assert (home.api.files(), home.api.shelf.used("ada")) == ([], 0)
        assert await home.note(name) == b"kept"
        assert await home.events(name) == ["sandbox.created", "sandbox.pause_failed"]


async def test_no_sandbox_sends_more_than_it_can_hold(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent in hostile hands that sends without end is cut off at what its limits allow."""
    monkeypatch.setattr(pausing, "NAME_BYTES", -1000)
    name = await home.made()
    await home.engine.files.write("ada", name, "big", os.urandom(3_900_000))
    with pytest.raises(RingfenceError) as refusal:
        await home.engine.pauses.pause("ada", name)
    assert refusal.value.code == "pause_too_large"
    assert home.api.files() == []
    assert await home.note(name) == b"kept"


async def test_a_full_disk_is_said_before_programs_end(tmp_path: Path) -> None:
    """The records' own disk is kept from running full."""
    async with house(tmp_path, kept_free=1 << 60) as home:
        name = await home.made()
        with pytest.raises(PlatformFault) as fault:
            await home.engine.pauses.pause("ada", name)
        assert fault.value.code == "paused_disk_full"
        assert await home.state(name) == "running"
        assert await home.events(name) == ["sandbox.created"]


# --- waking, and time ---


async def test_one_that_wakes_is_resumed_by_its_use(home: House) -> None:
    """Many uses at once resume it once, and all are served."""
    name = await home.made(wake=True)
    await home.engine.pauses.pause("ada", name)
    assert await asyncio.gather(*(home.note(name) for _ in range(20))) == [b"kept"] * 20
    assert (await home.events(name)).count("sandbox.resumed") == 1


async def test_looking_wakes_nobody(home: House) -> None:
    """get, list and why leave it paused."""
    name = await home.made(wake=True)
    await home.engine.pauses.pause("ada", name)
    await home.engine.sandboxes.get("ada", name)
    await home.engine.sandboxes.page("ada", Filter())
    assert "files are kept" in (await home.engine.why("ada", name)).summary
    assert await home.state(name) == "paused"


async def test_a_slow_wake_is_bounded(home: House) -> None:
    """Who waits too long is asked to come again, and the waking goes on."""
    name = await home.made(wake=True)
    await home.engine.pauses.pause("ada", name)
    reached = frozen_at(home.engine, "started")
    with pytest.raises(PlatformFault) as fault:
        await home.engine.turns.reach("ada", name, 0.2)
    assert fault.value.code == "sandbox_waking"
    await asyncio.wait_for(reached.wait(), 60)


async def test_who_read_that_it_is_paused_may_resume_it_at_once(home: House) -> None:
    """Its record says so before the last of the old sandbox is gone; that is waited for, and is no conflict."""
    name = await home.made()
    told, go_on = asyncio.Event(), asyncio.Event()

    async def at(where: str) -> None:
        if where == "recorded as paused":
            told.set()
            await go_on.wait()

    home.engine.pauses.at = at
    pausing = asyncio.create_task(home.engine.pauses.pause("ada", name))
    await asyncio.wait_for(told.wait(), 60)
    assert await home.state(name) == "paused"
    resuming = asyncio.create_task(home.engine.pauses.resume("ada", name))
    await asyncio.sleep(0.05)
    assert not resuming.done()
    go_on.set()
    await asyncio.wait_for(asyncio.gather(pausing, resuming), 60)
    assert await home.state(name) == "running"


async def test_time_that_is_over_pauses(home: House) -> None:
    """At its expiry the files are kept, if that was wanted; a new time begins with its resumption."""
    name, other = await home.made(on_timeout="pause"), await home.made()
    for each in (name, other):
        await home.engine.sandboxes.extend("ada", each, 0.1)
    await asyncio.sleep(0.11)
    await home.node.supervisor.watch()
    await until(lambda: name not in home.live and other not in home.live, "the end of their time")
    await home.becomes(name, "paused")
    assert await home.state(other) == "stopped"
    told = (await home.engine.sandboxes.get("ada", name)).paused
    assert told is not None
    assert told.reason == "its time to live was over"
    again = await home.engine.pauses.resume("ada", name, 500)
    assert again.ttl_seconds == 500
    assert await home.note(name) == b"kept"


async def test_time_that_is_over_ends_what_cannot_be_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for its files it ends when the grace is over, as it would have; it never lives on."""
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.2)
    policy = Policy(ceiling=lambda _: Ceiling(max_paused_bytes=0))
    async with house(tmp_path, policy) as home:
        name = await home.made(on_timeout="pause")
        await home.engine.sandboxes.extend("ada", name, 0.1)
        for _ in range(2):
            await asyncio.sleep(0.25)
            await home.node.supervisor.watch()
        await until(lambda: name not in home.live, "its end")
        await home.becomes(name, "stopped")
        assert "sandbox.pause_failed" in await home.events(name)


async def test_an_api_that_comes_back_pauses_what_expired_meanwhile(home: House) -> None:
    """The node's word outlives the connection on which it was said."""
    name = await home.made(on_timeout="pause")
    await home.engine.sandboxes.extend("ada", name, 0.1)
    await home.api.crash()
    await asyncio.sleep(0.11)
    await home.node.supervisor.watch()
    await home.start()
    await home.becomes(name, "paused")


# --- races ---


async def test_of_many_at_once_one_wins(home: House) -> None:
    """Of many pauses one succeeds, of many resumptions likewise; the others are told why."""
    name = await home.made()
    for verb, codes in (
        (home.engine.pauses.pause, {"sandbox_busy", "sandbox_paused"}),
        (home.engine.pauses.resume, {"sandbox_busy", "sandbox_running"}),
    ):
        answers = await asyncio.gather(*(verb("ada", name) for _ in range(10)), return_exceptions=True)
        assert len([one for one in answers if isinstance(one, wire.Sandbox)]) == 1
        assert {code_of(one) for one in answers if isinstance(one, BaseException)} <= codes
    assert await home.note(name) == b"kept"


@pytest.mark.parametrize("moment", PAUSING)
async def test_a_stop_while_it_is_paused_wins(home: House, moment: str) -> None:
    """Whenever the stop comes, the sandbox is stopped in the end, and nothing is kept."""
    name = await home.made()

    async def at(where: str) -> None:
        if where == moment:
            stopping.append(asyncio.create_task(home.engine.sandboxes.stop("ada", name)))
            await asyncio.sleep(0.05)

    stopping: list[asyncio.Task[wire.Sandbox]] = []
    home.engine.pauses.at = at
    with contextlib.suppress(RingfenceError):
        await home.engine.pauses.pause("ada", name)
    assert (await stopping[0]).state == "stopped"
    assert await home.state(name) == "stopped"
    assert (home.api.files(), home.live, home.api.shelf.used("ada")) == ([], set(), 0)


@pytest.mark.parametrize("moment", RESUMING)
async def test_a_stop_while_it_is_resumed_wins(home: House, moment: str) -> None:
    """The same the other way."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    stopping: list[asyncio.Task[wire.Sandbox]] = []

    async def at(where: str) -> None:
        if where == moment:
            stopping.append(asyncio.create_task(home.engine.sandboxes.stop("ada", name)))
            await asyncio.sleep(0.05)

    home.engine.pauses.at = at
    with contextlib.suppress(RingfenceError):
        await home.engine.pauses.resume("ada", name)
    assert (await stopping[0]).state == "stopped"
    assert (home.api.files(), home.live, home.api.shelf.used("ada")) == ([], set(), 0)


async def test_everything_at_once_ends_in_one_state(home: House) -> None:
    """A crowd that pauses, resumes and uses one sandbox leaves it running or paused, with its files."""
    name = await home.made()

    async def one(number: int) -> None:
        await asyncio.sleep(number % 7 / 500)
        with contextlib.suppress(Conflict):
            match number % 4:
                case 0:
                    await home.engine.pauses.pause("ada", name)
                case 1:
                    await home.engine.pauses.resume("ada", name)
                case 2:
                    assert await home.note(name) == b"kept"
                case _:
                    await home.engine.processes.collected("ada", name, wire.ProcessRequest(shell="echo x"))

    await asyncio.gather(*(one(number) for number in range(80)))
    with contextlib.suppress(Conflict):
        await home.engine.pauses.resume("ada", name)
    assert await home.note(name) == b"kept"


# --- dying ---


@pytest.mark.parametrize("moment", PAUSING)
async def test_an_api_that_dies_while_pausing_leaves_no_half(home: House, moment: str) -> None:
    """At every moment: a running sandbox without a file, or a paused one with it; either has what it had."""
    name = await home.made()
    reached = frozen_at(home.engine, moment)
    asked = asyncio.create_task(home.engine.pauses.pause("ada", name))
    await asyncio.wait_for(reached.wait(), 60)
    await home.restart()
    state = await home.state(name)
    assert state == ("paused" if moment in {"recorded as paused", "stopped"} else "running")
    assert (home.api.files(), home.live) == (([name], set()) if state == "paused" else ([], {name}))
    if state == "paused":
        await home.engine.pauses.resume("ada", name)
    assert await home.note(name) == b"kept"
    asked.cancel()


@pytest.mark.parametrize("moment", RESUMING)
async def test_an_api_that_dies_while_resuming_leaves_no_half(home: House, moment: str) -> None:
    """At every moment: paused as before, or running; never a sandbox with half its files that passes for whole."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    reached = frozen_at(home.engine, moment)
    asked = asyncio.create_task(home.engine.pauses.resume("ada", name))
    await asyncio.wait_for(reached.wait(), 60)
    await home.restart()
    state = await home.state(name)
    assert state == ("running" if moment in {"recorded as running", "removed"} else "paused")
    assert (home.api.files(), home.live) == (([name], set()) if state == "paused" else ([], {name}))
    if state == "paused":
        await home.engine.pauses.resume("ada", name)
    assert await home.note(name) == b"kept"
    asked.cancel()


@pytest.mark.parametrize("moment", [*PAUSING, *RESUMING])
async def test_a_sandbox_that_dies_on_the_way_is_lost_or_paused(home: House, moment: str) -> None:
    """Its death at any moment leaves it paused, or failed and saying so; only of a paused one anything is kept."""
    name = await home.made()
    if moment in RESUMING:
        await home.engine.pauses.pause("ada", name)
    fake: Fake = home.node.runtime

    async def at(where: str) -> None:
        if where == moment and name in fake.live:
            fake.live[name].agent.vanish()
            await asyncio.sleep(0.02)

    home.engine.pauses.at = at
    verb = home.engine.pauses.resume if moment in RESUMING else home.engine.pauses.pause
    with contextlib.suppress(RingfenceError):
        await verb("ada", name)
    await until(lambda: name not in home.live or moment in {"checked", "stopped"}, "its end")
    await home.engine.ledger.reconcile()
    state = await home.state(name)
    assert state in {"paused", "failed"} or (moment, state) == ("checked", "running")
    assert home.api.files() == ([name] if state == "paused" else [])


async def test_everything_that_is_paused_outlives_the_server(home: House) -> None:
    """A new api knows it, counts it, and resumes it."""
    name = await home.made(wake=True)
    await home.engine.pauses.pause("ada", name)
    used = home.api.shelf.used("ada")
    await home.restart()
    assert home.api.shelf.used("ada") == used > 0
    assert await home.note(name) == b"kept"


async def test_a_pause_whose_file_vanished_says_so(home: House) -> None:
    """Found out at the next start: it has failed, and nobody waits for it."""
    name = await home.made()
    await home.engine.pauses.pause("ada", name)
    (home.api.place / "paused" / name).unlink()
    await home.restart()
    found = await home.engine.sandboxes.get("ada", name)
    assert found.error is not None
    assert (found.state, found.error.code) == ("failed", "pause_lost")
