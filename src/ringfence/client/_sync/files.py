# Generated from client/_async/files.py by tools/unasync.py: edit that file, not this one.
# ruff: noqa: SIM117, UP028 - these advise shapes that the asynchronous source cannot have
"""A sandbox's files. Paths are inside the sandbox; a relative one starts at its home directory."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

from ringfence import wire
from ringfence.client import calls, transfer
from ringfence.client._sync.client import Client
from ringfence.client._sync.transport import Body
from ringfence.client.calls import decoded
from ringfence.client.deadline import Deadline
from ringfence.client.lines import ServerEvents
from ringfence.client.results import event_of
from ringfence.client.transfer import Local


class Watch:
    """Changes under a directory as they happen; iterate, and leave the `with` to stop watching."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; closing twice does nothing."""
        self._body.close()

    def __iter__(self) -> Iterator[wire.FileEvent]:
        parser = ServerEvents()
        for piece in self._body.pieces():
            for event in parser.feed(piece):
                yield event_of(wire.FileEvent, event)


class Files:
    """Files of one sandbox. Each call raises NotFound, Conflict or BadRequest as the sandbox answers."""

    def __init__(self, client: Client, sandbox: str) -> None:
        self.client = client
        self.sandbox = sandbox

    def read(self, path: str, *, deadline: float | None = None) -> bytes:
        """A file's bytes, all at once; see `download` and `read_pieces` for large ones."""
        return self._call(calls.read_file(self.sandbox, path), deadline)

    def read_text(self, path: str, *, encoding: str = "utf-8", deadline: float | None = None) -> str:
        """A file's text."""
        return (self.read(path, deadline=deadline)).decode(encoding)

    def read_pieces(self, path: str, *, deadline: float | None = None) -> Iterator[bytes]:
        """A file's bytes piece by piece, as fast as they are taken; `deadline` bounds the whole of it."""
        call = calls.read_file(self.sandbox, path)
        with self.client.transport.open(call, Deadline(deadline)) as body:
            for piece in body.pieces():
                yield piece

    def write(self, path: str, data: str | bytes, *, deadline: float | None = None) -> wire.Written:
        """Write a file, replacing what was there; missing directories are made."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        return decoded(wire.Written, self._call(calls.write_file(self.sandbox, path, raw), deadline))

    def upload(self, local: Local, path: str, *, deadline: float | None = None) -> wire.Written:
        """Stream a local file (a path, or a file open for reading bytes) into the sandbox."""
        call = calls.write_file(self.sandbox, path, None)
        with transfer.source(local) as file:
            body = self.client.transport.send(call, _pieces(file), Deadline(deadline))
        return decoded(wire.Written, body)

    def download(self, path: str, local: Local, *, deadline: float | None = None) -> int:
        """Stream a file out to a local path (whole or not at all) or an open file; return how many bytes."""
        size = 0
        call = calls.read_file(self.sandbox, path)
        with self.client.transport.open(call, Deadline(deadline)) as body:
            with transfer.target(local) as file:
                for piece in body.pieces():
                    size += file.write(piece)
        return size

    def list(self, path: str = ".", *, depth: int = 1, deadline: float | None = None) -> wire.EntryList:
        """A directory's entries, down to `depth`; `.truncated` says that there are more."""
        return self.client.fetch(wire.EntryList, calls.list_files(self.sandbox, path, depth), deadline)

    def stat(self, path: str, *, deadline: float | None = None) -> wire.Entry:
        """What a name is. A symbolic link is described, not followed."""
        return self.client.fetch(wire.Entry, calls.stat_file(self.sandbox, path), deadline)

    def mkdir(self, path: str, *, parents: bool = True, deadline: float | None = None) -> None:
        """Make a directory."""
        self._call(calls.make_directory(self.sandbox, path, parents=parents), deadline)

    def move(self, source: str, target: str, *, deadline: float | None = None) -> None:
        """Rename a file or a directory within the sandbox."""
        self._call(calls.move_file(self.sandbox, source, target), deadline)

    def remove(self, path: str, *, recursive: bool = False, deadline: float | None = None) -> None:
        """Remove a file, or with `recursive` a directory and everything in it."""
        self._call(calls.remove_file(self.sandbox, path, recursive=recursive), deadline)

    def watch(self, path: str = ".", *, recursive: bool = False) -> Watch:
        """Watch a directory; what happens after this call returned is seen.

        with sb.files.watch("results") as changes:
            for change in changes:
                print(change.type, change.path)
        """
        call = calls.watch_files(self.sandbox, path, recursive=recursive)
        return Watch(self.client.transport.open(call, Deadline(None)))

    def _call(self, call: calls.Call, deadline: float | None) -> bytes:
        return self.client.transport.call(call, self.client.transport.deadline(deadline))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    for piece in transfer.pieces(file):
        yield piece
