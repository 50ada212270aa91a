"""A whole server but for HTTP, in the test's own loop: engine, store and shelf over a node of fake sandboxes.

Its api can be broken off at any moment as a killed process would be: what is on disk then is what the next one finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ringfence import wire
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Policy
from ringfence.engine.shelf import Shelf
from ringfence.store.sqlite import SqliteStore
from tests.support.nodewire import PATIENCE, Node, node

OWN_TASKS = frozenset({"node", "reconcile", "tidy", "events"})


class Api:
    """One life of an api."""

    def __init__(self, place: Path, socket: Path, policy: Policy, kept_free: int) -> None:
        self.place = place
        (place / "paused").mkdir(parents=True, exist_ok=True)
        self._directory = os.open(place / "paused", os.O_RDONLY | os.O_DIRECTORY)
        self.store = SqliteStore(place / "ringfence.db")
        self.store.start()
        self.shelf = Shelf(self._directory, kept_free)
        self.engine = Engine(socket, self.store, policy, self.shelf)
        self._others: set[asyncio.Task[Any]] = set()
        self._running = AsyncExitStack()
        self.crashed = False

    async def start(self) -> None:
        """Answer, once the node does."""
        self._others = set(asyncio.all_tasks())
        await self._running.enter_async_context(self.engine.running())
        await self.engine.node.wait_up(PATIENCE)

    def _mine(self) -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() - self._others if task.get_name() in OWN_TASKS]

    async def crash(self) -> None:
        """Nothing of it does anything any more; its connection to the node is gone."""
        self.crashed = True
        mine = self._mine()
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def close(self) -> None:
        """A clean stop; after a crash, only what the test process itself must give back."""
        with contextlib.suppress(Exception):
            await self._running.aclose()
        await self.shelf.do(lambda: None)
        self.store.close()
        os.close(self._directory)

    def files(self) -> list[str]:
        """What the shelf holds, parts included."""
        return sorted(os.listdir(self.place / "paused"))


class House:
    """A node, and one api after the other."""

    def __init__(self, place: Path, served: Node, policy: Policy, kept_free: int) -> None:
        self.node = served
        self._place = place
        self._policy = policy
        self._kept_free = kept_free
        self._lives: list[Api] = []

    @property
    def api(self) -> Api:
        """The one that serves."""
        return self._lives[-1]

    @property
    def engine(self) -> Engine:
        """Its engine."""
        return self.api.engine

    async def start(self) -> None:
        """A first api, or another after a crash: on a copy of what the last one left on disk."""
        place = self._place / f"api-{len(self._lives)}"
        if self._lives:
            shutil.copytree(self.api.place, place)
        api = Api(place, self.node.path, self._policy, self._kept_free)
        self._lives.append(api)
        await api.start()

    async def restart(self) -> None:
        """The api is killed and another comes."""
        await self.api.crash()
        await self.start()

    async def close(self) -> None:
        """Everything."""
        for api in reversed(self._lives):
            await api.close()

    # --- what tests do ---

    async def made(self, tenant: str = "ada", **wishes: Any) -> str:
        """A sandbox with a file in it."""
        request = wire.SandboxRequest(labels={"team": "x"}, limits={"scratch_bytes": 4 << 20}, **wishes)
        made = await self.engine.sandboxes.create(tenant, request)
        await self.engine.files.write(tenant, made.id, "note", b"kept")
        return made.id

    async def note(self, sandbox_id: str, tenant: str = "ada") -> bytes:
        """What that file says."""
        return await self.engine.files.read_whole(tenant, sandbox_id, "note", 100)

    async def state(self, sandbox_id: str, tenant: str = "ada") -> str:
        """As its owner sees it."""
        return (await self.engine.sandboxes.get(tenant, sandbox_id)).state.value

    async def becomes(self, sandbox_id: str, state: str) -> None:
        """Wait for a state that comes beside the answers."""
        async with asyncio.timeout(PATIENCE):
            while await self.state(sandbox_id) != state:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)

    async def events(self, sandbox_id: str, tenant: str = "ada") -> list[str]:
        """What happened to it, oldest first."""
        await self.api.store.flush()
        return [event.type for event in self.api.store.events_about(tenant, sandbox_id, 100)]

    @property
    def live(self) -> set[str]:
        """The sandboxes that the node has."""
        return self.node.supervisor.table.ids()


@asynccontextmanager
async def house(
    place: Path, policy: Policy | None = None, *, kept_free: int = 0, **settings: Any
) -> AsyncIterator[House]:
    """A server for one test."""
    async with node(place, **settings) as served:
        made = House(place, served, policy or Policy(wait_seconds=5), kept_free)
        await made.start()
        try:
            yield made
        finally:
            await made.close()
