"""The node's door: who may come in, what is a request, and what happens when whoever asked is gone."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.domain.limits import Limits
from ringfence.guest import frames
from ringfence.node.server import MAX_CONNECTIONS, Call, Connection, join, listen
from ringfence.runtimes.fake import Fake
from tests.support.nodewire import Node, Wire, fields_of, node, until

pytestmark = pytest.mark.anyio
LIMITS = fields_of(Limits())


# -- requests that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\x05{}",
        join({}),
        (2).to_bytes(4, "big") + b"[]",
        (4).to_bytes(4, "big") + b"null",
        (100_000).to_bytes(4, "big") + b"[" * 100_000,
        join({"verb": 7}),
        join({"verb": None}),
        join({"verb": ["run"]}),
        b"\0\0\0\x02\xff\xfe",
    ],
    ids=range(13),
)
async def test_a_header_that_is_none(wire: Wire, payload: bytes) -> None:
    """Whatever it is, it is answered as a bad header, once, and the connection goes on."""
    call = wire.open_raw(payload)
    assert await call.error() == "bad_header"
    assert "uptime_seconds" in await wire.ask("status")
    assert call.ends == 1


@pytest.mark.parametrize("verb", ["", "RUN", "__init__", "verb_run", "table", "run\0"])
async def test_a_verb_that_is_none(wire: Wire, verb: str) -> None:
    """Only the listed verbs are verbs."""
    assert await wire.open(verb).error() == "unknown_verb"


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("run", {}),
        ("run", {"tenant": "a"}),
        ("run", {"tenant": "a", "template": "base", "limits": []}),
        ("run", {"tenant": "a", "template": "base", "limits": None}),
        ("run", {"tenant": "a", "template": "base", "limits": {"memory_bytes": "much"}}),
        ("run", {"tenant": "a", "template": "base", "limits": {"no such limit": 1}}),
        ("run", {"tenant": ["a"], "template": "base", "limits": LIMITS}),
        ("run", {"tenant": "a", "template": ["base"], "limits": LIMITS}),
        ("run", {"tenant": "a", "template": {}, "limits": LIMITS}),
        ("run", {"tenant": "a", "template": "base", "limits": LIMITS, "isolation": ["auto"]}),
        ("run", {"tenant": "a", "template": "base", "limits": LIMITS, "labels": 7}),
        ("run", {"tenant": "a", "template": "base", "limits": LIMITS, "labels": ["x"]}),
        ("run", {"tenant": "a", "template": "base", "limits": LIMITS, "wait_seconds": "long"}),
        ("create", {"tenant": "a", "template": "base", "limits": LIMITS}),
        ("create", {"tenant": "a", "template": "base", "limits": LIMITS, "ttl_seconds": {}}),
        ("open", {"tenant": "a"}),
        ("get", {"sandbox": "x"}),
        ("get", {"tenant": "a", "sandbox": ["x"]}),
        ("get", {"tenant": "a", "sandbox": {}}),
        ("stop", {}),
        ("extend", {"tenant": "a", "sandbox": "x"}),
        ("warm", {"tenant": "a"}),
        ("warm", {"tenant": "a", "template": 5}),
    ],
    ids=range(23),
)
async def test_a_request_that_lacks_or_garbles_something(
    served: Node, wire: Wire, verb: str, fields: dict[str, object]
) -> None:
    """It is refused, nothing of it stays, and whoever asks next is served."""
    answer = await wire.ask(verb, **fields)
    assert 400 <= answer["error"]["status"] < 500
    await served.settled()
    assert len(served.supervisor.table) == 0
    assert "override" in await wire.run({"op": "exec", "shell": "true"}).answer()


# -- lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 100,
        frames.HEADER.pack(2**31, frames.OPEN, 1),
        frames.HEADER.pack(0, 77, 1),
        frames.HEADER.pack(1, frames.CREDIT, 1) + b"x",
        frames.HEADER.pack(frames.MAX_DATA + 1, frames.STDIN, 1),
    ],
)
async def test_a_connection_that_lies_is_closed_alone(served: Node, wire: Wire, lie: bytes) -> None:
    """Garbage ends that connection and no other, and no sandbox."""
    other = await served.connect()
    sandbox = await other.create()
    wire.raw(lie)
    await until(lambda: wire.closed)
    call = other.exec(sandbox["id"], "echo still here")
    await call.answer()
    assert bytes(call.out) == b"still here\n"
    other.close()


async def test_a_stream_opened_twice_closes_the_connection(served: Node, wire: Wire) -> None:
    """An id in use is nobody's to open; the run it belonged to stops like any whose client is gone."""
    call = wire.run({"op": "exec", "shell": "sleep 600"})
    await call.started()
    wire.send(frames.OPEN, call.id, join({"verb": "status"}))
    await until(lambda: wire.closed)
    await until(lambda: not served.supervisor.table.ids())
    await served.settled()


