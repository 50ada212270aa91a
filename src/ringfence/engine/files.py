"""Files of a sandbox. Every path is resolved inside it, by its own agent, as its own user or as its root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from ringfence import wire
from ringfence.domain.errors import RingfenceError, SandboxLost, TooLarge
from ringfence.engine import checks
from ringfence.engine.answers import GuestEnd, guest_control
from ringfence.engine.link import Collector, NodeStream, Reader
from ringfence.engine.programs import read
from ringfence.engine.sandboxes import Sandboxes, answering
from ringfence.guest import frames

DEEPEST: Final = 64


class LiveStream:
    """An open guest stream that is neither program nor plain question: a file read, a watch, a tunnel."""

    def __init__(self, sandboxes: Sandboxes, tenant: str, sandbox_id: str) -> None:
        self.reader = Reader()
        self._sandboxes = sandboxes
        self._tenant = tenant
        self._sandbox_id = sandbox_id

    async def begun(self) -> None:
        """Return once there is something to hand on. Raises what node or agent raised instead."""
        async with answering():
            await self.reader.first(None)
        if self.reader.empty:
            await self.end()

    async def end(self) -> GuestEnd:
        """The agent's last words. Raises what node or agent raised."""
        try:
            return read(await self.reader.ended)[1]
        except RingfenceError as error:
            raise await self._sandboxes.explained(self._tenant, self._sandbox_id, error) from None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The raw bytes, to the end. Raises what broke it off."""
        while (item := await self.reader.next()) is not None:
            if item[0] == frames.STDOUT:
                yield item[1]
        await self.end()


class Files:
    """What can be done with files in a living sandbox. All raise NotFound, Conflict, Forbidden or BadRequest."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    # --- contents ---

    async def write(self, tenant: str, sandbox_id: str, path: str, data: bytes) -> int:
        """Replace a file's contents; returns the size."""
        stream = Collector(0)
        await self._open_write(tenant, sandbox_id, path, stream)
        return (await self._sandboxes.answered(tenant, sandbox_id, stream, data)).size

    async def write_stream(
        self,
        tenant: str,
        sandbox_id: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        in_place: bool = False,
        user: str = "",
    ) -> int:
        """Replace a file's contents by a stream's; returns the size.

        A stream that raises leaves what stood there before. With `in_place` the file stays the same one and a link is
        written through, as a program would; then a stream that raises leaves what came of it, or no new file.
        """
        stream = Collector(0)
        await self._open_write(
            tenant, sandbox_id, path, stream, **_as(user), **({"in_place": True} if in_place else {})
        )
        try:
            async for chunk in chunks:
                if not await stream.send(chunk):
                    break
            else:
                stream.eof()
            return (await self._sandboxes.answered(tenant, sandbox_id, stream)).size
        finally:
            stream.cancel()

    async def _open_write(self, tenant: str, sandbox_id: str, path: str, stream: NodeStream, **more: Any) -> None:
        words = {"op": "write", "path": checks.path(path), "parents": True, **more}
        await self._sandboxes.open(tenant, sandbox_id, stream, words)

    async def read_whole(self, tenant: str, sandbox_id: str, path: str, most: int) -> bytes:
        """A file's contents, at most so many bytes. Raises TooLarge past them."""
        stream = Collector(most)
        await self._sandboxes.open(tenant, sandbox_id, stream, {"op": "read", "path": checks.path(path)})
        await self._sandboxes.answered(tenant, sandbox_id, stream)
        if stream.truncated:
            raise TooLarge("the file is larger than what a run may collect", code="collect_too_large")
        return bytes(stream.out)

    @asynccontextmanager
    async def reading(
        self, tenant: str, sandbox_id: str, path: str, *, offset: int = 0, length: int | None = None, user: str = ""
    ) -> AsyncIterator[LiveStream]:
        """A file's contents, as they come: from `offset`, `length` bytes at most."""
        part = {"offset": offset, "length": length} if offset or length is not None else {}
        words = {"op": "read", "path": checks.path(path), **part, **_as(user)}
        async with self._live(tenant, sandbox_id, words) as live:
            yield live

    @asynccontextmanager
    async def _live(self, tenant: str, sandbox_id: str, words: dict[str, Any]) -> AsyncIterator[LiveStream]:
        live = LiveStream(self._sandboxes, tenant, sandbox_id)
        await self._sandboxes.open(tenant, sandbox_id, live.reader, words)
        try:
            await live.begun()
            yield live
        finally:
            live.reader.cancel()

    # --- names ---

    async def stat(
        self, tenant: str, sandbox_id: str, path: str, *, follow: bool = False, user: str = ""
    ) -> wire.Entry:
        """One entry; a link is not followed unless `follow`: then its target is told, under the link's own name."""
        words = {"op": "stat", "path": checks.path(path), **_following(follow), **_as(user)}
        end = await self._sandboxes.ask(tenant, sandbox_id, words)
        if end.entry is None:
            raise SandboxLost("the sandbox's agent broke the protocol")
        return end.entry

    async def entries(
        self, tenant: str, sandbox_id: str, path: str, depth: int, *, follow: bool = False, user: str = ""
    ) -> wire.EntryList:
        """A directory's entries, some levels deep; `follow` as for stat()."""
        depth = max(1, min(depth, DEEPEST))
        words = {"op": "ls", "path": checks.path(path), "depth": depth, **_following(follow), **_as(user)}
        end = await self._sandboxes.ask(tenant, sandbox_id, words)
        return wire.EntryList(entries=end.entries, truncated=end.truncated)

    async def mkdir(self, tenant: str, sandbox_id: str, path: str, *, parents: bool, user: str = "") -> None:
        """Make a directory."""
        words = {"op": "mkdir", "path": checks.path(path), "parents": parents, **_as(user)}
        await self._sandboxes.ask(tenant, sandbox_id, words)

    async def move(self, tenant: str, sandbox_id: str, source: str, target: str, *, user: str = "") -> None:
        """Rename."""
        places = {"source": checks.path(source, "source"), "target": checks.path(target, "target")}
        await self._sandboxes.ask(tenant, sandbox_id, {"op": "move", **places, **_as(user)})

    async def remove(self, tenant: str, sandbox_id: str, path: str, *, recursive: bool, user: str = "") -> None:
        """Remove a file, a link, an empty directory, or a whole tree."""
        words = {"op": "remove", "path": checks.path(path), "recursive": recursive, **_as(user)}
        await self._sandboxes.ask(tenant, sandbox_id, words)

    async def used(self, tenant: str, sandbox_id: str) -> int:
        """Bytes of its scratch that are in use."""
        return (await self._sandboxes.ask(tenant, sandbox_id, {"op": "used"})).size

    # --- live ---

    @asynccontextmanager
    async def watching(
        self, tenant: str, sandbox_id: str, path: str, *, recursive: bool, user: str = ""
    ) -> AsyncIterator[LiveStream]:
        """Changes below a directory, as they happen."""
        words = {"op": "watch", "path": checks.path(path), "recursive": recursive, **_as(user)}
        async with self._live(tenant, sandbox_id, words) as live:
            yield live

    @asynccontextmanager
    async def tunnel(self, tenant: str, sandbox_id: str, port: int) -> AsyncIterator[LiveStream]:
        """Both directions of a TCP connection to a port inside."""
        async with self._live(tenant, sandbox_id, {"op": "tunnel", "port": port}) as live:
            yield live


def _as(user: str) -> dict[str, Any]:
    """The words for doing it as another user than the sandbox's own."""
    return {"user": user} if user and user != "user" else {}


def _following(follow: bool) -> dict[str, Any]:
    return {"follow": True} if follow else {}


def file_event(payload: bytes) -> wire.FileEvent | None:
    """The change a watch's message tells of; None for other messages. Raises SandboxLost for a lie."""
    return guest_control(payload).event
