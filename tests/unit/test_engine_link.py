"""The connection to the node: many streams, credit both ways, and a loss that each stream hears of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import BadRequest, NodeLost, Overloaded, RingfenceError, SandboxLost, TooLarge
from ringfence.engine.answers import SandboxesEnd, StatusEnd
from ringfence.engine.link import Collector, NodeStream, Reader, end_of
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.programs import fate, feed
from ringfence.guest import frames
from tests.support.fakenode import DEFAULTS, FakeNode
from tests.support.nodewire import until

pytestmark = pytest.mark.anyio


class Pair:
    """A node and a client of it."""

    def __init__(self, place: Path) -> None:
        self.node = FakeNode()
        self.path = place / "n.sock"
        self.client = NodeClient(self.path)

    def start(self, stream: NodeStream, script: str, **words: Any) -> None:
        """Open a one-shot run."""
        header = {"verb": "run", "tenant": "ada", "template": "base", "limits": DEFAULTS, "labels": {}}
        self.client.open(stream, header, json.dumps({"op": "run", "code": script, **words}).encode())


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Both, connected."""
    made = Pair(tmp_path)
    await made.node.start(made.path)
    task = asyncio.create_task(made.client.run())
    await made.client.wait_up()
    yield made
    task.cancel()
    await made.node.stop()


async def test_output_far_beyond_the_window_arrives_whole(pair: Pair) -> None:
    """Credit is given back as output is taken."""
    stream = Collector(64 * 1024 * 1024)
    pair.start(stream, "flood 8388608")
    assert fate(await stream.ended).exit.ok
    assert len(stream.out) == 8388608
    assert not stream.truncated


async def test_a_reader_that_does_not_read_holds_the_sender_back(pair: Pair) -> None:
    """No more than the window waits in memory."""
    stream = Reader()
    pair.start(stream, "flood 8388608")
    await until(lambda: any(kind == frames.STDOUT for kind, _ in stream._frames))
    await asyncio.sleep(0.3)
    held = sum(len(data) for kind, data in stream._frames if kind == frames.STDOUT)
    assert 0 < held <= frames.WINDOW
    total = 0
    while (item := await stream.next()) is not None:
        total += len(item[1]) if item[0] == frames.STDOUT else 0
    assert total == 8388608


async def test_a_collector_keeps_only_what_it_may(pair: Pair) -> None:
    """The rest is taken and dropped, so the program is not held up for ever."""
    stream = Collector(1000)
    pair.start(stream, "flood 1048576")
    await stream.ended
    assert (len(stream.out), stream.truncated) == (1000, True)


async def test_input_goes_in_as_the_program_takes_it(pair: Pair) -> None:
    """More than a window, both ways at once."""
    stream, data = Collector(1 << 22), bytes(range(256)) * 8192
    pair.start(stream, "echo", stdin=True)
    await feed(stream, data)
    await stream.ended
    assert bytes(stream.out) == data


async def test_streams_do_not_disturb_each_other(pair: Pair) -> None:
    """A hundred at once, each with its own words."""
    streams = [Collector(1000) for _ in range(100)]
    for n, stream in enumerate(streams):
        pair.start(stream, f"say {n}")
    await asyncio.gather(*(stream.ended for stream in streams))
    assert [bytes(stream.out) for stream in streams] == [b"%d\n" % n for n in range(100)]


@pytest.mark.parametrize("script", ["oversend; hang", "chatter; hang"])
def test_a_peer_that_sends_too_much_loses_its_stream_alone(tmp_path: Path, script: str) -> None:
    """Memory stays bounded, the node is told, and a neighbour goes on."""

    async def check() -> None:
        pair = Pair(tmp_path)
        await pair.node.start(pair.path)
        task = asyncio.create_task(pair.client.run())
        await pair.client.wait_up()
        bad, good = Reader(), Collector(1000)
        pair.start(bad, script)
        with pytest.raises(SandboxLost):
            await bad.ended
        pair.start(good, "say fine")
        assert fate(await good.ended).exit.ok
        await until(lambda: pair.node.cancelled == 1)
        task.cancel()
        await pair.node.stop()

    asyncio.run(check())


async def test_a_lost_node_fails_every_stream_and_is_found_again(pair: Pair) -> None:
    """Open work fails with NodeLost; when the node is back, new work goes on."""
    streams = [Collector(10) for _ in range(3)]
    for stream in streams:
        pair.start(stream, "hang")
    await asyncio.sleep(0.05)
    await pair.node.stop()
    for stream in streams:
        with pytest.raises(NodeLost):
            await stream.ended
    assert not pair.client.connected
    with pytest.raises(NodeLost):
        await pair.client.wait_up(0.05)
    pair.path.unlink(missing_ok=True)
    await pair.node.start(pair.path)
    await pair.client.wait_up(60)
    assert (await pair.client.ask({"verb": "status"}, StatusEnd)).uptime_seconds == 5.0


async def test_a_cancelled_question_is_cancelled_at_the_node(pair: Pair) -> None:
    """Nothing is left waiting there."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pair.client.ask({"verb": "events"}, SandboxesEnd)
    await until(lambda: pair.node.cancelled == 1)


async def test_an_error_of_the_node_keeps_its_code_and_kind(pair: Pair) -> None:
    """503 overloaded is Overloaded, whatever words came with it."""
    pair.node.overloaded = True
    stream = Collector(10)
    pair.start(stream, "say x")
    end = await stream.ended
    with pytest.raises(Overloaded, match="no sandbox became free"):
        fate(end)


async def test_a_program_too_large_for_a_frame_is_refused_before_it_is_sent(pair: Pair) -> None:
    """Nothing reaches the node."""
    before = len(pair.node.asks)
    with pytest.raises(TooLarge):
        pair.start(Collector(10), "x" * frames.MAX_JSON)
    assert len(pair.node.asks) == before


@pytest.mark.parametrize("payload", [b"", b"\0\0", b"\xff\xff\xff\xff{}", b"\0\0\0\x09{}"])
def test_a_cut_end_is_not_an_answer(payload: bytes) -> None:
    """Lengths are checked before they are used."""
    with pytest.raises(NodeLost):
        end_of(payload)


async def test_a_broken_frame_drops_the_connection(tmp_path: Path) -> None:
    """A node that lies about framing is not believed any further."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\xff" * 100)
        await reader.read()

    server = await asyncio.start_unix_server(lie, str(tmp_path / "l.sock"))
    client = NodeClient(tmp_path / "l.sock")
    task = asyncio.create_task(client.run())
    await client.wait_up()
    with pytest.raises(RingfenceError):
        await client.ask({"verb": "status"}, StatusEnd)
    task.cancel()
    server.close()


def test_a_refusal_is_not_a_fault() -> None:
    """The tree keeps the two apart."""
    assert not issubclass(BadRequest, NodeLost)
