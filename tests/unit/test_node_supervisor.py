"""The node's decisions: claiming, expiry, idleness, limits it enforces itself, stopping, sweeping."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.limits import Limits
from ringfence.node.link import MAX_STREAMS, GuestLink
from ringfence.node.live import Live
from ringfence.runtimes.fake import Fake, Host
from tests.support.nodewire import Node, Wire, node, until

pytestmark = pytest.mark.anyio


def events(served: Node) -> list[dict[str, Any]]:
    """Everything it tells from now on."""
    heard: list[dict[str, Any]] = []
    served.supervisor.listen(heard.append)
    return heard


def live_of(served: Node, sandbox: dict[str, Any]) -> Live:
    """The node's own row of a sandbox."""
    return served.supervisor.table._rows[sandbox["id"]]


# -- claiming ---------------------------------------------------------------------------------------------------------


async def test_a_one_shot_run(served: Node, wire: Wire) -> None:
    """Its output, its fate, what it used and how long each part took; afterwards nothing is left of it."""
    call = wire.run({"op": "exec", "shell": "echo out; echo err >&2; exit 3"})
    answer = await call.answer()
    assert (bytes(call.out), bytes(call.err)) == (b"out\n", b"err\n")
    assert call.guest["exit"]["code"] == 3
    assert answer["override"] is None
    assert answer["usage"]["output_bytes"] == 8
    assert set(answer["timings"]) == {"queue", "claim", "start", "run", "collect"}
    assert all(value >= 0 for value in answer["timings"].values())
    assert (await wire.ask("get", tenant="a", sandbox=answer["sandbox"]))["error"]["code"] == "sandbox_not_found"
    await until(lambda: answer["sandbox"] not in served.runtime.host.left)


async def test_a_created_sandbox_says_what_it_is(wire: Wire) -> None:
    """Its owner sees its state, its limits, when it ends, and that this runtime fences nothing."""
    sandbox = await wire.create(limits=Limits(processes=7), ttl_seconds=100)
    assert sandbox["tenant"] == "a"
    assert sandbox["state"] == "running"
    assert sandbox["runtime"] == "fake"
    assert sandbox["limits"]["processes"] == 7
    assert 90 < sandbox["expires_at"] - time.time() <= 100
    assert sandbox["layers"] == []
    again = (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]
    assert again["usage"]["source"] == "nothing"


async def test_another_tenants_sandbox_does_not_exist(wire: Wire) -> None:
    """Every verb that names it answers as for an id that never was."""
    sandbox = await wire.create(tenant="a")
    for verb in ("get", "stop", "extend", "open"):
        foreign = await wire.ask(verb, tenant="b", sandbox=sandbox["id"], ttl_seconds=5, kind="program")
        unknown = await wire.ask(verb, tenant="b", sandbox="s" + "a" * 26, ttl_seconds=5, kind="program")
        assert foreign == unknown
        assert foreign["error"]["status"] == 404
    assert (await wire.ask("list", tenant="b"))["sandboxes"] == []
    assert [row["id"] for row in (await wire.ask("list", tenant="a"))["sandboxes"]] == [sandbox["id"]]


@pytest.mark.parametrize("name", ["nowhere", "", "../index/base", "/etc/passwd", "base\0", "BASE", 7, None])
async def test_a_template_that_is_none(wire: Wire, name: object) -> None:
    """Only the name of a built template is one: it is never a path."""
    call = wire.run({"op": "exec", "shell": "true"}, template=name)
    assert await call.error() in {"unknown_template", "bad_header"}


async def test_an_isolation_this_node_has_not(wire: Wire) -> None:
    """A stronger wall than there is here is refused, not replaced by what there is."""
    assert await wire.run({"op": "exec", "shell": "true"}, isolation="microvm").error() == "unknown_runtime"
    assert "override" in await wire.run({"op": "exec", "shell": "true"}, isolation="fake").answer()


async def test_a_full_node_says_so(tmp_path: Path) -> None:
    """At its own ceiling a node refuses, and takes work again when there is room."""
    async with node(tmp_path, max_sandboxes=2) as served:
        wire = await served.connect()
        first = await wire.create()
        await wire.create()
        assert await wire.run({"op": "exec", "shell": "true"}).error() == "node_full"
        await wire.ask("stop", tenant="a", sandbox=first["id"])
        assert "override" in await wire.run({"op": "exec", "shell": "true"}).answer()


