"""One-shot runs: a fresh sandbox, one program, its result, and nothing left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import PlatformFault, RingfenceError
from ringfence.domain.limits import Limits
from ringfence.domain.process import How, Timings
from ringfence.domain.sandbox import new_id
from ringfence.engine import checks, output
from ringfence.engine.files import Files
from ringfence.engine.ledger import Ledger, body_of
from ringfence.engine.link import Collector, NodeStream, Reader
from ringfence.engine.policy import Admission
from ringfence.engine.programs import Fate, fate, feed, finished
from ringfence.engine.sandboxes import Sandboxes, run_label
from ringfence.store.base import Filter, Store

CLIENT_GONE: Final = "client_gone"  # the message of a cancellation that a client caused
SPARE_SECONDS: Final = 60.0  # beyond the program's own time: for its files to go in and out
_encode: Final = msgspec.json.Encoder().encode


class Prepared:
    """A checked request, ready to start."""

    __slots__ = ("egress", "limits", "request", "run", "stdin", "tenant", "words")

    def __init__(
        self,
        tenant: str,
        request: wire.RunRequest,
        words: dict[str, Any],
        *,
        limits: Limits,
        egress: dict[str, Any],
    ) -> None:
        self.tenant = tenant
        self.egress = egress
        self.request = request
        self.words = words
        self.limits = limits
        self.stdin = checks.stdin_bytes(request.stdin)
        self.run = wire.Run(
            id=new_id("r"),
            state="running",
            template=request.template,
            created_at=time.time(),
            labels=request.labels,
            limits=limits,
        )

    @property
    def composed(self) -> bool:
        """Whether its sandbox must be furnished before the program, or looked into after it."""
        return bool(self.request.files or self.request.collect or self.request.secrets)


class Runs:
    """A tenant's one-shot runs."""

    def __init__(self, sandboxes: Sandboxes, files: Files, store: Store, ledger: Ledger, admission: Admission) -> None:
        self._sandboxes = sandboxes
        self._files = files
        self._store = store
        self._ledger = ledger
        self._admission = admission
        self._stopping: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Return when no sandbox of an answered run is still being stopped."""
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=5)

    async def _prepare(self, tenant: str, request: wire.RunRequest) -> Prepared:
        """Everything that can be refused is refused here; nothing was started yet."""
        self._sandboxes.accepting()
        if request.labels:
            self._sandboxes.check_labels(request.labels)
        if request.files or request.collect:
            checks.run_files(request)
        catalog = self._sandboxes.catalog
        limits = await catalog.resolve(tenant, request.template, request.isolation, request.limits)
        words = checks.program(request, catalog.image(request.template))
        if request.files or request.collect or request.secrets:
            # The node times a fused run; here its agent does, and the sandbox's own expiry stands behind it.
            words["timeout"] = min(words.get("timeout", limits.wall_seconds), limits.wall_seconds)
        policy = self._sandboxes.policy
        egress = policy.egress(request.egress) | policy.gateway(tenant, request.egress_gateway)
        return Prepared(tenant, request, words, limits=limits, egress=egress)

    # --- in one piece ---

    async def collected(self, tenant: str, request: wire.RunRequest) -> wire.Run:
        """Run to its end and answer in one piece. Cancelled with CLIENT_GONE, the run is stopped and says so."""
        with self._admission.run(tenant):
            prepared = await self._prepare(tenant, request)
            self._ledger.run_started(tenant, prepared.run)
            try:
                run = await (self._composed(prepared) if prepared.composed else self._fused(prepared))
            except BaseException as error:
                self._ledger.run_ended(tenant, _unfinished(prepared.run, error))
                raise
            self._ledger.run_ended(tenant, run)
        return run

    async def _fused(self, prepared: Prepared) -> wire.Run:
        stream = Collector(self._sandboxes.policy.collected_bytes)
        await self._start(prepared, stream, quiet=True)
        ended = fate(await finished(stream, prepared.stdin))
        return _finished(prepared.run, ended, stream)

    async def _start(self, prepared: Prepared, stream: NodeStream, *, quiet: bool = False) -> None:
        """The node's one verb for claim, run and stop."""
        node = self._sandboxes.node
        if not node.connected:
            await node.wait_up()
        words = prepared.words
        lone = words["op"] == "run" and "stdin" not in words and words.get("user", "user") == "user"
        header = {
            "verb": "run",
            "tenant": prepared.tenant,
            "template": prepared.request.template,
            "limits": prepared.limits,
            "labels": prepared.request.labels | run_label(prepared.run.id),
            "isolation": prepared.request.isolation,
            "run_id": prepared.run.id,
            "quiet": quiet,
            "lone": lone,  # source code, and nothing that only an agent could do for it
            "wait_seconds": self._sandboxes.policy.wait_seconds,
            **prepared.egress,
        }
        if lone and "timeout" in words:
            header["timeout"] = words.pop("timeout")
        node.open(stream, header, _encode(words))

    async def _composed(self, prepared: Prepared) -> wire.Run:
        """With files in or out: create, write, run, read, stop."""
        async with self._own_sandbox(prepared) as (sandbox_id, timings):
            await self._files_in(prepared, sandbox_id)
            stream = Collector(self._sandboxes.policy.collected_bytes)
            await self._sandboxes.open(prepared.tenant, sandbox_id, stream, prepared.words, program=True)
            ended = fate(await finished(stream, prepared.stdin))
            began = time.monotonic()
            collected = await self._files_out(prepared, sandbox_id)
            run = _finished(prepared.run, ended, stream, sandbox_id)
            spent = (time.monotonic() - began) * 1000
            return msgspec.structs.replace(run, files=collected, timings=_added(timings, run.timings, spent))

    @asynccontextmanager
    async def _own_sandbox(self, prepared: Prepared) -> AsyncIterator[tuple[str, Timings | None]]:
        """A sandbox of this run's own, stopped beside the answer."""
        request, limits = prepared.request, prepared.limits
        labels = request.labels | run_label(prepared.run.id)
        ttl = limits.wall_seconds + SPARE_SECONDS
        made, answer = await self._sandboxes.make(prepared.tenant, request, limits, labels=labels, ttl=ttl)
        try:
            yield made.id, answer.timings
        finally:
            stopping = self._sandboxes.discard(prepared.tenant, made.id, "its one run is over")
            task = asyncio.get_running_loop().create_task(stopping)
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _files_in(self, prepared: Prepared, sandbox_id: str) -> None:
        for name, content in prepared.request.files.items():
            data = checks.stdin_bytes(content) or b""
            await self._files.write(prepared.tenant, sandbox_id, name, data)

    async def _files_out(self, prepared: Prepared, sandbox_id: str) -> dict[str, wire.Collected]:
        left = self._sandboxes.policy.collected_bytes
        found: dict[str, wire.Collected] = {}
        for name in prepared.request.collect:
            try:
                data = await self._files.read_whole(prepared.tenant, sandbox_id, name, left)
            except RingfenceError as error:
                found[name] = wire.Collected(error=body_of(error))
                continue
            left -= len(data)
            found[name] = wire.Collected(base64=data, size=len(data))
        return found

    # --- line by line ---

    @asynccontextmanager
    async def streamed(self, tenant: str, request: wire.RunRequest) -> AsyncIterator[LiveRun]:
        """Run while its output is read from the LiveRun. Leaving early stops the run."""
        with self._admission.run(tenant):
            prepared = await self._prepare(tenant, request)
            self._ledger.run_started(tenant, prepared.run)
            live = LiveRun(prepared)
            failure: BaseException = asyncio.CancelledError(CLIENT_GONE)
            try:
                async with self._opened(prepared, live):
                    yield live
            except BaseException as error:
                failure = error
                raise
            finally:
                self._ledger.run_ended(tenant, live.result or _unfinished(prepared.run, failure))

    @asynccontextmanager
    async def _opened(self, prepared: Prepared, live: LiveRun) -> AsyncIterator[None]:
        if not prepared.composed:
            await self._start(prepared, live.reader)
            async with live.fed(prepared.stdin):
                yield
            return
        async with self._own_sandbox(prepared) as (sandbox_id, timings):
            await self._files_in(prepared, sandbox_id)
            live.sandbox, live.before = sandbox_id, timings
            live.after = lambda: self._files_out(prepared, sandbox_id)
            await self._sandboxes.open(prepared.tenant, sandbox_id, live.reader, prepared.words, program=True)
            async with live.fed(prepared.stdin):
                yield

    # --- records ---

    async def get(self, tenant: str, run_id: str) -> wire.Run:
        """A run's record, without output. Raises NotFound."""
        checks.identifier(run_id, "r")
        await self._store.flush()
        found = self._store.run(tenant, run_id)
        if found is None:
            raise checks.missing(run_id, "r")
        return found

    async def page(self, tenant: str, wanted: Filter) -> list[wire.Run]:
        """A tenant's records, newest first."""
        await self._store.flush()
        return self._store.runs(tenant, wanted)


