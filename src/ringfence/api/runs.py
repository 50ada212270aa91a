"""/v1/runs: one program, a fresh sandbox, its result."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from litestar import get, post
from litestar.params import JSONBody

from ringfence import wire
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Cursor, Id, Labels, Limit, engine_of, tenant_of, wanted
from ringfence.api.streaming import Encoded, Sink, Streamed, copy_output, ndjson, while_connected
from ringfence.api.strict import RUN_BYTES
from ringfence.engine.engine import Engine
from ringfence.engine.idempotency import checked
from ringfence.engine.processes import started_pid
from ringfence.store.base import Claim

_encode: Final = msgspec.json.Encoder().encode
_run: Final = msgspec.json.Decoder(wire.Run)


async def claim_of(request: AnyRequest, tenant: str, route: str) -> Claim | None:
    """The idempotency key this request carries, bound to its route and body."""
    key = request.headers.get(wire.IDEMPOTENCY_HEADER)
    if key is None:
        return None
    return Claim(tenant, route, checked(key), hashlib.sha256(await request.body()).digest())


def _brief(body: bytes) -> bytes:
    """An answer too large to keep for repeats: the record, without its output."""
    run = _run.decode(body)
    bare: dict[str, Any] = {"stdout": None, "stderr": None, "stdout_base64": None, "stderr_base64": None, "files": {}}
    return _encode(msgspec.structs.replace(run, truncated=True, **bare))


@post("/v1/runs", opt=KEY, status_code=200, request_max_body_size=RUN_BYTES, tags=["runs"])
async def create_run(request: AnyRequest, data: JSONBody[wire.RunRequest]) -> wire.Run:
    """Run a program in a fresh sandbox and answer with its result, or line by line with `stream`.

    A client that disconnects stops the run. Repeating an Idempotency-Key gives the first answer again.
    """
    engine, tenant = engine_of(request), tenant_of(request)
    claim = await claim_of(request, tenant, "POST /v1/runs")
    if data.stream:
        return _streamed(engine, tenant, data, claim)  # type: ignore[return-value]
    work = engine.runs.collected(tenant, data)
    if claim is None:
        run = await while_connected(request.receive, work)
        return Encoded(_encode(run))  # type: ignore[return-value]

    async def once() -> tuple[int, bytes]:
        return 200, _encode(await work)

    try:
        answer = engine.idempotency.once(claim, once, _brief)
        status, body = await while_connected(request.receive, answer)
    finally:
        work.close()
    return Encoded(body, status)  # type: ignore[return-value]


def _streamed(engine: Engine, tenant: str, data: wire.RunRequest, claim: Claim | None) -> Streamed:
    async def live(sink: Sink) -> bytes:
        async with engine.runs.streamed(tenant, data) as run:
            await run.reader.first(None)
            if run.reader.empty:
                await run.finish()  # raises what went wrong, while the status can still say so
            await copy_output(run.reader, sink, lambda payload: _started(run.id, run.sandbox, payload))
            result = await run.finish()
            await sink.line(wire.Line(run=result))
        return _encode(result)

    async def write(sink: Sink) -> None:
        if claim is None:
            await live(sink)
            return

        async def once() -> tuple[int, bytes]:
            return 200, await live(sink)

        _, body = await engine.idempotency.once(claim, once, _brief)
        if not sink.started:  # a repeat: the record is all that is left of the stream
            await sink.line(wire.Line(run=_run.decode(body)))

    return ndjson(write)


def _started(run_id: str, sandbox: str | None, payload: bytes) -> wire.Line | None:
    pid = started_pid(payload)
    return wire.Line(started=wire.Started(id=run_id, sandbox=sandbox, pid=pid)) if pid else None


@get("/v1/runs/{run_id:str}", opt=KEY, tags=["runs"])
async def get_run(request: AnyRequest, run_id: Id) -> wire.Run:
    """A run's record; its output is not kept."""
    return await engine_of(request).runs.get(tenant_of(request), run_id)


@get("/v1/runs", opt=KEY, tags=["runs"])
async def list_runs(
    request: AnyRequest, limit: Limit = 100, cursor: Cursor = None, label: Labels = None
) -> wire.RunPage:
    """Runs, newest first."""
    rows = await engine_of(request).runs.page(tenant_of(request), wanted("r", limit, cursor, label))
    return wire.RunPage(runs=rows[:limit], next_cursor=rows[limit - 1].id if len(rows) > limit else None)


ROUTES: Final[list[Any]] = [create_run, get_run, list_runs]
