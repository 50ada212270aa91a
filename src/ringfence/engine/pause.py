"""Pausing keeps a sandbox's files and nothing else of it; resuming puts them into a new one of the same id.

    pause:   the agent ends every program and sends the files ▸ the shelf has them on disk ▸ the record says paused
             ▸ the sandbox is stopped
    resume:  the shelf's copy is what was written ▸ a sandbox of the same template, limits and policy ▸ the agent puts
             the files back ▸ the record says running ▸ the copy is removed

The record decides. Before it says paused the sandbox is a running one, whatever breaks; once it says so the copy is
whole, and a sandbox of that id that a node still has is stopped when it is seen (Ledger.reconcile).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import BadRequest, Conflict, OverQuota, PlatformFault, RingfenceError, SandboxLost
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.domain.sandbox import State
from ringfence.engine import checks
from ringfence.engine.answers import NodeSandbox, PauseEnd, SandboxEnd, decode_node, guest_end, raise_node
from ringfence.engine.feed import Feed
from ringfence.engine.ledger import Ledger
from ringfence.engine.link import Collector, Reader
from ringfence.engine.policy import Admission
from ringfence.engine.sandboxes import Sandboxes
from ringfence.engine.secrets import Secrets
from ringfence.engine.shelf import Blob, Shelf
from ringfence.engine.turns import PAUSING, REMOVING, RESUMING, Turns
from ringfence.guest import frames
from ringfence.store.base import Store

LONGEST_SECONDS: Final = 600.0  # a pause or a resumption that takes longer has failed
SILENCE_SECONDS: Final = 60.0  # and one in which nothing moves for so long
NAME_BYTES: Final = 512  # what a file takes in an archive besides its bytes: a name of 255 and its attributes
AGAIN_SECONDS: Final = 5.0
TRIES: Final = 10  # of pausing a sandbox whose time is over, within the node's grace
KEYLESS_SECONDS: Final = 7 * 86_400.0  # a tenant without a valid key for so long is gone, and what is kept of it goes
_encode: Final = msgspec.json.Encoder().encode
_log: Final = logging.getLogger(__name__)
_LOST: Final = wire.ErrorBody(
    code="pause_lost",
    cause="what was kept of this sandbox is not on the server's disk any more",
    remediation="create a new sandbox",
)


def most_bytes(limits: Limits | None) -> int:
    """No sandbox of these limits has more to send."""
    known = limits or Limits()
    return known.scratch_bytes + known.scratch_files * NAME_BYTES + 65_536


class Pauses:
    """Pause, resume, and what becomes of paused sandboxes. The engine makes one."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        store: Store,
        *,
        ledger: Ledger,
        feed: Feed,
        admission: Admission,
        turns: Turns,
        secrets: Secrets,
        shelf: Shelf | None,
    ) -> None:
        self._sandboxes = sandboxes
        self._node = sandboxes.node
        self._store = store
        self._ledger = ledger
        self._feed = feed
        self._admission = admission
        self._turns = turns
        self._secrets = secrets
        self._vault = shelf
        self._expiring: dict[str, asyncio.Task[None]] = {}
        self.at: Callable[[str], Awaitable[None]] = _went_on  # told of each moment: a test breaks us off there
        turns.wake = self.resume
        self.least: Callable[[str], float] = _no_least  # seconds that a sandbox lives which nobody gave any
        sandboxes.remove_paused = self.remove
        ledger.on_expired = self._time_over

    @property
    def shelf(self) -> Shelf:
        """Where files are kept. Raises Conflict on a server that has no place for them."""
        if self._vault is None:
            raise Conflict("this server keeps no paused sandboxes", code="pause_off")
        return self._vault

    async def begin(self) -> None:
        """Know what an earlier process paused, and forget what it did not finish. Before anything else is served."""
        if self._vault is None:
            return
        await self._store.flush()
        for row in self._vault.adopt(self._store.pauses()):
            known = self._store.sandbox(row.tenant, row.sandbox)
            if known is not None:
                await self._finished(row.tenant, msgspec.structs.replace(known, state=State.FAILED, error=_LOST))
        for kept in self._vault.rows():
            sandbox = self._store.sandbox(kept.tenant, kept.sandbox)
            self._turns.fell_asleep(kept.tenant, kept.sandbox, wake=sandbox is not None and sandbox.wake)

    async def stop(self) -> None:
        """Break off what is under way; nothing is half done by that."""
        for task in self._expiring.values():
            task.cancel()
        await self._turns.stop()

    # --- pausing ---

    async def pause(
        self, tenant: str, sandbox_id: str, *, memory: bool = False, reason: str = "by its owner", expired: bool = False
    ) -> wire.Sandbox:
        """Keep its files, end it. Raises NotFound, Conflict, OverQuota, BadRequest for `memory`, platform faults.

        What is refused leaves the sandbox as it was. What fails later leaves it running with its files, its programs
        ended.
        """
        checks.identifier(sandbox_id, "s")
        if memory:
            raise BadRequest(
                "no runtime here can keep a sandbox's memory",
                code="pause_memory_unsupported",
                remediation="pause without memory: files are kept, programs end",
            )
        held = self._turns.find(tenant, sandbox_id)
        if held is not None and held.paused and held.turn is None:
            raise Conflict("the sandbox is paused already", code="sandbox_paused", remediation="resume it, or stop it")
        await self._sandboxes.get(tenant, sandbox_id)  # nobody learns of another's turn
        return await self._turns.take(
            tenant, sandbox_id, PAUSING, lambda: self._pause(tenant, sandbox_id, reason, expired=expired)
        )

    async def _pause(self, tenant: str, sandbox_id: str, reason: str, *, expired: bool) -> wire.Sandbox:
        row = await self._sandboxes.get(tenant, sandbox_id)
        if row.state is not State.RUNNING:
            raise Conflict(f"the sandbox is {row.state.value}", code=_CODES.get(row.state, "sandbox_ended"))
        held = self._turns.find(tenant, sandbox_id)
        if held is not None:
            held.wake = row.wake
        self._sandboxes.accepting()
        policy = self._sandboxes.policy
        quota = policy.ceiling(tenant).max_paused_bytes
        await self._worth_trying(tenant, sandbox_id, quota)
        await self.at("worth trying")
        try:
            async with self.shelf.writing(tenant, sandbox_id, most_bytes(row.limits), quota) as blob:
                described, begins = await self._taken(tenant, sandbox_id, blob, expired=expired)
                await self.at("taken")
                now = time.time()
                kept = await blob.finish(now + policy.keep_paused_seconds, begins)
                told = wire.Paused(at=now, bytes=kept.size, expires_at=kept.expires, reason=reason)
                paused = msgspec.structs.replace(
                    described.public(row.timings), state=State.PAUSED, expires_at=None, paused=told
                )
                await self.at("on disk")
                with self._ledger.stopping(sandbox_id):
                    if not await self._store.sandbox_paused(paused, kept):
                        raise Conflict("the sandbox has ended meanwhile", code="sandbox_ended")
                    blob.keep(kept)
                    self._turns.fell_asleep(tenant, sandbox_id, wake=row.wake)
                    self._ledger.sandbox_paused(tenant, paused)
        except BaseException as error:
            if not self._turns.held(sandbox_id):
                await self._go_on(tenant, sandbox_id, error)
            raise
        await self.at("recorded as paused")
        self._feed.add(
            tenant, "sandbox.paused", sandbox=sandbox_id, kept="files", programs="ended", bytes=kept.size, reason=reason
        )
        await self._sandboxes.discard(tenant, sandbox_id, "it was paused")
        await self.at("stopped")
        return paused

    async def _worth_trying(self, tenant: str, sandbox_id: str, quota: int) -> None:
        """Refuse what would fail for its size, as the sandbox states it, before its programs are ended for nothing."""
        size = (await self._sandboxes.ask_now(tenant, sandbox_id, {"op": "measure"})).size
        if self.shelf.used(tenant) + max(0, size) > quota:
            raise OverQuota(
                f"this sandbox holds {size} bytes and its tenant may keep {quota}, {self.shelf.used(tenant)} in use",
                code="paused_quota",
                remediation="remove files, stop paused sandboxes, or have the operator raise max_paused_bytes",
            )
        self.shelf.fits(max(0, size))

    async def _taken(self, tenant: str, sandbox_id: str, blob: Blob, *, expired: bool) -> tuple[NodeSandbox, bytes]:
        """Everything the agent sends, into the file; what it was, and began with. Raises what broke it off."""
        stream = Reader()
        await self._node.wait_up()
        header = {"verb": "pause", "tenant": tenant, "sandbox": sandbox_id, "expired": expired}
        self._node.open(stream, header, _encode({"op": "pack"}))
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                while (item := await _soon(stream)) is not None:
                    if item[0] == frames.STDOUT:
                        await blob.write(item[1])
                end = await stream.ended
        except TimeoutError:
            raise SandboxLost("the sandbox's files did not come in time", remediation="try again") from None
        except RingfenceError as error:
            raise await self._sandboxes.explained(tenant, sandbox_id, error) from None
        finally:
            stream.cancel()
        answer = decode_node(end.header, PauseEnd)
        if answer.error is None and answer.override is not None:
            raise Conflict(f"the sandbox has ended: {answer.override.reason}", code="sandbox_ended")
        try:
            raise_node(answer.error)
        except RingfenceError as error:
            raise await self._sandboxes.explained(tenant, sandbox_id, error) from None
        guest_end(end.guest)
        if answer.described is None:
            raise SandboxLost("the node did not say what it paused")
        return answer.described, answer.begins

    async def _go_on(self, tenant: str, sandbox_id: str, error: BaseException) -> None:
        """Nothing came of it: whoever waited for the sandbox may use it again."""
        reason = error.cause if isinstance(error, RingfenceError) else "the server stopped meanwhile"
        header = {"verb": "unpause", "tenant": tenant, "sandbox": sandbox_id, "reason": reason[:300]}
        with contextlib.suppress(RingfenceError):
            await self._node.ask(header, SandboxEnd)

    # --- resuming ---

    async def resume(self, tenant: str, sandbox_id: str, ttl_seconds: float | None = None) -> wire.Sandbox:
        """A sandbox again, with the files it had, for `ttl_seconds` or as long as it was last given and `least` says.

        Raises NotFound, Conflict `sandbox_running`, `sandbox_ended` or `template_gone`, OverQuota, platform faults;
        then it is paused as before.
        """
        checks.identifier(sandbox_id, "s")
        self._sandboxes.check_ttl(tenant, ttl_seconds or 0.0)
        held = self._turns.find(tenant, sandbox_id)
        if held is None:
            row = await self._sandboxes.get(tenant, sandbox_id)
            raise Conflict(f"the sandbox is {row.state.value}", code=_CODES.get(row.state, "sandbox_ended"))
        await self._turns.let_go(held)
        return await self._turns.take(
            tenant, sandbox_id, RESUMING, lambda: self._resume(tenant, sandbox_id, ttl_seconds)
        )

    async def _resume(self, tenant: str, sandbox_id: str, ttl_seconds: float | None) -> wire.Sandbox:
        row, kept = await self._sandboxes.get(tenant, sandbox_id), self.shelf.row(sandbox_id)
        if row.state is not State.PAUSED or kept is None:
            raise Conflict(f"the sandbox is {row.state.value}", code=_CODES.get(row.state, "sandbox_ended"))
        self._sandboxes.accepting()
        ttl = ttl_seconds or max(row.ttl_seconds or 300.0, self.least(sandbox_id))
        ttl = min(ttl, self._sandboxes.policy.ceiling(tenant).max_ttl_seconds)
        begun = time.monotonic()
        with self._admission.creating(tenant):
            try:
                async with asyncio.timeout(LONGEST_SECONDS), contextlib.aclosing(self.shelf.reading(kept)) as pieces:
                    first = await anext(pieces, b"")  # it is checked before anything is started
                    await self.at("checked")
                    self._ledger.sandbox_coming_back(sandbox_id)
                    await self._started(tenant, row, ttl, kept.begins)
                    await self.at("started")
                    stream = Collector(0)
                    await self._sandboxes.open_now(tenant, sandbox_id, stream, {"op": "unpack"})
                    sent = await stream.send(first)
                    async for piece in pieces:
                        sent = sent and await stream.send(piece)
                    await self.at("sent")
                    if sent:
                        stream.eof()
                    await self._sandboxes.answered(tenant, sandbox_id, stream)
                await self.at("put back")
                running = await self._alive(tenant, row, ttl)
                await self.at("alive")
                if not await self._store.sandbox_unpaused(tenant, running):
                    raise Conflict("the sandbox was stopped meanwhile", code="sandbox_ended")
            except BaseException as error:
                await self._sandboxes.discard(tenant, sandbox_id, "it could not be resumed")
                if isinstance(error, TimeoutError):
                    raise PlatformFault("the sandbox's files were not put back in time", code="resume_slow") from None
                raise
            await self.at("recorded as running")
            self._turns.woke(sandbox_id)
            self._ledger.sandbox_resumed(tenant, running)
        self._sandboxes.forget_oom_kills(sandbox_id)
        self._feed.add(
            tenant, "sandbox.resumed", sandbox=sandbox_id, kept="files", seconds=round(time.monotonic() - begun, 3)
        )
        await self.shelf.remove(sandbox_id)
        await self.at("removed")
        return running

    async def _started(self, tenant: str, row: wire.Sandbox, ttl: float, begins: bytes) -> None:
        names = [name for name in row.secrets if self._secrets.kept(tenant, [name])]  # as in one that lived on
        sealed = self._secrets.kept(tenant, names)
        header = {
            "verb": "restore",
            "id": row.id,
            "tenant": tenant,
            "template": row.template,
            "template_digest": row.template_digest,
            "created_at": row.created_at,
            "limits": row.limits or Limits(),
            "labels": row.labels,
            "isolation": self._sandboxes.policy.isolation(row.runtime or "auto"),
            "ttl_seconds": ttl + LONGEST_SECONDS,  # it lives from when its files are back
            "on_timeout": row.on_timeout,
            "wake": row.wake,
            "egress": row.egress or "none",
            **self._way_out(tenant, row),
            **await self._secrets.granted(tenant, names, None),
        }
        await self._node.call(header, SandboxEnd, begins)
        if sealed != self._secrets.kept(tenant, names):
            raise Conflict(
                "one of its secrets was changed while it was resumed", code="secret_changed", remediation="ask again"
            )

    def _way_out(self, tenant: str, row: wire.Sandbox) -> dict[str, str]:
        """The gateway it left by; a tenant that was pinned to another since is refused, never led around it."""
        if self._sandboxes.policy.ceiling(tenant).egress_gateway:
            return self._sandboxes.policy.gateway(tenant, row.egress_gateway)
        return {"egress_gateway": row.egress_gateway} if row.egress_gateway else {}

    async def _alive(self, tenant: str, row: wire.Sandbox, ttl: float) -> wire.Sandbox:
        """Its time begins, and so does the program it begins with."""
        header = {"verb": "wake", "tenant": tenant, "sandbox": row.id, "ttl_seconds": ttl}
        answer = await self._node.ask(header, SandboxEnd)
        if answer.sandbox is None:
            raise SandboxLost("the node gave no sandbox")
        return answer.sandbox.public(row.timings)

    # --- ending ---

    async def remove(
        self, tenant: str, sandbox_id: str, reason: str = "stopped by its owner", how: How = How.STOPPED
    ) -> wire.Sandbox:
        """End a paused sandbox: nothing is kept of it."""
        return await self._turns.take(
            tenant, sandbox_id, REMOVING, lambda: self._remove(tenant, sandbox_id, reason, how)
        )

    async def _remove(self, tenant: str, sandbox_id: str, reason: str, how: How) -> wire.Sandbox:
        row = await self._sandboxes.get(tenant, sandbox_id)
        ended = msgspec.structs.replace(row, state=State.STOPPED, exit=wire.Exit(how=how, reason=reason))
        return await self._finished(tenant, ended)

    async def _finished(self, tenant: str, row: wire.Sandbox) -> wire.Sandbox:
        ended = msgspec.structs.replace(row, ended_at=time.time(), paused=None)
        if await self._store.sandbox_unpaused(tenant, ended):
            self._ledger.gone(ended.id)
            self._feed.add(tenant, f"sandbox.{ended.state.value}", sandbox=ended.id, **_why(ended))
        self._turns.woke(ended.id)
        await self.shelf.remove(ended.id)
        return ended

    async def tidy(self) -> None:
        """End what was paused for longer than it is kept, and what no key can resume any more."""
        if self._vault is None:
            return
        now = time.time()
        for kept in self._vault.rows():
            keyless = self._store.keyless_since(kept.tenant)
            if kept.expires <= now:
                reason = "it was paused for longer than paused sandboxes are kept"
            elif keyless is not None and keyless + KEYLESS_SECONDS <= now:
                reason = "its tenant has had no valid key for a week"
            else:
                continue
            with contextlib.suppress(Conflict):  # it is being resumed
                await self.remove(kept.tenant, kept.sandbox, reason, How.TIMED_OUT)

    # --- instead of ending ---

    def _time_over(self, tenant: str, sandbox_id: str) -> None:
        """A sandbox's time is over, and it wants to be paused: the node waits a little for that."""
        if sandbox_id not in self._expiring and self._vault is not None:
            task = asyncio.get_running_loop().create_task(self._pause_expired(tenant, sandbox_id))
            self._expiring[sandbox_id] = task
            task.add_done_callback(lambda _: self._expiring.pop(sandbox_id, None))

    async def _pause_expired(self, tenant: str, sandbox_id: str) -> None:
        for _ in range(TRIES):
            try:
                await self.pause(tenant, sandbox_id, reason="its time to live was over", expired=True)
                return
            except (OverQuota, PlatformFault) as error:
                self._feed.add(tenant, "sandbox.pause_failed", sandbox=sandbox_id, code=error.code, reason=error.cause)
                await asyncio.sleep(AGAIN_SECONDS)
            except RingfenceError:  # somebody else was quicker: it was extended, stopped, paused
                return


_CODES: Final = {State.RUNNING: "sandbox_running", State.STARTING: "sandbox_running", State.PAUSED: "sandbox_paused"}


async def _soon(stream: Reader) -> tuple[int, bytes] | None:
    """The next of it. Raises TimeoutError after a silence."""
    async with asyncio.timeout(SILENCE_SECONDS):
        return await stream.next()


async def _went_on(_moment: str) -> None:
    return


def _no_least(_: str) -> float:
    return 0.0


def _why(ended: wire.Sandbox) -> dict[str, str]:
    if ended.exit is not None:
        return {"how": ended.exit.how.value, "reason": ended.exit.reason}
    return {"code": ended.error.code if ended.error is not None else "", "reason": "it cannot be resumed"}