async def test_the_ceiling_holds_when_all_come_at_once(tmp_path: Path) -> None:
    """Requests that wait for a start count toward the ceiling too."""
    runtime = Fake()
    runtime.start_seconds = 0.05
    async with node(tmp_path, runtime, max_sandboxes=3) as served:
        wire = await served.connect()
        answers = await asyncio.gather(*[wire.create(tenant=f"t{n}") for n in range(10)], return_exceptions=True)
        assert sum(isinstance(answer, dict) for answer in answers) == 3
        assert len(served.supervisor.table) == 3


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_sandbox_ends_when_its_time_is_over(served: Node, wire: Wire) -> None:
    """Whoever has a stream open hears why; then it is as if it had never been."""
    heard = events(served)
    sandbox = await wire.create()
    call = wire.exec(sandbox["id"], "sleep 600")
    await call.started()
    live_of(served, sandbox).live_for(-1)
    answer = await call.answer()
    assert answer["override"]["how"] == "timed_out"
    await until(lambda: sandbox["id"] not in served.runtime.host.left)
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["error"]["code"] == "sandbox_not_found"
    await until(lambda: len(heard) >= 3)
    assert [event["type"] for event in heard] == ["sandbox.created", "sandbox.expired", "sandbox.stopped"]


async def test_setting_the_clock_ends_nothing(served: Node, wire: Wire) -> None:
    """The time users read is for reading: only a clock that nobody can set decides (attack 160)."""
    sandbox = await wire.create()
    live_of(served, sandbox).expires_at -= 1e6
    await served.supervisor.watch()
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]["state"] == "running"


async def test_extending_counts_from_now_and_is_bounded(wire: Wire) -> None:
    """A new time to live replaces the old; a day is the most."""
    sandbox = await wire.create(ttl_seconds=10)
    longer = (await wire.ask("extend", tenant="a", sandbox=sandbox["id"], ttl_seconds=1000))["sandbox"]
    assert 990 < longer["expires_at"] - time.time() <= 1000
    most = (await wire.ask("extend", tenant="a", sandbox=sandbox["id"], ttl_seconds=1e9))["sandbox"]
    assert most["expires_at"] - time.time() <= 86_400


async def test_a_run_past_its_wall_time(wire: Wire) -> None:
    """The node ends it itself, whatever its agent says."""
    answer = await wire.run({"op": "exec", "shell": "sleep 600"}, limits=Limits(wall_seconds=0.2)).answer()
    assert answer["override"] == {"how": "timed_out", "reason": "ran longer than the limit of 0.2 seconds"}


async def test_a_run_past_its_processor_time(served: Node, wire: Wire) -> None:
    """The time counted from outside ends it; its owner learns that it was a limit."""
    heard = events(served)
    answer = await wire.run({"op": "exec", "shell": "burn"}, limits=Limits(cpu_seconds=0.1)).answer()
    assert answer["override"] == {"how": "timed_out", "reason": "used its 0.1 seconds of CPU time"}
    assert "limit" in {event["type"] for event in heard}


# -- idleness ---------------------------------------------------------------------------------------------------------


async def test_an_idle_sandbox_is_warned_once_and_then_ended(served: Node, wire: Wire) -> None:
    """The soft limit tells its owner how long is left; the hard one ends it."""
    heard = events(served)
    sandbox = await wire.create(limits=Limits(idle_soft_seconds=100, idle_hard_seconds=200))
    live = live_of(served, sandbox)
    live.last_active -= 150
    await served.supervisor.watch()
    await served.supervisor.watch()
    warnings = [event for event in heard if event["type"] == "sandbox.idle_warning"]
    assert len(warnings) == 1
    assert 40 < warnings[0]["data"]["stops_in_seconds"] < 60
    live.last_active -= 100
    await served.supervisor.watch()
    await until(lambda: heard[-1]["type"] == "sandbox.stopped")
    assert "idle" in heard[-1]["data"]["reason"]


