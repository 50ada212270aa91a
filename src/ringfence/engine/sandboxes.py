"""The sandbox path: everything that lives in a sandbox is created, reached and ended through here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import BadRequest, Conflict, NotFound, Overloaded, RingfenceError, SandboxLost
from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import State
from ringfence.engine import checks
from ringfence.engine.answers import GuestEnd, NodeSandbox, SandboxEnd, SandboxesEnd
from ringfence.engine.catalog import Catalog
from ringfence.engine.ledger import Ledger
from ringfence.engine.link import Collector, NodeStream
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.policy import RESERVED, RUN_LABEL, Admission, Policy
from ringfence.engine.programs import finished, read
from ringfence.engine.secrets import Secrets
from ringfence.engine.turns import PAUSING, Turns, asleep
from ringfence.store.base import Filter, Store

_encode: Final = msgspec.json.Encoder().encode
_GONE: Final = frozenset({"not_found", "sandbox_not_found"})
ANSWER_SECONDS: Final = 60.0
ENDING_SECONDS: Final = 0.5  # how long a vanished sandbox's last event may be on its way
APART_SECONDS: Final = 60.0  # how long its node may take it apart: gVisor on a busy machine takes seconds


class Sandboxes:
    """A tenant's sandboxes: made, looked at, extended, opened, stopped."""

    def __init__(
        self,
        node: NodeClient,
        store: Store,
        *,
        ledger: Ledger,
        catalog: Catalog,
        admission: Admission,
        policy: Policy,
        secrets: Secrets,
        turns: Turns,
    ) -> None:
        self._secrets = secrets
        self.node = node
        self.policy = policy
        self.catalog = catalog
        self._store = store
        self._ledger = ledger
        self._admission = admission
        self._turns = turns
        self._oom_kills: dict[str, int] = {}
        self.remove_paused: Callable[[str, str, str], Awaitable[wire.Sandbox]] = _no_pauses

    # --- making ---

    def accepting(self) -> None:
        """Refuse new work while it could not be accounted for. Raises Overloaded."""
        if not self._store.ready():
            raise Overloaded(
                "the store cannot keep new work",
                code="store_unavailable",
                remediation="the operator must free its disk",
            )

    def check_labels(self, labels: dict[str, str]) -> None:
        """Refuse labels that are not a tenant's to set."""
        checks.labels(labels)
        if any(name.startswith(RESERVED) for name in labels):
            raise BadRequest(f"labels that start with {RESERVED!r} are reserved", code="bad_label")

    def check_ttl(self, tenant: str, seconds: float) -> None:
        """Refuse more time than the tenant may have at once. Raises BadRequest."""
        most = self.policy.ceiling(tenant).max_ttl_seconds
        if seconds > most:
            raise BadRequest(f"ttl_seconds is above {most:g}", code="bad_ttl", remediation="ask for less, then extend")

    async def create(self, tenant: str, request: wire.SandboxRequest) -> wire.Sandbox:
        """A sandbox that lives for its ttl. Raises BadRequest, OverQuota or a platform fault; then there is none."""
        self.accepting()
        if request.labels:
            self.check_labels(request.labels)
        self.check_ttl(tenant, request.ttl_seconds)
        start = checks.start(request.start)
        with self._admission.creating(tenant):
            limits = await self.catalog.resolve(tenant, request.template, request.isolation, request.limits)
            made, answer = await self.make(
                tenant,
                request,
                limits,
                labels=request.labels,
                ttl=request.ttl_seconds,
                start=start,
                wishes=_wishes(request),
            )
            sandbox = made.public(answer.timings)
            self._ledger.sandbox_made(tenant, sandbox)
        return sandbox

    async def make(
        self,
        tenant: str,
        request: wire.SandboxRequest | wire.RunRequest,
        limits: Limits,
        *,
        labels: dict[str, str],
        ttl: float,
        start: bytes = b"",
        wishes: dict[str, Any] | None = None,
    ) -> tuple[NodeSandbox, SandboxEnd]:
        """Have the node make one, and begin what it begins with; what it is for is the caller's to record."""
        kept = self._secrets.kept(tenant, request.secrets)
        granted = await self._secrets.granted(tenant, request.secrets, request.egress)
        header = {
            "verb": "create",
            "tenant": tenant,
            "template": request.template,
            "limits": limits,
            "labels": labels,
            "isolation": request.isolation,
            "ttl_seconds": ttl,
            "wait_seconds": self.policy.wait_seconds,
            **(wishes or {}),
            **self.policy.egress(request.egress),
            **self.policy.gateway(tenant, request.egress_gateway),
            **granted,
        }
        answer = await self.node.call(header, SandboxEnd, start)
        if answer.sandbox is None:
            raise Overloaded("the node gave no sandbox")
        if kept != self._secrets.kept(tenant, request.secrets):
            await self.discard(tenant, answer.sandbox.id, "one of its secrets was changed while it was made")
            raise Conflict(
                "one of its secrets was changed while it was made", code="secret_changed", remediation="ask again"
            )
        return answer.sandbox, answer

    # --- looking ---

    async def get(self, tenant: str, sandbox_id: str) -> wire.Sandbox:
        """As it is now; after its end, as it ended. Raises NotFound."""
        checks.identifier(sandbox_id, "s")
        row = await self._row(tenant, sandbox_id)
        if row.state in {State.STOPPED, State.FAILED, State.PAUSED}:
            return row
        try:
            answer = await self.node.call({"verb": "get", "tenant": tenant, "sandbox": sandbox_id}, SandboxEnd)
        except NotFound:
            return await self._ended_row(tenant, sandbox_id)
        return answer.sandbox.public(row.timings) if answer.sandbox else row

    async def _row(self, tenant: str, sandbox_id: str) -> wire.Sandbox:
        await self._store.flush()
        row = self._store.sandbox(tenant, sandbox_id)
        if row is None:
            raise checks.missing(sandbox_id, "s")
        return row

    async def _ended_row(self, tenant: str, sandbox_id: str) -> wire.Sandbox:
        """The row of a sandbox the node does not have: its last event may still be on its way, else it is lost.

        A node lends nobody what it is taking apart, and tells what became of it when nothing is left.
        """
        last, deadline, gone = time.monotonic() + APART_SECONDS, time.monotonic() + ENDING_SECONDS, False
        while True:
            row = await self._row(tenant, sandbox_id)
            if row.state in {State.STOPPED, State.FAILED, State.PAUSED}:
                return row
            if time.monotonic() > deadline:
                if gone:
                    self._ledger.sandbox_lost(tenant, row)
                    return await self._row(tenant, sandbox_id)
                gone = time.monotonic() > last or not await self._taken_apart(tenant, sandbox_id)
                deadline = time.monotonic() + (0.0 if gone else ENDING_SECONDS)  # its event came before that answer
            await asyncio.sleep(0.05)

    async def _taken_apart(self, tenant: str, sandbox_id: str) -> bool:
        answer = await self.node.call({"verb": "list", "tenant": tenant}, SandboxesEnd)
        return any(each.id == sandbox_id and each.state is not State.RUNNING for each in answer.sandboxes)

    async def page(self, tenant: str, wanted: Filter) -> list[wire.Sandbox]:
        """A tenant's sandboxes as last recorded, newest first."""
        await self._store.flush()
        return self._store.sandboxes(tenant, wanted)

    # --- changing ---

    async def extend(self, tenant: str, sandbox_id: str, ttl_seconds: float) -> wire.Sandbox:
        """Expire that many seconds from now instead. Raises NotFound, Conflict once it ended, BadRequest."""
        checks.identifier(sandbox_id, "s")
        self.check_ttl(tenant, ttl_seconds)
        await self._turns.reach(tenant, sandbox_id)
        header = {"verb": "extend", "tenant": tenant, "sandbox": sandbox_id, "ttl_seconds": ttl_seconds}
        return await self._changed(tenant, sandbox_id, header)

    async def allow(self, tenant: str, sandbox_id: str, egress: wire.Egress) -> wire.Sandbox:
        """Replace what it may reach, from when this returns. Raises NotFound, Conflict once it ended, BadRequest."""
        checks.identifier(sandbox_id, "s")
        words = self.policy.egress("none" if egress is None else egress)
        await self._turns.reach(tenant, sandbox_id)
        header = {"verb": "allow", "tenant": tenant, "sandbox": sandbox_id, **words}
        return await self._changed(tenant, sandbox_id, header)

    async def reset(self, tenant: str, sandbox_id: str) -> wire.Sandbox:
        """Make it anew under its own id, with what it begins with running again; requests wait meanwhile.

        Processes and files are gone; labels, limits, expiry, policy, published ports and links stay.
        Raises NotFound, Conflict once it ended, or why it could not be made again; then it has failed.
        """
        checks.identifier(sandbox_id, "s")
        self.accepting()
        await self._turns.reach(tenant, sandbox_id)
        header = {"verb": "reset", "tenant": tenant, "sandbox": sandbox_id}
        try:
            return await self._changed(tenant, sandbox_id, header)
        finally:
            self.forget_oom_kills(sandbox_id)
            self._ledger.on_reset(sandbox_id)

    async def stop(self, tenant: str, sandbox_id: str, reason: str = "stopped by its owner") -> wire.Sandbox:
        """End it; returns when nothing of it is left. One that ended already is returned as it ended."""
        checks.identifier(sandbox_id, "s")
        while (held := self._turns.find(tenant, sandbox_id)) is not None:
            if held.turn is None:
                with contextlib.suppress(Conflict):  # another turn was quicker: see what it made of it
                    return await self.remove_paused(tenant, sandbox_id, reason)
            elif held.doing == PAUSING:
                await self.discard(tenant, sandbox_id, reason)  # which breaks its pausing off, unless that is done
            await self._turns.over(sandbox_id)
        header = {"verb": "stop", "tenant": tenant, "sandbox": sandbox_id, "reason": reason}
        try:
            with self._ledger.stopping(sandbox_id):
                return await self._changed(tenant, sandbox_id, header)
        except Conflict:
            return await self._ended_row(tenant, sandbox_id)

    async def _changed(self, tenant: str, sandbox_id: str, header: dict[str, Any]) -> wire.Sandbox:
        try:
            answer = await self.node.call(header, SandboxEnd)
        except RingfenceError as error:
            raise await self.explained(tenant, sandbox_id, error) from None
        if answer.sandbox is None:
            return await self._row(tenant, sandbox_id)
        ended = answer.sandbox.state in {State.STOPPED, State.FAILED}
        sandbox = answer.sandbox.public(ended_at=time.time() if ended else None)
        self._ledger.sandbox_changed(tenant, sandbox)
        return sandbox

    async def discard(self, tenant: str, sandbox_id: str, reason: str) -> None:
        """Stop a sandbox nobody asked for by name; that it is gone already is fine."""
        with contextlib.suppress(RingfenceError):
            await self.node.ask({"verb": "stop", "tenant": tenant, "sandbox": sandbox_id, "reason": reason}, SandboxEnd)

    # --- reaching into one ---

    async def explained(self, tenant: str, sandbox_id: str, error: RingfenceError) -> RingfenceError:
        """The node's "no such sandbox" as the owner should hear it: ended, or never there; others unchanged."""
        if not isinstance(error, NotFound) or error.code not in _GONE:
            return error
        try:
            row = await self._ended_row(tenant, sandbox_id)
        except NotFound as missing:
            return missing
        if row.state is State.PAUSED:
            return asleep()
        why = row.exit.reason or row.exit.how.value if row.exit else row.error.cause if row.error else row.state.value
        return Conflict(f"the sandbox has ended: {why}", code="sandbox_ended", remediation="create a new sandbox")

    async def open(
        self, tenant: str, sandbox_id: str, stream: NodeStream, words: dict[str, Any], *,
        program: bool = False, kernel: bool = False,
    ) -> None:  # fmt: skip
        """Open a guest stream; its `ended` tells whether the node had such a sandbox. A paused one may wake for it.

        A program's output is capped as a whole; a kernel is a program whose output its reader caps, cell by cell.
        """
        checks.identifier(sandbox_id, "s")
        await self._turns.reach(tenant, sandbox_id)
        kind = "kernel" if kernel else "program" if program else "plain"
        await self.open_now(tenant, sandbox_id, stream, words, kind)

    async def open_now(
        self, tenant: str, sandbox_id: str, stream: NodeStream, words: dict[str, Any], kind: str = "plain"
    ) -> None:
        """As open(), whatever is being done to it: for the one who does it."""
        await self.node.wait_up()
        header = {"verb": "open", "tenant": tenant, "sandbox": sandbox_id, "kind": kind}
        self.node.open(stream, header, _encode(words))

    async def ask(self, tenant: str, sandbox_id: str, words: dict[str, Any], stdin: bytes | None = None) -> GuestEnd:
        """Open a guest stream for its answer alone. Raises what node or agent raised."""
        stream = Collector(0)
        await self.open(tenant, sandbox_id, stream, words)
        async with answering():
            return await self.answered(tenant, sandbox_id, stream, stdin)

    async def ask_now(self, tenant: str, sandbox_id: str, words: dict[str, Any]) -> GuestEnd:
        """As ask(), whatever is being done to it: for the one who does it."""
        stream = Collector(0)
        await self.open_now(tenant, sandbox_id, stream, words)
        async with answering():
            return await self.answered(tenant, sandbox_id, stream)

    async def answered(self, tenant: str, sandbox_id: str, stream: NodeStream, stdin: bytes | None = None) -> GuestEnd:
        """Feed an open stream, wait for its end, and return the agent's last words."""
        try:
            return read(await finished(stream, stdin))[1]
        except RingfenceError as error:
            raise await self.explained(tenant, sandbox_id, error) from None

    # --- memory kills seen so far, so that an old one is not blamed on a new program ---

    def oom_kills(self, sandbox_id: str) -> int:
        """How many memory kills this sandbox had when last looked at."""
        return self._oom_kills.get(sandbox_id, 0)

    def saw_oom_kills(self, sandbox_id: str, count: int) -> None:
        """Remember; only sandboxes that had any take room."""
        if count:
            self._oom_kills[sandbox_id] = count
            while len(self._oom_kills) > 10_000:
                del self._oom_kills[next(iter(self._oom_kills))]

    def forget_oom_kills(self, sandbox_id: str) -> None:
        """It counts anew: it is in another group."""
        self._oom_kills.pop(sandbox_id, None)


def _wishes(request: wire.SandboxRequest) -> dict[str, Any]:
    """What is said of the end of its time; the template speaks for what is not."""
    said = {"on_timeout": request.on_timeout, "wake": request.wake}
    return {name: value for name, value in said.items() if value is not None}


async def _no_pauses(_tenant: str, sandbox_id: str, _reason: str) -> wire.Sandbox:
    raise checks.missing(sandbox_id, "s")


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Bound how long an agent may take over what it should answer at once: it may be in a hostile program's hands."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except TimeoutError:
        raise SandboxLost(
            f"the sandbox's agent did not answer within {ANSWER_SECONDS:g} s", remediation="create a new sandbox"
        ) from None


def run_label(run_id: str) -> dict[str, str]:
    """The label by which the node's list tells a one-shot run's sandbox."""
    return {RUN_LABEL: run_id}
