"""The engine put together: what the api holds, and the tasks that keep it true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ringfence import wire
from ringfence.domain.errors import RingfenceError
from ringfence.engine import checks, why
from ringfence.engine.answers import StatusEnd
from ringfence.engine.catalog import Catalog
from ringfence.engine.egress import Egress
from ringfence.engine.feed import Feed
from ringfence.engine.files import Files
from ringfence.engine.idempotency import Idempotency
from ringfence.engine.ledger import RECONCILE_SECONDS, Ledger
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.pause import Pauses
from ringfence.engine.policy import Admission, Policy
from ringfence.engine.processes import Processes
from ringfence.engine.runs import Runs
from ringfence.engine.sandboxes import Sandboxes
from ringfence.engine.secrets import Sealer, Secrets
from ringfence.engine.shelf import Shelf
from ringfence.engine.turns import Turns
from ringfence.store.base import Store

FOLLOW_AGAIN_SECONDS: Final = 0.1
_log: Final = logging.getLogger(__name__)


class Engine:
    """Everything a handler may call. Made on a running loop; alive inside running()."""

    def __init__(
        self,
        node_socket: Path,
        store: Store,
        policy: Policy,
        shelf: Shelf | None = None,
        *,
        sealer: Sealer | None = None,
        roots: bytes = b"",
    ) -> None:
        """`shelf` keeps paused sandboxes' files, `sealer` secrets; without one there are none. `roots`: see Secrets."""
        self.store = store
        self.policy = policy
        self.node = NodeClient(node_socket, on_up=self._node_up)
        self.admission = Admission(policy)
        self.feed = Feed(store)
        self.turns = Turns()
        self.ledger = Ledger(store, self.node, self.feed, self.admission, self.turns)
        self.catalog = Catalog(self.node, policy)
        self.secrets = Secrets(store, self.node, policy.floor, sealer, roots)
        self.sandboxes = Sandboxes(
            self.node, store, ledger=self.ledger, catalog=self.catalog, admission=self.admission, policy=policy,
            secrets=self.secrets,
            turns=self.turns,
        )  # fmt: skip
        self.pauses = Pauses(
            self.sandboxes, store, ledger=self.ledger, feed=self.feed, admission=self.admission, turns=self.turns,
            shelf=shelf, secrets=self.secrets,
        )  # fmt: skip
        self.files = Files(self.sandboxes)
        self.processes = Processes(self.sandboxes)
        self.runs = Runs(self.sandboxes, self.files, store, self.ledger, self.admission)
        self.egress = Egress(self.node, store, policy, self.sandboxes, self.runs)
        self.idempotency = Idempotency(store)
        self.stopping = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Account for what an earlier process left, then keep the node connected until left."""
        self.feed.start()
        self.ledger.abandon_runs()
        await self.pauses.begin()
        tasks = [
            asyncio.create_task(self.node.run(), name="node"),
            asyncio.create_task(_every(RECONCILE_SECONDS, self._reconcile), name="reconcile"),
            asyncio.create_task(_every(RECONCILE_SECONDS, self._tidy), name="tidy"),
        ]
        try:
            yield self
        finally:
            await self.runs.settled()
            await self.pauses.stop()
            self.feed.stop()
            if self._following is not None:
                tasks.append(self._following)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _node_up(self) -> None:
        """Agree with a node that just answered, before anybody may use it."""
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._follow(), name="events")
        await self.ledger.reconcile()
        await self.catalog.refresh()

    async def _follow(self) -> None:
        """Follow the node's events. Fallen behind, agree with the node and follow on; a lost node starts this anew."""
        await self.ledger.follow()
        while True:
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)
            if not self.node.linked:
                return
            with contextlib.suppress(TimeoutError):
                await self.ledger.follow(agree=True)

    async def _reconcile(self) -> None:
        if self.node.connected:
            await self.ledger.reconcile()

    async def _tidy(self) -> None:
        before = time.time() - self.policy.keep_seconds
        await self.store.tidy(before, self.policy.keep_runs, self.policy.keep_events)
        await self.pauses.tidy()

    async def status(self, tenant: str, version: str) -> wire.Status:
        """How things are, as this tenant may know it."""
        node = StatusEnd()
        with contextlib.suppress(RingfenceError):  # a node that is just going away: then it is not ready
            node = await self.node.ask({"verb": "status"}, StatusEnd)
        return wire.Status(
            ready=self.node.connected and self.store.ready(),
            version=version,
            tenant=tenant,
            sandboxes=self.admission.sandboxes(tenant),
            runs=self.admission.runs(tenant),
            uptime_seconds=node.uptime_seconds,
            pools=[pool for pool in node.pools if pool.get("tenant", tenant) == tenant],
        )

    async def why(self, tenant: str, subject: str) -> wire.Why:
        """A run or a sandbox explained. Raises NotFound."""
        if subject.startswith("s"):
            sandbox = await self.sandboxes.get(tenant, subject)
            return why.of_sandbox(sandbox, self.store.events_about(tenant, subject, 100))
        run = await self.runs.get(tenant, subject)
        events = self.store.events_about(tenant, checks.identifier(subject, "r"), 100)
        if run.sandbox is not None:  # what it was denied is told of the sandbox it had
            events = sorted([*events, *self.store.events_about(tenant, run.sandbox, 100)], key=lambda event: event.id)
        return why.of_run(run, run.limits, events)


async def _every(seconds: float, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except (RingfenceError, TimeoutError) as error:
            _log.warning("%s: %s", act.__name__, error)
