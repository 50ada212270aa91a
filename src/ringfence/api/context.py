"""What handlers share: the engine, who is asking, and how lists are asked for."""

from __future__ import annotations

from typing import Annotated, Any, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.params import FromPath, PathParameter, QueryParameter

from ringfence.api.auth import Caller
from ringfence.domain.errors import BadRequest
from ringfence.engine import checks
from ringfence.engine.engine import Engine
from ringfence.store.base import Filter

AnyRequest = Request[Any, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="How many at most.")]
Cursor = Annotated[str | None, QueryParameter(description="`next_cursor` of the page before.")]
Labels = Annotated[list[str] | None, QueryParameter(name="label", description="`name=value`; repeat it to narrow.")]
Path = Annotated[str, QueryParameter(description="A path inside the sandbox; relative ones start at /home/user.")]
Pid = Annotated[int, PathParameter(ge=1, le=2**31 - 1)]
Flag = Annotated[bool, QueryParameter()]
Id = FromPath[str]


def engine_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Engine:
    """The one engine of this process."""
    return cast("Engine", connection.app.state.engine)


def tenant_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Whose key was accepted."""
    caller: Caller = connection.scope["user"]
    return caller.tenant


def wanted(kind: str, limit: int, cursor: str | None, labels: list[str] | None, state: str | None = None) -> Filter:
    """A list's query, checked. One more row than asked for tells whether there is another page."""
    if cursor is not None:
        try:
            checks.identifier(cursor, kind)
        except Exception:  # noqa: BLE001 - whatever it is, it is not a cursor of ours
            raise BadRequest("cursor is not one of ours", code="bad_cursor") from None
    return Filter(limit=limit + 1, cursor=cursor, labels=checks.label_filter(labels or []), state=state)