async def test_use_starts_the_clock_again(served: Node, wire: Wire) -> None:
    """After any use a sandbox is as fresh as new, and is warned again the next time."""
    heard = events(served)
    sandbox = await wire.create(limits=Limits(idle_soft_seconds=100, idle_hard_seconds=200))
    live = live_of(served, sandbox)
    for _ in range(2):
        live.last_active -= 150
        await served.supervisor.watch()
        await wire.exec(sandbox["id"], "true").answer()
    assert [event["type"] for event in heard].count("sandbox.idle_warning") == 2
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]["state"] == "running"


async def test_a_running_program_is_no_idleness(served: Node, wire: Wire) -> None:
    """A sandbox in which a program runs is not idle, however silent it is."""
    sandbox = await wire.create(limits=Limits(idle_hard_seconds=100))
    call = wire.exec(sandbox["id"], "sleep 600")
    await call.started()
    live_of(served, sandbox).last_active -= 1000
    await served.supervisor.watch()
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]["state"] == "running"


async def test_programs_are_counted_right(served: Node, wire: Wire) -> None:
    """However program streams end, their number goes back to none."""
    sandbox = await wire.create(limits=Limits(output_bytes=1000))
    live = live_of(served, sandbox)
    await wire.exec(sandbox["id"], "true").answer()
    await wire.exec(sandbox["id"], "yes").answer()
    cancelled = wire.exec(sandbox["id"], "sleep 60")
    await cancelled.started()
    cancelled.cancel()
    await cancelled.answer()
    watching = [
        wire.open("open", {"op": "watch", "path": "."}, tenant="a", sandbox=sandbox["id"], kind="file")
        for _ in range(MAX_STREAMS)
    ]
    assert await wire.exec(sandbox["id"], "true").error() == "too_many_streams"
    for call in watching:
        call.cancel()
    assert live.programs == 0


# -- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 100, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("beyond", [0, 1])
async def test_the_output_cap_is_exact(wire: Wire, cap: int, beyond: int) -> None:
    """Exactly the allowed bytes arrive; one more and the program is ended for it."""
    call = wire.run({"op": "exec", "shell": f"head -c {cap + beyond} /dev/zero"}, limits=Limits(output_bytes=cap))
    answer = await call.answer()
    assert len(call.out) == cap
    assert answer["usage"]["output_bytes"] == cap
    assert (answer["override"] or {}).get("how") == ("output_capped" if beyond else None)


async def test_both_outputs_count_together(wire: Wire) -> None:
    """The cap is on what a program writes, wherever it writes it."""
    call = wire.run({"op": "exec", "shell": "echo 12345; echo 12345 >&2; echo 12345"}, limits=Limits(output_bytes=13))
    assert (await call.answer())["override"]["how"] == "output_capped"
    assert len(call.out) + len(call.err) == 13


async def test_a_file_is_not_output(wire: Wire) -> None:
    """Reading a large file back is not a program writing too much."""
    sandbox = await wire.create(limits=Limits(output_bytes=100))
    await wire.exec(sandbox["id"], "head -c 5000 /dev/zero > f").answer()
    call = wire.open("open", {"op": "read", "path": "f"}, tenant="a", sandbox=sandbox["id"], kind="file")
    assert (await call.answer())["override"] is None
    assert len(call.out) == 5000


# -- ending -----------------------------------------------------------------------------------------------------------


async def test_stopping_while_output_streams(served: Node, wire: Wire) -> None:
    """The open stream ends once, with the reason, and the stop is answered when nothing is left."""
    sandbox = await wire.create()
    call = wire.exec(sandbox["id"], "yes")
    await until(lambda: len(call.out) > 100_000)
    answer = await wire.ask("stop", tenant="a", sandbox=sandbox["id"], reason="enough")
    assert answer["sandbox"]["state"] == "stopped"
    assert answer["sandbox"]["exit"] == {"how": "stopped", "reason": "enough"}
    assert sandbox["id"] not in served.runtime.host.left
    assert (await call.answer())["override"] == {"how": "stopped", "reason": "enough"}
    await asyncio.sleep(0.02)
    assert call.ends == 1


