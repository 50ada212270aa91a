"""Every run and sandbox is accounted for: it ends by its own fate, or it is marked as failed by the platform.

What this process has under way is in memory; what the node has is asked; a row that neither knows is lost and says so.
No fate is invented for it: a lost program has an error, never an Exit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import RingfenceError
from ringfence.domain.process import How
from ringfence.domain.sandbox import State
from ringfence.engine.answers import NodeEvent, NodeEventMessage, NodeSandbox, SandboxEnd, SandboxesEnd, decode_node
from ringfence.engine.feed import Feed
from ringfence.engine.link import Reader
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.policy import RUN_LABEL, Admission
from ringfence.engine.turns import Turns
from ringfence.guest import frames
from ringfence.store.base import NewEvent, Store

RECONCILE_SECONDS: Final = 60.0
MOST_EARLY: Final = 1_000  # endings kept of sandboxes that have no row (yet): most are runs' own, and are forgotten
LIST_SECONDS: Final = 10.0
_log: Final = logging.getLogger(__name__)
_ENDINGS: Final = frozenset({"sandbox.stopped", "sandbox.failed"})
_OWN: Final = _ENDINGS | {"sandbox.created", "sandbox.expired", "sandbox.pause_failed"}


def body_of(error: RingfenceError) -> wire.ErrorBody:
    """An error as a record keeps it."""
    return wire.ErrorBody(code=error.code, cause=error.cause, remediation=error.remediation)


NODE_LOST: Final = wire.ErrorBody(
    code="node_lost",
    cause="the node went away, or forgot this sandbox, before its end was recorded",
    remediation="create a new sandbox; what was in this one is gone",
)
API_RESTARTED: Final = wire.ErrorBody(
    code="api_restarted",
    cause="the server restarted while this ran; the program was stopped and its fate is not known",
    remediation="run it again",
)


def _nobody(_: str) -> None:
    return


def _no_one(_: str, __: str) -> None:
    return


class Ledger:
    """Rows of this process, and their agreement with the node."""

    def __init__(self, store: Store, node: NodeClient, feed: Feed, admission: Admission, turns: Turns) -> None:
        self._store = store
        self._node = node
        self._feed = feed
        self._admission = admission
        self._turns = turns
        self._active: set[str] = set()
        self._live: dict[str, tuple[str, wire.Sandbox]] = {}
        self._stopping: dict[str, int] = {}  # how many ask for its end just now
        self._unheard: dict[str, NodeEvent] = {}  # how those ended, should no answer say so
        self._early: dict[str, NodeEvent] = {}
        self.on_expired: Callable[[str, str], None] = _no_one  # told of each whose time is over and who wants a pause
        self.on_gone: list[Callable[[str], None]] = []  # told of each sandbox that ended; called once or twice
        self.on_reset: Callable[[str], None] = _nobody  # told of each sandbox that was made anew, or could not be

    # --- runs ---

    def run_started(self, tenant: str, run: wire.Run) -> None:
        """A run is under way in this process."""
        self._active.add(run.id)
        self._store.run_started(tenant, run)

    def run_ended(self, tenant: str, run: wire.Run) -> None:
        """A run ended, whichever way."""
        self._active.discard(run.id)
        self._store.run_ended(tenant, run)
        if run.exit is not None:
            self._feed.add(tenant, "run.finished", run=run.id, sandbox=run.sandbox, how=run.exit.how.value)
        elif run.error is not None:
            self._feed.add(tenant, "run.failed", run=run.id, sandbox=run.sandbox, code=run.error.code)

    def abandon_runs(self) -> int:
        """Mark every open run that this process does not have; its own process is gone."""
        lost = 0
        for tenant, run_id in self._store.running():
            record = self._store.run(tenant, run_id)
            if run_id in self._active or record is None:
                continue
            ended = msgspec.structs.replace(record, state="failed", error=API_RESTARTED, finished_at=time.time())
            self.run_ended(tenant, ended)
            lost += 1
        return lost

    # --- sandboxes ---

    def sandbox_made(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """A sandbox was made for its owner just now."""
        self.sandbox_lives(tenant, sandbox)
        self._feed.add(tenant, "sandbox.created", sandbox=sandbox.id, template=sandbox.template)
        # It can die while the answer that names it is under way: its end was heard before its beginning.
        early = self._early.pop(sandbox.id, None)
        if early is not None:
            self._seen(early)

    def sandbox_lives(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """A sandbox lives; its row is made if there is none."""
        self._admission.joined(tenant, sandbox.id)
        self._live[sandbox.id] = (tenant, sandbox)
        self._store.sandbox_created(tenant, sandbox)

    def sandbox_changed(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """A newer version; in a terminal state it ends here."""
        if sandbox.state in {State.STOPPED, State.FAILED}:
            self._admission.left(tenant, sandbox.id)
            self._live.pop(sandbox.id, None)
            self.gone(sandbox.id)
        else:
            self._live[sandbox.id] = (tenant, sandbox)
        self._store.sandbox_changed(tenant, sandbox)

    def gone(self, sandbox_id: str) -> None:
        """Tell whoever wants to know that a sandbox ended."""
        for told in self.on_gone:
            told(sandbox_id)

    def living(self, sandbox_id: str) -> tuple[str, wire.Sandbox] | None:
        """(tenant, sandbox as last heard of) of one in no terminal state, whoever owns it."""
        return self._live.get(sandbox_id)

    def living_of(self, tenant: str) -> list[wire.Sandbox]:
        """A tenant's sandboxes in no terminal state, as last heard of."""
        return [sandbox for owner, sandbox in self._live.values() if owner == tenant]

    def sandbox_paused(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """Its row says so; the node's word on it counts no more."""
        self._admission.left(tenant, sandbox.id)
        self._live.pop(sandbox.id, None)
        self.on_reset(sandbox.id)  # whatever serves its ports next has to start first

    def sandbox_resumed(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """Its row says that it runs again; it may have died while that was written."""
        self.sandbox_lives(tenant, sandbox)
        early = self._early.pop(sandbox.id, None)
        if early is not None:
            self._seen(early)

    def sandbox_coming_back(self, sandbox_id: str) -> None:
        """What is heard of its end from here on is of its next life, not of the last."""
        self._early.pop(sandbox_id, None)

    def sandbox_lost(self, tenant: str, sandbox: wire.Sandbox) -> None:
        """A sandbox the node does not know any more, unless its owner is just being told of its stop."""
        if sandbox.id in self._stopping:
            return
        self.sandbox_changed(
            tenant, msgspec.structs.replace(sandbox, state=State.FAILED, error=NODE_LOST, ended_at=time.time())
        )
        self._feed.add(tenant, "sandbox.failed", sandbox=sandbox.id, code=NODE_LOST.code)

    @contextmanager
    def stopping(self, sandbox_id: str) -> Iterator[None]:
        """While its owner waits for a stop's answer, that answer is the better record than the node's event.

        An owner who leaves has none; then the event is the record after all.
        """
        self._stopping[sandbox_id] = self._stopping.get(sandbox_id, 0) + 1
        try:
            yield
        finally:
            self._stopping[sandbox_id] -= 1
            if not self._stopping[sandbox_id]:
                del self._stopping[sandbox_id]
                self._heard(sandbox_id)

    def _heard(self, sandbox_id: str) -> None:
        event, mine = self._unheard.pop(sandbox_id, None), self._live.get(sandbox_id)
        if event is not None and mine is not None:
            self._ended(event, mine[1])

    async def reconcile(self) -> None:
        """Agree with the node. The rows are read before the node is asked, so a newborn is never taken for lost."""
        await self._store.flush()
        self.abandon_runs()
        rows, before = self._store.live_sandboxes(), set(self._live)
        async with asyncio.timeout(LIST_SECONDS):
            answer = await self._node.ask({"verb": "list", "tenant": None}, SandboxesEnd)
        listed = {sandbox.id: sandbox for sandbox in answer.sandboxes}
        for tenant, row in rows:
            if row.id not in listed and (row.id in self._live or row.id not in before):
                self.sandbox_lost(tenant, row)
        for sandbox_id in before - set(listed):
            gone = self._live.pop(sandbox_id, None)
            if gone is not None:
                self._admission.left(gone[0], sandbox_id)
                self.gone(sandbox_id)
        known = {row.id for _, row in rows}
        others = [one for one in answer.sandboxes if self._turns.held(one.id) or RUN_LABEL in one.labels]
        for sandbox in answer.sandboxes:  # all of them in this turn: a moment later the answer is an old one
            if sandbox not in others:
                self._agree(sandbox, known=sandbox.id in known)
        for sandbox in others:
            await self._end_stale(sandbox)

    def _agree(self, sandbox: NodeSandbox, *, known: bool) -> None:
        if sandbox.state in {State.STOPPED, State.FAILED}:
            if known:
                self.sandbox_changed(sandbox.tenant, sandbox.public(ended_at=time.time()))
        else:
            self.sandbox_lives(sandbox.tenant, sandbox.public())
            if sandbox.expiring:
                self.on_expired(sandbox.tenant, sandbox.id)

    async def _end_stale(self, sandbox: NodeSandbox) -> None:
        """Stop the copy of one that is paused, and a one-shot run's sandbox whose run is not ours any more."""
        if self._turns.held(sandbox.id):
            if not self._turns.resuming(sandbox.id):  # its pausing was cut short, or its resuming was
                await self._end(sandbox, "it was paused")
        elif (run := sandbox.labels.get(RUN_LABEL)) is not None and run not in self._active:
            await self._end(sandbox, "its run is gone")

    async def _end(self, sandbox: NodeSandbox, reason: str) -> None:
        header = {"verb": "stop", "tenant": sandbox.tenant, "sandbox": sandbox.id, "reason": reason}
        try:
            await self._node.ask(header, SandboxEnd)
        except RingfenceError as error:
            _log.info("orphan %s: %s", sandbox.id, error.cause)

    # --- what the node reports ---

    async def follow(self, *, agree: bool = False) -> None:
        """Take the node's events until its connection is lost or they come faster than they are taken.

        With `agree` it is first agreed with: after its events are heard, or what ended in between would be missed.
        """
        reader = Reader()
        try:
            self._node.open(reader, {"verb": "events"})
            if agree:
                await self.reconcile()
            while (item := await reader.next()) is not None:
                if item[0] == frames.CONTROL:
                    self._seen(decode_node(item[1], NodeEventMessage).event)
        except RingfenceError as error:
            _log.warning("the node's events: %s", error.cause)
        finally:
            reader.cancel()

    def _seen(self, event: NodeEvent) -> None:
        mine = self._live.get(event.sandbox)
        if event.type in _OWN and (mine is None or mine[0] != event.tenant):
            self._keep_early(event)
            return  # a run's own sandbox: its run says what became of it
        self._feed.put(NewEvent(event.tenant, event.type, event.time, sandbox=event.sandbox, run=None, data=event.data))
        if event.type == "sandbox.expired" and event.data.get("then") == "pause":
            self.on_expired(event.tenant, event.sandbox)
        if mine is not None and event.type in _ENDINGS:
            self._unheard[event.sandbox] = event
            if event.sandbox not in self._stopping:
                self._heard(event.sandbox)

    def _keep_early(self, event: NodeEvent) -> None:
        if event.type in _ENDINGS:
            self._early[event.sandbox] = event
            while len(self._early) > MOST_EARLY:
                del self._early[next(iter(self._early))]

    def _ended(self, event: NodeEvent, row: wire.Sandbox) -> None:
        fate = _exit_of(event)
        if event.type == "sandbox.stopped":
            final = msgspec.structs.replace(row, state=State.STOPPED, exit=fate, ended_at=event.time)
        else:
            error = None if fate else _failure_of(event)
            final = msgspec.structs.replace(row, state=State.FAILED, exit=fate, error=error, ended_at=event.time)
        self.sandbox_changed(event.tenant, final)


def _exit_of(event: NodeEvent) -> wire.Exit | None:
    """The node's verdict, when it has one."""
    try:
        return wire.Exit(how=How(event.data["how"]), reason=str(event.data.get("reason", ""))[:500])
    except (KeyError, ValueError):
        return None


def _failure_of(event: NodeEvent) -> wire.ErrorBody:
    cause = str(event.data.get("reason") or "the sandbox vanished, or its agent broke the protocol")
    return wire.ErrorBody(code="sandbox_lost", cause=cause[:500], remediation="create a new sandbox")