class LiveRun:
    """A run under way, its output read frame by frame."""

    def __init__(self, prepared: Prepared) -> None:
        self.id = prepared.run.id
        self.reader = Reader()
        self.sandbox: str | None = None
        self.before: Timings | None = None
        self.after: Any = None
        self.result: wire.Run | None = None
        self._run = prepared.run

    @asynccontextmanager
    async def fed(self, stdin: bytes | None) -> AsyncIterator[None]:
        """Feed its input beside whatever the caller does; cancel the stream when the caller leaves."""
        feeding = asyncio.get_running_loop().create_task(feed(self.reader, stdin)) if stdin is not None else None
        try:
            yield
        finally:
            if feeding is not None:
                feeding.cancel()
            self.reader.cancel()

    async def finish(self) -> wire.Run:
        """The result, once all output was taken. Raises what node or agent raised."""
        ended = fate(await self.reader.ended)
        run = _ended(self._run, ended, self.sandbox)
        if self.after is not None:
            began = time.monotonic()
            files = await self.after()
            spent = (time.monotonic() - began) * 1000
            run = msgspec.structs.replace(run, files=files, timings=_added(self.before, run.timings, spent))
        self.result = run
        return run


def _ended(run: wire.Run, ended: Fate, sandbox: str | None = None) -> wire.Run:
    return msgspec.structs.replace(
        run,
        state="finished",
        sandbox=sandbox or ended.sandbox,
        finished_at=time.time(),
        exit=ended.exit,
        usage=ended.usage,
        timings=ended.timings,
        truncated=ended.exit.how is How.OUTPUT_CAPPED,
    )