async def test_frames_of_streams_nobody_opened_are_dropped(wire: Wire) -> None:
    """They may be late ones of a stream that ended: no harm, no answer."""
    for type_ in (frames.STDIN, frames.EOF, frames.CANCEL, frames.CONTROL):
        wire.send(type_, 999_999, b"{}" if type_ in {frames.CONTROL, frames.STDIN} else b"")
    wire.send(frames.CREDIT, 999_999, b"\0\0\0\1")
    assert "uptime_seconds" in await wire.ask("status")


# -- the asker is gone ------------------------------------------------------------------------------------------------


async def test_a_one_shot_run_stops_with_its_client(served: Node, wire: Wire) -> None:
    """Nobody wants its answer any more: its sandbox goes."""
    await wire.run({"op": "exec", "shell": "sleep 600"}).started()
    (sandbox_id,) = served.supervisor.table.ids()
    wire.close()
    await until(lambda: sandbox_id not in served.runtime.host.left)


async def test_a_cancelled_run_is_answered_once(served: Node, wire: Wire) -> None:
    """CANCEL stops it; the END says that it was stopped and why."""
    call = wire.run({"op": "exec", "shell": "sleep 600"})
    await call.started()
    call.cancel()
    assert (await call.answer())["override"] == {"how": "stopped", "reason": "its client went away"}
    await until(lambda: not served.supervisor.table.ids())
    assert call.ends == 1


async def test_a_sandbox_stays_when_its_client_goes(served: Node, wire: Wire) -> None:
    """A sandbox with a time to live outlives a connection; a program that was not detached does not."""
    sandbox = await wire.create()
    await wire.exec(sandbox["id"], "sleep 600").started()
    await wire.exec(sandbox["id"], "sleep 700", detach=True).started()
    wire.close()
    other = await served.connect()
    rows: list[dict[str, object]] = []
    async with asyncio.timeout(60):
        while [row["running"] for row in rows] != [False, True]:
            listing = other.open("open", {"op": "list"}, tenant="a", sandbox=sandbox["id"], kind="file")
            await listing.answer()
            rows = listing.guest["processes"]
    assert (await other.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]["state"] == "running"
    other.close()


async def test_leaving_while_waiting_for_a_sandbox(tmp_path: Path) -> None:
    """Whoever goes before a sandbox came leaves none behind, and a CANCEL is answered."""
    runtime = Fake()
    runtime.start_seconds = 0.05
    async with node(tmp_path, runtime) as served:
        wire, leaving = await served.connect(), await served.connect()
        calls = [wire.run({"op": "exec", "shell": "sleep 600"}, tenant=f"t{n}") for n in range(3)]
        leaving.run({"op": "exec", "shell": "sleep 600"}, tenant="l")
        await until(lambda: len(served.supervisor.status()["pools"]) == 4)
        for call in calls:
            call.cancel()
        leaving.close()
        for call in calls:
            await call.answer()
        await served.settled()
        assert not served.supervisor.table.ids()
        assert runtime.host.left == set(served.supervisor._warm)


@pytest.mark.parametrize("turns", range(0, 24, 2))
async def test_leaving_at_any_moment(served: Node, turns: int) -> None:
    """However far a run has come when its client vanishes, nothing of it stays."""
    wire = await served.connect()
    wire.run({"op": "exec", "shell": "echo hi; sleep 600"})
    for _ in range(turns):
        await asyncio.sleep(0)
    wire.close()
    await asyncio.sleep(0.01)
    await until(lambda: not served.supervisor.table.ids())
    await served.settled()
    assert served.runtime.host.left == set(served.supervisor._warm)