async def test_stopping_twice_at_once(wire: Wire) -> None:
    """One stop wins; the other finds nothing, and nobody waits in vain."""
    sandbox = await wire.create()
    answers = await asyncio.gather(*[wire.ask("stop", tenant="a", sandbox=sandbox["id"]) for _ in range(5)])
    assert sum("sandbox" in answer for answer in answers) == 1
    assert sum(answer.get("error", {}).get("code") == "sandbox_not_found" for answer in answers) == 4


async def test_a_sandbox_that_vanishes_is_our_fault(served: Node, wire: Wire) -> None:
    """Its streams end with sandbox_lost, never with an invented fate, and it is cleaned up."""
    heard = events(served)
    sandbox = await wire.create()
    call = wire.exec(sandbox["id"], "sleep 600")
    await call.started()
    served.runtime.live[sandbox["id"]].agent.vanish()
    assert await call.error() == "sandbox_lost"
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["error"]["code"] == "sandbox_not_found"
    await until(lambda: sandbox["id"] not in served.runtime.host.left)
    assert "sandbox.failed" in {event["type"] for event in heard}


async def test_a_one_shot_run_whose_sandbox_vanishes(served: Node, wire: Wire) -> None:
    """The same for a run: our fault, told as such."""
    call = wire.run({"op": "exec", "shell": "sleep 600"})
    await call.started()
    (sandbox_id,) = served.supervisor.table.ids()
    served.runtime.live[sandbox_id].agent.vanish()
    assert await call.error() == "sandbox_lost"
    await until(lambda: sandbox_id not in served.runtime.host.left)


async def test_a_sandbox_that_vanishes_for_want_of_memory(served: Node, wire: Wire) -> None:
    """When the counters say that memory ran out, that is the program's fate."""
    sandbox = await wire.create()
    call = wire.exec(sandbox["id"], "sleep 600")
    await call.started()
    served.runtime.live[sandbox["id"]].agent.box.oom_kills = 1
    served.runtime.live[sandbox["id"]].agent.vanish()
    assert (await call.answer())["override"]["how"] == "out_of_memory"


async def test_a_program_killed_for_memory_leaves_evidence(wire: Wire) -> None:
    """The count of kills rides along with the fate, so that above it can be named."""
    call = wire.run({"op": "exec", "shell": "fill-memory"})
    assert (await call.answer())["oom_kills"] == 1
    assert call.guest["exit"]["signal"] == 9


class Nowhere:
    """An outlet nobody listens at."""

    def send(self, type_: int, payload: bytes = b"") -> None:
        """Drop it."""

    def throttle(self, link: GuestLink) -> None:
        """Never behind."""


async def test_opening_in_the_turn_in_which_it_died(served: Node, wire: Wire) -> None:
    """A stream into a sandbox that is gone ends at once, though nobody has noticed yet."""
    live = live_of(served, await wire.create())
    live.link.close()
    relay = served.supervisor.open(live, b'{"op": "ping"}', Nowhere(), program=True)
    async with asyncio.timeout(60):
        assert (await relay.ended).answer is None
    assert live.programs == 0


