"""What the machine offers, what happened, and why: templates, runtimes, status, events, why, health."""

from __future__ import annotations

from typing import Annotated, Any, Final

from litestar import get
from litestar.params import QueryParameter

from ringfence import wire
from ringfence.api.auth import KEY, OPEN
from ringfence.api.context import AnyRequest, Id, engine_of, tenant_of
from ringfence.api.streaming import HEARTBEAT_SECONDS, Sink, events
from ringfence.domain.errors import BadRequest

After = Annotated[
    int | None, QueryParameter(ge=0, le=2**63 - 1, description="Only events with a larger id; default: from now on.")
]


@get("/v1/templates", opt=KEY, tags=["machine"])
async def list_templates(request: AnyRequest) -> wire.TemplateList:
    """Every built template."""
    return wire.TemplateList(templates=await engine_of(request).catalog.templates(tenant_of(request)))


@get("/v1/runtimes", opt=KEY, tags=["machine"])
async def list_runtimes(request: AnyRequest) -> wire.RuntimeList:
    """Every runtime of this machine, and which of its walls are in force."""
    return wire.RuntimeList(runtimes=await engine_of(request).catalog.runtimes())


@get("/v1/status", opt=KEY, tags=["machine"])
async def get_status(request: AnyRequest) -> wire.Status:
    """How the server is, as this tenant may know it."""
    return await engine_of(request).status(tenant_of(request), request.app.state.version)


@get("/v1/why/{subject:str}", opt=KEY, tags=["machine"])
async def get_why(request: AnyRequest, subject: Id) -> wire.Why:
    """Why a run or a sandbox ended as it did, and where its time went, in plain words."""
    return await engine_of(request).why(tenant_of(request), subject)


def _last_event_id(request: AnyRequest) -> int | None:
    text = request.headers.get("last-event-id")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest("Last-Event-ID is not one of ours", code="bad_cursor")
    return int(text)


@get("/v1/events", opt=KEY, tags=["machine"], media_type="text/event-stream")
async def follow_events(request: AnyRequest, after: After = None) -> wire.Event:
    """What happens to this tenant's sandboxes and runs, as server-sent events; Last-Event-ID resumes."""
    feed, tenant = engine_of(request).feed, tenant_of(request)
    seen = _last_event_id(request)
    cursor = seen if seen is not None else after if after is not None else feed.last(tenant)

    async def write(sink: Sink) -> None:
        nonlocal cursor
        await sink.write(b": following\n\n")
        while True:
            found = await feed.after(tenant, cursor, HEARTBEAT_SECONDS)
            for event in found:
                await sink.event(event, name=event.type, cursor=event.id)
                cursor = event.id
            if not found:
                await sink.write(b": alive\n\n")

    return events(engine_of(request).stopping, write)  # type: ignore[return-value]


@get("/health", opt=OPEN, tags=["machine"])
async def health() -> dict[str, str]:
    """Whether anybody is there; says nothing else."""
    return {"status": "ok"}


ROUTES: Final[list[Any]] = [
    list_templates,
    list_runtimes,
    get_status,
    get_why,
    follow_events,
    health,
]