async def test_leaving_does_not_stop_the_stopping(served: Node, wire: Wire) -> None:
    """A stop that was begun is finished, though nobody waits for its answer."""
    sandbox = await wire.create()
    served.runtime.stop_seconds = 0.1
    wire.open("stop", tenant="a", sandbox=sandbox["id"])
    await until(lambda: sandbox["id"] not in served.runtime.live)
    wire.close()
    await until(lambda: sandbox["id"] not in served.runtime.host.left)
    await until(lambda: not served.supervisor.table.ids())


# -- order ------------------------------------------------------------------------------------------------------------


async def test_what_is_sent_before_the_sandbox_is_there_arrives(tmp_path: Path) -> None:
    """Input that comes while a sandbox is still being started is neither lost nor reordered."""
    runtime = Fake()
    runtime.start_seconds = 0.1
    async with node(tmp_path, runtime) as served:
        wire = await served.connect()
        call = wire.run({"op": "exec", "argv": ["cat"], "stdin": True})
        pieces = [f"{n:04d}\n".encode() for n in range(500)]
        for piece in pieces:
            call.stdin(piece)
        call.eof()
        await call.answer()
        assert bytes(call.out) == b"".join(pieces)


async def test_an_answer_is_the_last_frame(wire: Wire) -> None:
    """After END nothing comes on a stream, whatever is still sent on it."""
    call = wire.run({"op": "exec", "shell": "echo hi"})
    await call.answer()
    call.grant(10)
    call.cancel()
    call.stdin(b"late")
    await wire.ask("status")
    assert call.ends == 1


async def test_finished_calls_are_forgotten(served: Node, wire: Wire) -> None:
    """A connection that lives for months keeps nothing of what was answered."""
    for _ in range(30):
        await wire.run({"op": "exec", "shell": "true"}).answer()
        cancelled = wire.open("events")
        cancelled.cancel()
        await cancelled.answer()
    assert not _calls_of(served)


def _calls_of(served: Node) -> list[Call]:
    """Every call any connection of this node still holds."""
    every = [thing for thing in gc.get_objects() if isinstance(thing, Connection)]
    ours = [connection for connection in every if connection._verbs._node is served.supervisor]
    return [call for connection in ours for call in connection._calls.values()]


# -- who may come in --------------------------------------------------------------------------------------------------


def _as_uid(uid: int, talk: Callable[[], int]) -> int:
    """The result of a call made by a child process with another uid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            code = talk()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _asks(path: Path) -> Callable[[], int]:
    def talk() -> int:
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(10)
            try:
                door.connect(str(path))
                door.sendall(frames.encode(frames.OPEN, 1, join({"verb": "status"})))
                return 0 if b"uptime_seconds" in door.recv(65536) else 1
            except OSError:
                return 2

    return talk


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("uid", "wide_open", "welcome"), [(4242, False, True), (4343, False, False), (4343, True, False)]
)
async def test_only_the_api_and_root_come_in(tmp_path: Path, uid: int, wide_open: bool, welcome: bool) -> None:
    """The file's mode keeps strangers out, and if somebody widens it, the kernel's word on who calls still does."""
    for place in (tmp_path, *tmp_path.parents[:3]):
        if place.stat().st_mode & 0o777 == 0o700:
            place.chmod(0o755)
    async with node(tmp_path) as served:
        path = tmp_path / "api" / "node.sock"
        server = await listen(served.supervisor, path, 4242)
        if wide_open:
            path.chmod(0o777)
        result = await asyncio.get_running_loop().run_in_executor(None, _as_uid, uid, _asks(path))
        assert (result == 0) == welcome
        server.close()


async def test_the_socket_is_for_its_owner_alone(served: Node) -> None:
    """Mode 0600, whatever the umask was."""
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


async def test_connections_are_bounded(served: Node) -> None:
    """Past the bound a connection is closed at once; the others go on."""
    wires = [await served.connect() for _ in range(MAX_CONNECTIONS)]
    await wires[-1].ask("status")
    extra = await served.connect()
    await until(lambda: extra.closed)
    assert "uptime_seconds" in await wires[0].ask("status")
    for wire in wires:
        wire.close()


def test_a_header_is_read_as_it_was_written() -> None:
    """What join() makes, the other side takes apart."""
    payload = join({"verb": "x", "text": "\u00fc"}, b"guest bytes \xff")
    size = int.from_bytes(payload[:4], "big")
    assert json.loads(payload[4 : 4 + size]) == {"verb": "x", "text": "\u00fc"}
    assert payload[4 + size :] == b"guest bytes \xff"
