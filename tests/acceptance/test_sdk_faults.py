"""The SDK when things go wrong: the real api over a node that fails on purpose. No root is needed here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from ringfence import AsyncClient, AsyncSandbox, Client, Sandbox, wire
from ringfence.client import DeadlineExceeded
from ringfence.domain.errors import NotFound, SandboxLost
from ringfence.domain.process import How
from tests.support.fakeapi import FakeApi


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    """One api over a fake node."""
    with FakeApi() as made:
        yield made


@pytest.fixture
def client(api: FakeApi) -> Iterator[Client]:
    """Ada's client."""
    with Client(api.url, api.ada, timeout=60) as made:
        yield made


def test_a_sandbox_that_vanishes_is_our_fault_and_no_fate_is_invented(client: Client) -> None:
    """Collected or streamed, a lost sandbox raises SandboxLost."""
    with pytest.raises(SandboxLost):
        client.run("say before; lose")
    with pytest.raises(SandboxLost):
        list(client.stream_run("say before; lose"))


@pytest.mark.parametrize(
    ("program", "how"),
    [("oom", How.OUT_OF_MEMORY), ("full", How.DISK_FULL), ("crash 11", How.SIGNALLED), ("exit 3", How.EXITED)],
)
def test_each_fate_arrives_the_same_collected_and_streamed(client: Client, program: str, how: How) -> None:
    """How a program ended does not depend on how its output was read."""
    stream = client.stream_run(program)
    list(stream)
    assert client.run(program).exit == stream.result.exit
    assert stream.result.exit.how is how


def test_a_deadline_of_the_client_ends_the_waiting_and_the_run(client: Client) -> None:
    """A caller who gives up does not leave a program running."""
    records: list[wire.Run] = []
    while not records:  # on a busy machine it may be given up before it was asked for
        with pytest.raises(DeadlineExceeded):
            client.run("hang", labels={"case": "given-up"}, deadline=0.5)
        records = list(client.runs({"case": "given-up"}))
    deadline = time.monotonic() + 60
    while any(record.state == "running" for record in client.runs({"case": "given-up"})):
        assert time.monotonic() < deadline, "the run goes on without its client"
        time.sleep(0.05)


def test_a_large_stream_loses_nothing(client: Client) -> None:
    """A slow reader gets every byte of a fast writer."""
    size = 0
    stream = client.stream_run("flood 3276800")
    for chunk in stream:
        size += len(chunk.data)
    assert size == 3_276_800
    assert stream.result.exit.ok


def test_another_tenants_things_do_not_exist(api: FakeApi, client: Client) -> None:
    """Every verb answers a stranger as if the sandbox had never been."""
    with Sandbox.create(client=client) as place, Client(api.url, api.bob) as stranger:
        with pytest.raises(NotFound):
            Sandbox.connect(place.id, client=stranger)
        intruder = Sandbox(stranger, place.info, owns_client=False, stops=False)
        for attempt in (
            lambda: intruder.run("say hi"),
            lambda: intruder.files.read("x"),
            lambda: intruder.files.write("x", b""),
            intruder.processes,
            intruder.terminal,
            lambda: intruder.dial(80),
            lambda: intruder.extend(60),
            intruder.stop,
        ):
            with pytest.raises(NotFound):
                attempt()


def test_one_client_serves_many_threads(client: Client) -> None:
    """A client may be shared; answers do not get mixed up."""
    seen: dict[int, str] = {}

    def one(number: int) -> None:
        seen[number] = client.run(f"say {number}").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {number: text.strip() for number, text in seen.items()} == {number: str(number) for number in range(20)}


def test_a_cancelled_task_stops_its_run(api: FakeApi) -> None:
    """Cancellation of the caller's own task reaches the sandbox."""

    async def session() -> str:
        async with AsyncClient(api.url, api.ada) as client:
            task = asyncio.create_task(client.run("hang", labels={"case": "cancelled"}))

            async def states() -> list[str]:
                await asyncio.sleep(0.05)
                return [run.state async for run in client.runs({"case": "cancelled"})]

            async with asyncio.timeout(60):
                while await states() != ["running"]:
                    continue
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                while (found := await states()) == ["running"]:
                    continue
            return found[0]

    assert asyncio.run(session()) != "running"


def test_the_asynchronous_sandbox_speaks_to_the_same_api(api: FakeApi) -> None:
    """Create, run, files, list, stop: the asynchronous face of each."""

    async def session() -> tuple[str, bytes, list[str]]:
        async with AsyncClient(api.url, api.ada) as client:
            async with await AsyncSandbox.create(labels={"case": "async"}, client=client) as place:
                said = (await place.run("say hello")).stdout
                await place.files.write("a", b"\x00\xff")
                data = await place.files.read("a")
                listed = [found.id async for found in AsyncSandbox.list({"case": "async"}, client=client)]
            return said, data, ["same" if found == place.id else found for found in listed]

    said, data, listed = asyncio.run(session())
    assert (said.strip(), data, listed) == ("hello", b"\x00\xff", ["same"])
