"""/v1/sandboxes/{id}/processes: started, followed, fed, signalled."""

from __future__ import annotations

from typing import Any, Final

from litestar import Response, get, post
from litestar.params import JSONBody

from ringfence import wire
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Flag, Id, Pid, engine_of, tenant_of
from ringfence.api.streaming import Sink, body_chunks, copy_output, ndjson, while_connected
from ringfence.api.strict import RUN_BYTES
from ringfence.engine.processes import LiveProcess

BASE: Final = "/v1/sandboxes/{sandbox_id:str}/processes"


async def _follow(live: LiveProcess, sink: Sink) -> None:
    await sink.line(wire.Line(started=wire.Started(pid=live.pid)))
    await copy_output(live.reader, sink, lambda _: None)
    await sink.line(wire.Line(process=await live.result()))


@post(BASE, opt=KEY, status_code=200, request_max_body_size=RUN_BYTES, tags=["processes"])
async def start_process(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.ProcessRequest]) -> wire.ProcessResult:
    """Start a process: answered with its result, line by line with `stream`, or at once (202) with `detach`.

    A client that disconnects stops its process, unless it was detached.
    """
    engine, tenant = engine_of(request).processes, tenant_of(request)
    if data.stream:

        async def write(sink: Sink) -> None:
            async with engine.following(tenant, sandbox_id, data) as live:
                await _follow(live, sink)

        return ndjson(write)  # type: ignore[return-value]
    if data.detach:
        started = await engine.detached(tenant, sandbox_id, data)
        return Response(started, status_code=202)  # type: ignore[return-value]
    return await while_connected(request.receive, engine.collected(tenant, sandbox_id, data))


@get(BASE, opt=KEY, tags=["processes"])
async def list_processes(request: AnyRequest, sandbox_id: Id) -> wire.ProcessList:
    """Every process started through the API."""
    return wire.ProcessList(processes=await engine_of(request).processes.list(tenant_of(request), sandbox_id))


@get(BASE + "/{pid:int}/output", opt=KEY, tags=["processes"], media_type=wire.NDJSON)
async def follow_process(request: AnyRequest, sandbox_id: Id, pid: Pid) -> wire.Line:
    """What a process wrote lately, then what it writes, line by line, then its end. Leaving leaves it alone."""
    engine, tenant = engine_of(request).processes, tenant_of(request)

    async def write(sink: Sink) -> None:
        async with engine.attached(tenant, sandbox_id, pid) as live:
            await _follow(live, sink)

    return ndjson(write)  # type: ignore[return-value]


@post(BASE + "/{pid:int}/signal", opt=KEY, status_code=204, tags=["processes"])
async def signal_process(request: AnyRequest, sandbox_id: Id, pid: Pid, data: JSONBody[wire.SignalRequest]) -> None:
    """Signal a process and what it started in its own session."""
    await engine_of(request).processes.signal(tenant_of(request), sandbox_id, pid, data.signal)


@post(BASE + "/{pid:int}/resize", opt=KEY, status_code=204, tags=["processes"])
async def resize_process(request: AnyRequest, sandbox_id: Id, pid: Pid, data: JSONBody[wire.PtySize]) -> None:
    """Resize a process's terminal."""
    await engine_of(request).processes.resize(tenant_of(request), sandbox_id, pid, data)


@post(BASE + "/{pid:int}/input", opt=KEY, status_code=204, tags=["processes"])
async def feed_process(request: AnyRequest, sandbox_id: Id, pid: Pid, close: Flag = False) -> None:
    """The raw body becomes input of a process started with `stdin_open`; `close` ends its input after."""
    engine = engine_of(request).processes
    await engine.input(tenant_of(request), sandbox_id, pid, body_chunks(request), close=close)


ROUTES: Final[list[Any]] = [
    start_process,
    list_processes,
    follow_process,
    signal_process,
    resize_process,
    feed_process,
]