async def test_whoever_asked_for_a_stop_may_leave(served: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops all the same and its end is told, once: nobody else could say that it was not lost."""
    sandbox = await wire.create()
    heard, asked, go = events(served), asyncio.Event(), asyncio.Event()
    ending = served.runtime.stop

    async def slowly(name: str) -> None:
        asked.set()
        await go.wait()
        await ending(name)

    monkeypatch.setattr(served.runtime, "stop", slowly)
    asking = [wire.open("stop", tenant="a", sandbox=sandbox["id"]) for _ in range(2)]
    await asked.wait()
    for each in asking:
        each.cancel()
    await wire.ask("status")  # by now they have left
    go.set()
    await until(lambda: sandbox["id"] not in served.runtime.host.left)
    await until(lambda: heard)
    await wire.ask("status")
    assert [event["type"] for event in heard] == ["sandbox.stopped"]


async def test_a_host_that_does_not_let_go(served: Node, wire: Wire) -> None:
    """A stop that fails is told, the sandbox is nobody's any more, and the sweep tries again."""
    sandbox = await wire.create()
    served.runtime.stops_fail = 1
    assert await wire.open("stop", tenant="a", sandbox=sandbox["id"]).error() == "platform_fault"
    assert (await wire.ask("list", tenant="a"))["sandboxes"] == []
    await served.supervisor.sweep()
    assert sandbox["id"] not in served.runtime.host.left


async def test_a_one_shot_run_on_a_host_that_does_not_let_go(served: Node, wire: Wire) -> None:
    """The answer does not wait for the tear-down, nor does its failure take the node along."""
    served.runtime.stops_fail = 1
    answer = await wire.run({"op": "exec", "shell": "echo hi"}).answer()
    assert answer["override"] is None
    await served.settled()
    assert served.supervisor.status()["sandboxes"] == 0
    await served.supervisor.sweep()
    assert answer["sandbox"] not in served.runtime.host.left


# -- sweeping ---------------------------------------------------------------------------------------------------------


async def test_what_an_earlier_node_left_is_removed_at_the_start(tmp_path: Path) -> None:
    """Before it takes any work, a node cleans up after its predecessor."""
    host = Host(left={"s" + "b" * 26, "s" + "c" * 26})
    async with node(tmp_path, Fake(host)) as served:
        assert not host.left
        assert served.supervisor.counters["swept"] == 2


async def test_a_sweep_touches_nothing_that_is_owned(served: Node, wire: Wire) -> None:
    """Live, warm, starting and ending sandboxes are nobody's leftovers."""
    sandbox = await wire.create()
    await served.settled()
    served.runtime.start_seconds = 0.1
    started = asyncio.ensure_future(wire.create(tenant="b"))
    await until(lambda: served.supervisor._starting)
    for _ in range(3):
        await served.supervisor.sweep()
    assert served.supervisor.counters.get("swept", 0) == 0
    assert (await started)["state"] == "running"
    assert (await wire.ask("get", tenant="a", sandbox=sandbox["id"]))["sandbox"]["state"] == "running"


async def test_one_leftover_that_clings_does_not_keep_the_others(served: Node) -> None:
    """A sweep goes on past what it cannot remove, and comes back for it."""
    served.runtime.host.left.update({"s" + letter * 26 for letter in "bcde"})
    served.runtime.stops_fail = 1
    await served.supervisor.sweep()
    assert len(served.runtime.host.left) == 1
    await served.supervisor.sweep()
    assert not served.runtime.host.left


async def test_closing_leaves_nothing(tmp_path: Path) -> None:
    """A clean stop ends live, warm and busy sandboxes alike."""
    runtime = Fake()
    async with node(tmp_path, runtime) as served:
        wire = await served.connect()
        sandbox = await wire.create()
        wire.exec(sandbox["id"], "yes")
        wire.run({"op": "exec", "shell": "sleep 600"}, tenant="b")
        await until(lambda: len(served.supervisor.table) == 2)
    assert not runtime.host.left


# -- telling ----------------------------------------------------------------------------------------------------------


async def test_events_are_streamed_until_the_asker_leaves(served: Node, wire: Wire) -> None:
    """Everything that happens is told; CANCEL ends it, once."""
    call = wire.open("events")
    await wire.ask("status")
    sandbox = await wire.create()
    await wire.ask("stop", tenant="a", sandbox=sandbox["id"])
    await until(lambda: len(call.controls) >= 2)
    told = [(control["event"]["type"], control["event"]["sandbox"]) for control in call.controls]
    assert told == [("sandbox.created", sandbox["id"]), ("sandbox.stopped", sandbox["id"])]
    call.cancel()
    await call.answer()
    await wire.create()
    assert len(call.controls) == 2
    assert not served.supervisor._listeners


async def test_it_tells_what_it_has(wire: Wire) -> None:
    """Templates with their pools, runtimes with their layers, and numbers."""
    await wire.ask("warm", tenant="a", template="base")
    (template,) = (await wire.ask("templates"))["templates"]
    assert template["name"] == "base"
    assert set(template["pool"]) == {"idle", "starting", "least", "most"}
    (runtime,) = (await wire.ask("runtimes"))["runtimes"]
    assert runtime["capabilities"]["isolation"].startswith("none")
    assert [layer["in_force"] for layer in runtime["layers"]] == [False]
    assert {"sandboxes", "pools", "uptime_seconds", "counters"} <= set(await wire.ask("status"))
