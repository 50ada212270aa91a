"""A guest that lies: whatever a taken-over agent sends, it loses its own sandbox, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from ringfence.guest import frames
from ringfence.node.link import MAX_STREAMS
from ringfence.node.server import Connection
from ringfence.runtimes.fake.channel import Channel
from tests.support.nodewire import Call, Node, Wire, until

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


class Taken:
    """A sandbox whose agent is in hostile hands, with one program stream open, beside an honest one."""

    def __init__(self, served: Node, wire: Wire) -> None:
        self.served = served
        self.wire = wire

    async def begin(self, *, automatic: bool = True) -> Taken:
        """Start both."""
        self.id = (await self.wire.create(tenant="evil"))["id"]
        self.other = (await self.wire.create(tenant="good"))["id"]
        self.call = self.wire.exec(self.id, "sleep 600", tenant="evil", automatic=automatic)
        self.honest = self.wire.exec(self.other, "cat", tenant="good", stdin=True)
        await self.call.started()
        await self.honest.started()
        return self

    @property
    def channel(self) -> Channel:
        """The agent's end."""
        channel: Channel = self.served.runtime.live[self.id].agent.channel
        return channel

    @property
    def stream(self) -> int:
        """The guest's number of the open stream."""
        return max(self.channel._streams)

    async def lost_alone(self) -> None:
        """The hostile sandbox is gone and was told as our fault; the honest one answers."""
        assert await self.call.error() == "sandbox_lost"
        answer = await self.wire.ask("get", tenant="evil", sandbox=self.id)
        assert answer["error"]["code"] == "sandbox_not_found"
        await until(lambda: self.id not in self.served.runtime.host.left)
        await self.well()

    async def well(self) -> None:
        """The honest program still reads and writes."""
        self.honest.stdin(b"still here\n")
        self.honest.eof()
        await self.honest.answer()
        assert bytes(self.honest.out) == b"still here\n"


def on_stream(type_: int, payload: bytes = b"") -> Callable[[int], bytes]:
    """A frame on whatever stream is open."""
    return lambda stream: frames.encode(type_, stream, payload)


