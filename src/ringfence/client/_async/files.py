"""A sandbox's files. Paths are inside the sandbox; a relative one starts at its home directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import IO, Self

from ringfence import wire
from ringfence.client import calls, transfer
from ringfence.client._async.client import AsyncClient
from ringfence.client._async.transport import AsyncBody
from ringfence.client.calls import decoded
from ringfence.client.deadline import Deadline
from ringfence.client.lines import ServerEvents
from ringfence.client.results import event_of
from ringfence.client.transfer import Local


class AsyncWatch:
    """Changes under a directory as they happen; iterate, and leave the `with` to stop watching."""

    def __init__(self, body: AsyncBody) -> None:
        self._body = body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop watching; closing twice does nothing."""
        await self._body.aclose()

    async def __aiter__(self) -> AsyncIterator[wire.FileEvent]:
        parser = ServerEvents()
        async for piece in self._body.pieces():
            for event in parser.feed(piece):
                yield event_of(wire.FileEvent, event)


class AsyncFiles:
    """Files of one sandbox. Each call raises NotFound, Conflict or BadRequest as the sandbox answers."""

    def __init__(self, client: AsyncClient, sandbox: str) -> None:
        self.client = client
        self.sandbox = sandbox

    async def read(self, path: str, *, deadline: float | None = None) -> bytes:
        """A file's bytes, all at once; see `download` and `read_pieces` for large ones."""
        return await self._call(calls.read_file(self.sandbox, path), deadline)

    async def read_text(self, path: str, *, encoding: str = "utf-8", deadline: float | None = None) -> str:
        """A file's text."""
        return (await self.read(path, deadline=deadline)).decode(encoding)

    async def read_pieces(self, path: str, *, deadline: float | None = None) -> AsyncIterator[bytes]:
        """A file's bytes piece by piece, as fast as they are taken; `deadline` bounds the whole of it."""
        call = calls.read_file(self.sandbox, path)
        async with await self.client.transport.open(call, Deadline(deadline)) as body:
            async for piece in body.pieces():
                yield piece

    async def write(self, path: str, data: str | bytes, *, deadline: float | None = None) -> wire.Written:
        """Write a file, replacing what was there; missing directories are made."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        return decoded(wire.Written, await self._call(calls.write_file(self.sandbox, path, raw), deadline))

    async def upload(self, local: Local, path: str, *, deadline: float | None = None) -> wire.Written:
        """Stream a local file (a path, or a file open for reading bytes) into the sandbox."""
        call = calls.write_file(self.sandbox, path, None)
        with transfer.source(local) as file:
            body = await self.client.transport.send(call, _pieces(file), Deadline(deadline))
        return decoded(wire.Written, body)

    async def download(self, path: str, local: Local, *, deadline: float | None = None) -> int:
        """Stream a file out to a local path (whole or not at all) or an open file; return how many bytes."""
        size = 0
        call = calls.read_file(self.sandbox, path)
        async with await self.client.transport.open(call, Deadline(deadline)) as body:
            with transfer.target(local) as file:
                async for piece in body.pieces():
                    size += file.write(piece)
        return size

    async def list(self, path: str = ".", *, depth: int = 1, deadline: float | None = None) -> wire.EntryList:
        """A directory's entries, down to `depth`; `.truncated` says that there are more."""
        return await self.client.fetch(wire.EntryList, calls.list_files(self.sandbox, path, depth), deadline)

    async def stat(self, path: str, *, deadline: float | None = None) -> wire.Entry:
        """What a name is. A symbolic link is described, not followed."""
        return await self.client.fetch(wire.Entry, calls.stat_file(self.sandbox, path), deadline)

    async def mkdir(self, path: str, *, parents: bool = True, deadline: float | None = None) -> None:
        """Make a directory."""
        await self._call(calls.make_directory(self.sandbox, path, parents=parents), deadline)

    async def move(self, source: str, target: str, *, deadline: float | None = None) -> None:
        """Rename a file or a directory within the sandbox."""
        await self._call(calls.move_file(self.sandbox, source, target), deadline)

    async def remove(self, path: str, *, recursive: bool = False, deadline: float | None = None) -> None:
        """Remove a file, or with `recursive` a directory and everything in it."""
        await self._call(calls.remove_file(self.sandbox, path, recursive=recursive), deadline)

    async def watch(self, path: str = ".", *, recursive: bool = False) -> AsyncWatch:
        """Watch a directory; what happens after this call returned is seen.

        async with await sb.files.watch("results") as changes:
            async for change in changes:
                print(change.type, change.path)
        """
        call = calls.watch_files(self.sandbox, path, recursive=recursive)
        return AsyncWatch(await self.client.transport.open(call, Deadline(None)))

    async def _call(self, call: calls.Call, deadline: float | None) -> bytes:
        return await self.client.transport.call(call, self.client.transport.deadline(deadline))


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    for piece in transfer.pieces(file):
        yield piece
