"""What becomes of a sandbox that takes long to be taken apart: its owner hears its own end, whoever asks meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ringfence.domain.errors import Conflict
from ringfence.engine.sandboxes import ENDING_SECONDS
from tests.support.house import House, house
from tests.support.nodewire import until

pytestmark = pytest.mark.anyio
LONGER = 2 * ENDING_SECONDS + 0.5


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    """A server."""
    async with house(tmp_path) as made:
        yield made


class Held:
    """A runtime that takes sandboxes apart once it is let."""

    def __init__(self, home: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._stop = home.node.runtime.stop
        monkeypatch.setattr(home.node.runtime, "stop", self._slowly)

    async def _slowly(self, name: str) -> None:
        self.reached.set()
        await self.go.wait()
        await self._stop(name)


async def test_an_expired_one_is_not_lost_while_it_is_taken_apart(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks or uses it then waits for its end, which is the end of its time and no fault of ours."""
    name = await home.made()
    held = Held(home, monkeypatch)
    await home.engine.sandboxes.extend("ada", name, 0.05)
    await until(held.reached.is_set)
    looking = asyncio.create_task(home.engine.sandboxes.get("ada", name))
    using = asyncio.create_task(home.note(name))
    await asyncio.sleep(LONGER)
    held.go.set()
    ended = await looking
    assert ended.exit is not None
    assert (ended.state, ended.exit.how, ended.error) == ("stopped", "timed_out", None)
    with pytest.raises(Conflict, match="its time to live is over"):
        await using
    assert "sandbox.failed" not in await home.events(name)


async def test_a_second_stop_waits_for_the_first(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are told the same, and there was one end."""
    name = await home.made()
    held = Held(home, monkeypatch)
    first = asyncio.create_task(home.engine.sandboxes.stop("ada", name, "enough"))
    await until(held.reached.is_set)
    second = asyncio.create_task(home.engine.sandboxes.stop("ada", name))
    await asyncio.sleep(LONGER)
    held.go.set()
    for stopped in (await first, await second):
        assert stopped.exit is not None
        assert (stopped.state, stopped.exit.reason) == ("stopped", "enough")
    assert (await home.events(name)).count("sandbox.stopped") == 1
    assert "sandbox.failed" not in await home.events(name)


@pytest.mark.parametrize("again", [False, True])
async def test_whoever_asked_for_a_stop_may_leave(home: House, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """It ends as was asked, and its row says so; also when another asks meanwhile, who is told."""
    name = await home.made()
    held = Held(home, monkeypatch)
    asking = asyncio.create_task(home.engine.sandboxes.stop("ada", name, "enough"))
    await until(held.reached.is_set)
    other = asyncio.create_task(home.engine.sandboxes.stop("ada", name)) if again else None
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(LONGER if again else 0)
    held.go.set()
    if other is not None:
        assert (await other).state == "stopped"
    await home.becomes(name, "stopped")
    ended = await home.engine.sandboxes.get("ada", name)
    assert ended.exit is not None
    assert (ended.exit.reason, ended.error) == ("enough", None)
