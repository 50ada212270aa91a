"""/v1/sandboxes: made, looked at, extended, stopped."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Response, delete, get, post, put
from litestar.params import JSONBody, QueryParameter

from ringfence import wire
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Cursor, Id, Labels, Limit, engine_of, tenant_of, wanted
from ringfence.api.runs import claim_of
from ringfence.domain.sandbox import State
from ringfence.engine.engine import Engine

_encode: Final = msgspec.json.Encoder().encode
_id: Final = msgspec.json.Decoder(wire.Sandbox)
States = Annotated[State | None, QueryParameter(name="state", description="Only those in this state.")]


async def _made(engine: Engine, tenant: str, data: JSONBody[wire.SandboxRequest]) -> tuple[int, bytes]:
    return 201, _encode(await engine.sandboxes.create(tenant, data))


@post("/v1/sandboxes", opt=KEY, status_code=201, tags=["sandboxes"])
async def create_sandbox(request: AnyRequest, data: JSONBody[wire.SandboxRequest]) -> wire.Sandbox:
    """Create a sandbox that lives for `ttl_seconds`. Repeating an Idempotency-Key gives the first answer again."""
    engine, tenant = engine_of(request), tenant_of(request)
    claim = await claim_of(request, tenant, "POST /v1/sandboxes")
    if claim is None:
        status, body = await _made(engine, tenant, data)
    else:
        status, body = await engine.idempotency.once(claim, lambda: _made(engine, tenant, data), lambda kept: kept)
    headers = {"location": f"/v1/sandboxes/{_id.decode(body).id}"}
    return Response(body, status_code=status, media_type="application/json", headers=headers)  # type: ignore[return-value]


@get("/v1/sandboxes/{sandbox_id:str}", opt=KEY, tags=["sandboxes"])
async def get_sandbox(request: AnyRequest, sandbox_id: Id) -> wire.Sandbox:
    """A sandbox as it is; after its end, as it ended."""
    return await engine_of(request).sandboxes.get(tenant_of(request), sandbox_id)


@get("/v1/sandboxes", opt=KEY, tags=["sandboxes"])
async def list_sandboxes(
    request: AnyRequest, limit: Limit = 100, cursor: Cursor = None, label: Labels = None, in_state: States = None
) -> wire.SandboxPage:
    """Sandboxes, newest first."""
    query = wanted("s", limit, cursor, label, in_state.value if in_state else None)
    rows = await engine_of(request).sandboxes.page(tenant_of(request), query)
    return wire.SandboxPage(sandboxes=rows[:limit], next_cursor=rows[limit - 1].id if len(rows) > limit else None)


@post("/v1/sandboxes/{sandbox_id:str}/extend", opt=KEY, status_code=200, tags=["sandboxes"])
async def extend_sandbox(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.ExtendRequest]) -> wire.Sandbox:
    """Expire `ttl_seconds` from now instead."""
    return await engine_of(request).sandboxes.extend(tenant_of(request), sandbox_id, data.ttl_seconds)


@put("/v1/sandboxes/{sandbox_id:str}/egress", opt=KEY, status_code=200, tags=["sandboxes"])
async def put_egress(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.EgressRequest]) -> wire.Sandbox:
    """Replace what a sandbox may reach. What is not allowed any more is cut before the answer."""
    return await engine_of(request).sandboxes.allow(tenant_of(request), sandbox_id, data.egress)


@post("/v1/sandboxes/{sandbox_id:str}/reset", opt=KEY, status_code=200, tags=["sandboxes"])
async def reset_sandbox(request: AnyRequest, sandbox_id: Id) -> wire.Sandbox:
    """Make a sandbox anew: its processes and files are gone, what it starts with runs again.

    Its id, labels, limits, expiry, egress policy, published ports and links stay. Requests to it wait meanwhile.
    """
    return await engine_of(request).sandboxes.reset(tenant_of(request), sandbox_id)


@post("/v1/sandboxes/{sandbox_id:str}/pause", opt=KEY, status_code=200, tags=["sandboxes"])
async def pause_sandbox(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.PauseRequest]) -> wire.Sandbox:
    """Keep its files (home, /workspace, /tmp, /var/tmp), end all else of it; answered when they are on disk."""
    return await engine_of(request).pauses.pause(
        tenant_of(request), sandbox_id, memory=data is not None and data.memory
    )


@post("/v1/sandboxes/{sandbox_id:str}/resume", opt=KEY, status_code=200, tags=["sandboxes"])
async def resume_sandbox(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.ResumeRequest]) -> wire.Sandbox:
    """A paused sandbox again, with its files; its time to live starts anew."""
    return await engine_of(request).pauses.resume(tenant_of(request), sandbox_id, data.ttl_seconds)


@delete("/v1/sandboxes/{sandbox_id:str}", opt=KEY, status_code=200, tags=["sandboxes"])
async def stop_sandbox(request: AnyRequest, sandbox_id: Id) -> wire.Sandbox:
    """Stop a sandbox, paused ones too; answered when nothing of it is left. One that ended is shown as it ended."""
    return await engine_of(request).sandboxes.stop(tenant_of(request), sandbox_id)


ROUTES: Final[list[Any]] = [
    create_sandbox, get_sandbox, list_sandboxes, extend_sandbox, put_egress, reset_sandbox, pause_sandbox,
    resume_sandbox, stop_sandbox,
]  # fmt: skip
