"""Resetting a sandbox: what stays, what goes, who waits, and what happens when it cannot be made again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import START_BYTES
from ringfence.guest import frames
from ringfence.node.server import join
from ringfence.runtimes.base import Started, StartSpec
from tests.support.nodewire import Node, Wire, fields_of, node, until

pytestmark = pytest.mark.anyio
SLEEPS = {"op": "exec", "shell": "sleep 600", "detach": True, "tag": "start"}


async def create(wire: Wire, begins: dict[str, Any] | bytes = b"", **fields: Any) -> dict[str, Any]:
    """A sandbox that begins with a program."""
    ask = {
        "tenant": "a",
        "template": "base",
        "limits": fields_of(Limits()),
        "labels": {"seat": "7"},
        "ttl_seconds": 300,
    }
    guest = begins if isinstance(begins, bytes) else json.dumps(begins).encode()
    return await wire.open_raw(join({"verb": "create", **ask, **fields}, guest)).answer()


async def programs(wire: Wire, sandbox: str) -> list[dict[str, Any]]:
    """What runs in it."""
    call = wire.open("open", {"op": "list"}, tenant="a", sandbox=sandbox, kind="plain")
    await call.answer()
    return list(call.guest["processes"])


async def test_a_sandbox_is_new_under_its_own_id(served: Node, wire: Wire) -> None:
    """Its owner's things stay: id, labels, limits, birthday and expiry. Its processes and files are gone."""
    before = (await create(wire))["sandbox"]
    heard: list[dict[str, Any]] = []
    served.supervisor.listen(heard.append)
    assert (await wire.exec(before["id"], "echo x > kept; cat kept").answer())["override"] is None
    running = wire.exec(before["id"], "sleep 600")
    await running.started()
    after = (await wire.ask("reset", tenant="a", sandbox=before["id"]))["sandbox"]
    same = ("id", "tenant", "labels", "limits", "created_at", "expires_at", "template_digest", "egress", "state")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (await running.answer())["override"] == {"how": "stopped", "reason": "reset by its owner"}
    call = wire.exec(before["id"], "cat kept")
    await call.answer()
    assert call.guest["exit"]["code"] != 0
    assert [event["type"] for event in heard] == ["sandbox.reset"]
    assert served.supervisor.status()["sandboxes"] == 1


async def test_what_it_begins_with_runs_again(wire: Wire) -> None:
    """A program given with the sandbox runs from the beginning, outlives whoever asked, and runs after a reset."""
    sandbox = (await create(wire, SLEEPS))["sandbox"]["id"]
    first = await programs(wire, sandbox)
    assert [(each["tag"], each["running"]) for each in first] == [("start", True)]
    await wire.ask("reset", tenant="a", sandbox=sandbox)
    again = await programs(wire, sandbox)
    assert [(each["tag"], each["running"]) for each in again] == [("start", True)]


async def test_a_program_that_cannot_begin_leaves_no_sandbox(served: Node, wire: Wire) -> None:
    """The agent's refusal is passed on unread, and nothing stays that nobody was told of."""
    call = wire.open_raw(
        join(
            {"verb": "create", "tenant": "a", "template": "base", "limits": fields_of(Limits()), "ttl_seconds": 300},
            json.dumps({"op": "exec", "shell": "true", "cwd": "/nowhere"}).encode(),
        )
    )
    await call.answer()
    assert call.guest["error"]["code"] == "not_found"
    await until(lambda: not served.supervisor.status()["sandboxes"])


async def test_what_it_begins_with_is_bounded(served: Node, wire: Wire) -> None:
    """The node keeps these words while the sandbox lives, so they are few."""
    assert (await create(wire, b"x" * (START_BYTES + 1)))["error"]["code"] == "bad_header"
    assert served.supervisor.status()["sandboxes"] == 0


async def test_whoever_names_it_meanwhile_waits(served: Node, wire: Wire) -> None:
    """No request finds it missing: programs, looks and further resets come after, a stop stops what was made."""
    sandbox = (await create(wire))["sandbox"]["id"]
    calls = [wire.open("reset", tenant="a", sandbox=sandbox) for _ in range(3)]
    runs = [wire.exec(sandbox, "echo here") for _ in range(3)]
    look = wire.open("get", tenant="a", sandbox=sandbox)
    stranger = wire.open("get", tenant="b", sandbox=sandbox)
    assert await stranger.error() == "sandbox_not_found"
    for call in [*calls, *runs, look]:
        assert "error" not in await call.answer()
    ends = wire.open("reset", tenant="a", sandbox=sandbox), wire.open("stop", tenant="a", sandbox=sandbox)
    assert (await ends[1].answer())["sandbox"]["exit"]["how"] == "stopped"
    await until(lambda: sandbox not in served.runtime.host.left)


async def test_an_asker_who_leaves_does_not_halve_it(served: Node, wire: Wire) -> None:
    """A reset goes on when its api is gone: half of one would be a sandbox that is none."""
    sandbox = (await create(wire, SLEEPS))["sandbox"]["id"]
    other = await served.connect()
    call = other.open("reset", tenant="a", sandbox=sandbox)
    call.cancel()
    other.close()
    assert (await wire.ask("get", tenant="a", sandbox=sandbox))["sandbox"]["state"] == "running"
    assert [each["running"] for each in await programs(wire, sandbox)] == [True]


async def test_one_that_cannot_be_made_again_has_failed(served: Node, wire: Wire) -> None:
    """Its owner is told why, it is nobody's any more, and nothing of it is left."""
    sandbox = (await create(wire))["sandbox"]["id"]
    heard: list[dict[str, Any]] = []
    served.supervisor.listen(heard.append)

    async def refused(_: StartSpec) -> Started:
        raise SandboxRefused("no seccomp today", code="layer_missing")

    served.runtime.start = refused
    answer = await wire.ask("reset", tenant="a", sandbox=sandbox)
    assert answer["error"]["code"] == "layer_missing"
    assert [event["type"] for event in heard] == ["sandbox.failed"]
    assert "no seccomp today" in heard[0]["data"]["reason"]
    assert (await wire.ask("get", tenant="a", sandbox=sandbox))["error"]["code"] == "sandbox_not_found"
    await until(lambda: sandbox not in served.runtime.host.left)


async def test_its_expiry_is_still_its_own(served: Node, wire: Wire) -> None:
    """A reset gives no time: at the end of its ttl it ends."""
    sandbox = (await create(wire, ttl_seconds=1.0))["sandbox"]["id"]
    await wire.ask("reset", tenant="a", sandbox=sandbox)
    await until(lambda: not served.supervisor.status()["sandboxes"])


async def test_another_tenants_cannot_be_reset(wire: Wire) -> None:
    """It is not there for a stranger."""
    sandbox = (await create(wire))["sandbox"]["id"]
    assert await wire.open("reset", tenant="b", sandbox=sandbox).error() == "sandbox_not_found"
    for name in (None, 7, ["x"], {}):
        assert await wire.open("reset", tenant="a", sandbox=name).error() in {"sandbox_not_found", "bad_header"}


async def test_closing_waits_for_a_reset(tmp_path: Path) -> None:
    """A node that closes in the middle of one leaves nothing of it."""
    async with node(tmp_path) as made:
        wire = await made.connect()
        sandbox = (await create(wire, SLEEPS))["sandbox"]["id"]
        wire.open("reset", tenant="a", sandbox=sandbox)
        await asyncio.sleep(0)
        wire.send(frames.CANCEL, 99)
    assert sandbox not in made.runtime.host.left
