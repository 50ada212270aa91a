"""/v1/sandboxes/{id}/files: contents as raw bytes, names as JSON, changes as events."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

from litestar import delete, get, post, put
from litestar.params import JSONBody, QueryParameter

from ringfence import wire
from ringfence.api.auth import KEY
from ringfence.api.context import AnyRequest, Flag, Id, Path, engine_of, tenant_of
from ringfence.api.streaming import Sink, Streamed, body_chunks, events, with_heartbeat
from ringfence.engine.files import DEEPEST, file_event
from ringfence.guest import frames

BASE: Final = "/v1/sandboxes/{sandbox_id:str}/files"
RAW: Final = "application/octet-stream"
Depth = Annotated[int, QueryParameter(ge=1, le=DEEPEST, description="How many levels.")]


@get(BASE + "/content", opt=KEY, tags=["files"], media_type=RAW)
async def read_file(request: AnyRequest, sandbox_id: Id, path: Path) -> bytes:
    """A file's bytes, always as a download: what a sandbox wrote is never shown as a page of this server."""
    engine, tenant = engine_of(request).files, tenant_of(request)

    async def write(sink: Sink) -> None:
        async with engine.reading(tenant, sandbox_id, path) as live:
            await sink.start()
            async for chunk in live.chunks():
                await sink.write(chunk)

    name = quote(path.rstrip("/").rpartition("/")[2][:200], safe="")
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "content-security-policy": "sandbox; default-src 'none'",
    }
    return Streamed(write, RAW, headers)  # type: ignore[return-value]


@put(BASE + "/content", opt=KEY, status_code=200, tags=["files"], request_max_body_size=None)
async def write_file(request: AnyRequest, sandbox_id: Id, path: Path) -> wire.Written:
    """The raw body becomes the file; its directories are made. Bounded by the sandbox's scratch space."""
    size = await engine_of(request).files.write_stream(tenant_of(request), sandbox_id, path, body_chunks(request))
    return wire.Written(path=path, size=size)


@get(BASE, opt=KEY, tags=["files"])
async def list_files(request: AnyRequest, sandbox_id: Id, path: Path = ".", depth: Depth = 1) -> wire.EntryList:
    """A directory's entries."""
    return await engine_of(request).files.entries(tenant_of(request), sandbox_id, path, depth)


@get(BASE + "/stat", opt=KEY, tags=["files"])
async def stat_file(request: AnyRequest, sandbox_id: Id, path: Path) -> wire.Entry:
    """What a name is; a link is not followed."""
    return await engine_of(request).files.stat(tenant_of(request), sandbox_id, path)


@post(BASE + "/mkdir", opt=KEY, status_code=204, tags=["files"])
async def make_directory(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.MkdirRequest]) -> None:
    """Make a directory."""
    await engine_of(request).files.mkdir(tenant_of(request), sandbox_id, data.path, parents=data.parents)


@post(BASE + "/move", opt=KEY, status_code=204, tags=["files"])
async def move_file(request: AnyRequest, sandbox_id: Id, data: JSONBody[wire.MoveRequest]) -> None:
    """Rename within the sandbox."""
    await engine_of(request).files.move(tenant_of(request), sandbox_id, data.source, data.target)


@delete(BASE, opt=KEY, status_code=204, tags=["files"])
async def remove_file(request: AnyRequest, sandbox_id: Id, path: Path, recursive: Flag = False) -> None:
    """Remove a file, a link, an empty directory, or with `recursive` a whole tree."""
    await engine_of(request).files.remove(tenant_of(request), sandbox_id, path, recursive=recursive)


@get(BASE + "/watch", opt=KEY, tags=["files"], media_type="text/event-stream")
async def watch_files(
    request: AnyRequest,
    sandbox_id: Id,
    path: Path = ".",
    recursive: Flag = False,
) -> wire.FileEvent:
    """Changes below a directory, as server-sent events, until the client leaves."""
    files, tenant = engine_of(request).files, tenant_of(request)

    async def write(sink: Sink) -> None:
        async with files.watching(tenant, sandbox_id, path, recursive=recursive) as live:
            await sink.write(b": watching\n\n")
            while (item := await with_heartbeat(live.reader, sink)) is not None:
                event = file_event(item[1]) if item[0] == frames.CONTROL else None
                if event is not None:
                    await sink.event(event)
            await live.end()

    return events(engine_of(request).stopping, write)  # type: ignore[return-value]


ROUTES: Final[list[Any]] = [
    read_file,
    write_file,
    list_files,
    stat_file,
    make_directory,
    move_file,
    remove_file,
    watch_files,
]