LIES: dict[str, Callable[[int], bytes]] = {
    "OPEN": on_stream(frames.OPEN, b'{"op": "ping"}'),
    "OPEN of its own": lambda _: frames.encode(frames.OPEN, 77, b'{"verb": "status"}'),
    "STDIN": on_stream(frames.STDIN, b"x"),
    "CANCEL": on_stream(frames.CANCEL),
    "type 0": lambda s: frames.HEADER.pack(0, 0, s),
    "type 255": lambda s: frames.HEADER.pack(0, 255, s),
    "2^31 bytes": lambda s: frames.HEADER.pack(2**31, frames.STDOUT, s),
    "2^32-1 bytes of JSON": lambda s: frames.HEADER.pack(2**32 - 1, frames.END, s),
    "one byte too many": lambda s: frames.HEADER.pack(frames.MAX_DATA + 1, frames.STDOUT, s),
    "EOF with a body": lambda s: frames.HEADER.pack(1, frames.EOF, s) + b"x",
    "short CREDIT": lambda s: frames.HEADER.pack(3, frames.CREDIT, s) + b"xxx",
    "noise": lambda _: bytes(range(255, 0, -1)) * 10,
    "more output than credit": lambda s: frames.encode(frames.STDOUT, s, bytes(frames.MAX_DATA)) * 5,
    "more errors than credit": lambda s: frames.encode(frames.STDERR, s, bytes(frames.MAX_DATA)) * 5,
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_ends_that_sandbox_alone(served: Node, wire: Wire, name: str) -> None:
    """Frames that a guest may not send, or that are none, are the last it sends."""
    taken = await Taken(served, wire).begin(automatic=False)
    taken.channel.send(LIES[name](taken.stream))
    await taken.lost_alone()


async def test_half_a_frame_and_then_nothing(served: Node, wire: Wire) -> None:
    """A frame that is announced and never finished keeps nothing: the end of the channel ends it."""
    taken = await Taken(served, wire).begin()
    taken.channel.send(frames.HEADER.pack(1000, frames.STDOUT, taken.stream) + b"only this")
    await asyncio.sleep(0.01)
    taken.served.runtime.live[taken.id].agent.vanish()
    await taken.lost_alone()
    assert not taken.call.out


HARMLESS: dict[str, Callable[[int], bytes]] = {
    "output of another's stream": lambda s: frames.encode(frames.STDOUT, s + 1, b"forged"),
    "END of another's stream": lambda s: frames.encode(frames.END, s + 1, b"{}"),
    "stream 0": lambda _: frames.encode(frames.CONTROL, 0, b'{"ready": {}}'),
    "the highest stream": lambda _: frames.encode(frames.END, 2**32 - 1, b"{}"),
    "a CONTROL that is no JSON": lambda s: frames.encode(frames.CONTROL, s + 1, b"\xff" * 100),
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_streams_of_others_cannot_be_reached(served: Node, wire: Wire, name: str) -> None:
    """Stream numbers mean something on their own channel only: nothing arrives at a neighbour."""
    taken = await Taken(served, wire).begin()
    taken.channel.send(HARMLESS[name](taken.stream))
    taken.channel.send(frames.encode(frames.END, taken.stream, b'{"exit": {}}'))
    assert (await taken.call.answer())["override"] is None
    await taken.well()


async def test_what_it_answers_is_passed_on_unread(served: Node, wire: Wire) -> None:
    """The node decodes nothing of a guest's: bytes that are no JSON go up as they are."""
    taken = await Taken(served, wire).begin()
    poison = b"\xff\x00[[[["
    seen: list[bytes] = []
    taken.call.received = lambda frame: seen.append(frame.payload)  # type: ignore[method-assign]
    taken.channel.send(frames.encode(frames.CONTROL, taken.stream, poison))
    taken.channel.send(frames.encode(frames.END, taken.stream, poison))
    await until(lambda: len(seen) == 2)
    assert seen[0] == poison
    assert seen[1].endswith(poison)


async def test_two_answers(served: Node, wire: Wire) -> None:
    """Only the first END is one; a second reaches nobody."""
    taken = await Taken(served, wire).begin()
    end = frames.encode(frames.END, taken.stream, b'{"exit": {"n": 1}}')
    taken.channel.send(end + frames.encode(frames.STDOUT, taken.stream, b"after") + end)
    await taken.call.answer()
    await wire.ask("status")
    assert taken.call.ends == 1
    assert not taken.call.out
    await taken.well()


async def test_an_output_cap_holds_against_a_hostile_agent(served: Node, wire: Wire) -> None:
    """The cap is counted outside: an agent that ignores CANCEL and sends on changes nothing."""
    taken = await Taken(served, wire).begin()
    live = served.supervisor.table._rows[taken.id]
    relay = next(relay for relay in served.supervisor._relays if relay.live is live)
    relay.cap = 100_000
    stream = taken.stream
    for _ in range(3):
        taken.channel.send(frames.encode(frames.STDOUT, stream, bytes(50_000)))
    assert (await taken.call.answer())["override"]["how"] == "output_capped"
    assert len(taken.call.out) == 100_000
    taken.channel.send(frames.encode(frames.STDOUT, stream, bytes(50_000)) * 20)
    await wire.ask("status")
    assert len(taken.call.out) == 100_000
    await taken.well()


def held(served: Node) -> int:
    """Bytes the node keeps for anybody: toward guests, toward apis."""
    total = 0
    for live in served.supervisor.table.of(None):
        if live.link._transport is not None:
            total += live.link._transport.get_write_buffer_size()
    return total


async def test_a_guest_that_grants_and_does_not_read(served: Node, wire: Wire) -> None:
    """Credit for gigabytes, and nobody who takes them: the node does not keep them, the sandbox ends."""
    taken = await Taken(served, wire).begin()
    stream = taken.stream
    assert taken.channel._transport is not None
    taken.channel._transport.pause_reading()
    most = 0
    for _ in range(200):
        taken.channel.send(frames.credit(stream, 2**31))
        taken.call.stdin(bytes(MIB))
        await wire.ask("status")
        most = max(most, held(served))
        if taken.call.header is not None:
            break
    assert most <= 80 * MIB
    await taken.lost_alone()


async def test_requests_to_a_guest_that_does_not_read(served: Node, wire: Wire) -> None:
    """Large requests toward a guest that takes nothing do not pile up either."""
    taken = await Taken(served, wire).begin()
    assert taken.channel._transport is not None
    taken.channel._transport.pause_reading()
    guest = {"op": "run", "code": "#" * (3 * MIB)}
    most = 0
    calls: list[Call] = []
    for _ in range(60):
        calls.append(wire.open("open", guest, tenant="evil", sandbox=taken.id, kind="program"))
        await wire.ask("status")
        most = max(most, held(served))
    assert most <= 80 * MIB
    for call in calls:
        await call.answer() if call.header else None
    served.runtime.live.get(taken.id) and served.runtime.live[taken.id].agent.vanish()
    await taken.lost_alone()


async def test_too_many_streams_are_refused(served: Node, wire: Wire) -> None:
    """A sandbox has a bounded number of open streams; past it, one is refused and the others go on."""
    taken = await Taken(served, wire).begin()
    calls = [wire.exec(taken.id, "sleep 600", tenant="evil") for _ in range(MAX_STREAMS + 5)]
    await wire.ask("status")
    refused = [call for call in calls if call.header is not None and call.header.get("error")]
    assert len(refused) == 6
    assert await refused[0].error() == "too_many_streams"
    await taken.well()


async def test_a_flood_of_messages_reaches_an_api_that_is_stuck(served: Node, wire: Wire) -> None:
    """Control messages need no credit: a guest that floods them while nobody reads fills no memory of the node's."""
    taken = await Taken(served, wire).begin()
    stream, other = taken.stream, await served.connect()
    connection = next(call for call in _connections(served) if call._calls)
    wire.pause()
    message = frames.encode(frames.CONTROL, stream, b'"' + b"x" * 60_000 + b'"')
    most = 0
    for _ in range(2000):
        taken.channel.send(message)
        await asyncio.sleep(0)
        assert connection._transport is not None
        most = max(most, connection._transport.get_write_buffer_size())
        if taken.id not in served.runtime.live:
            break
    assert most <= 40 * MIB
    assert "uptime_seconds" in await other.ask("status")
    wire.go_on()
    other.close()


def _connections(served: Node) -> list[Connection]:
    """Every open api connection."""
    return [
        thing  # by type: asking a proxy of something that is gone for its class would raise
        for thing in gc.get_objects()
        if type(thing) is Connection and thing._verbs._node is served.supervisor
    ]