def _finished(run: wire.Run, ended: Fate, stream: Collector, sandbox: str | None = None) -> wire.Run:
    truncated = stream.truncated or ended.exit.how is How.OUTPUT_CAPPED
    texts = output.fields(stream.out, stream.err, truncated=truncated)
    return msgspec.structs.replace(_ended(run, ended, sandbox), truncated=truncated, **texts)


def _unfinished(run: wire.Run, error: BaseException) -> wire.Run:
    """The record of a run that did not end by itself: stopped by its client, or failed by us."""
    now = time.time()
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        if error.args[:1] == (CLIENT_GONE,) or isinstance(error, GeneratorExit):
            gone = wire.Exit(how=How.STOPPED, reason="the client disconnected")
            return msgspec.structs.replace(run, state="finished", exit=gone, finished_at=now)
        cause = PlatformFault("the server stopped while this ran", code="api_stopping", remediation="run it again")
        return msgspec.structs.replace(run, state="failed", error=body_of(cause), finished_at=now)
    known = error if isinstance(error, RingfenceError) else PlatformFault("an internal error", code="internal")
    return msgspec.structs.replace(run, state="failed", error=body_of(known), finished_at=now)


def _added(before: Timings | None, during: Timings | None, collect: float) -> Timings:
    before, during = before or Timings(), during or Timings()
    return Timings(
        queue=before.queue + during.queue,
        claim=before.claim + during.claim,
        start=during.start,
        run=during.run,
        collect=during.collect + collect,
    )
