"""Watches: told as they come on a stream, or kept until they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
from collections import deque
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.api.compat.e2b.call import Call
from ringfence.api.compat.e2b.connect import ConnectError, Cut, Envelopes, Outgoing, known, timeout_of
from ringfence.api.compat.e2b.filesystem import BASE, look
from ringfence.api.compat.e2b.process import keepalive_of
from ringfence.engine.files import LiveStream, file_event
from ringfence.guest import frames

MOST_WATCHERS: Final = 64  # of one sandbox, kept between requests
MOST_KEPT: Final = 10_000  # events of one watcher that nobody took yet
OURS: Final = ".ringfence-"  # files of our agent's own that are not whole yet
TYPES: Final = {
    "create": "EVENT_TYPE_CREATE",
    "write": "EVENT_TYPE_WRITE",
    "remove": "EVENT_TYPE_REMOVE",
    "rename": "EVENT_TYPE_RENAME",
    "chmod": "EVENT_TYPE_CHMOD",
}


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what is sent to us."""


class Watch(Message, frozen=True):
    """What to watch."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False
    allow_network_mounts: bool = False  # there are none


class Named(Message, frozen=True):
    """A watcher."""

    watcher_id: str = ""


def told(event: wire.FileEvent, top: str) -> list[dict[str, str]]:
    """An event of ours as theirs, names relative to the watched directory. A rename is told of both names."""
    found = [(TYPES[event.type], event.path)]
    if event.source is not None:
        found = [(TYPES["rename"], event.source), (TYPES["create"], event.path)]
    return [
        {"name": posixpath.relpath(path, top), "type": kind}
        for kind, path in found
        if not posixpath.basename(path).startswith(OURS)
    ]


async def _top(call: Call, asked: Watch) -> str:
    """The directory to watch. Raises ConnectError."""
    if asked.include_entry:
        raise ConnectError("unimplemented", "events come without entries here")
    path = call.path(asked.path)
    if (await look(call, path)).type != "dir":
        raise ConnectError("invalid_argument", f"path {path!r:.200} is not a directory")
    return path


def _events(payload: bytes, top: str) -> list[dict[str, str]]:
    event = file_event(payload)
    if event is not None and event.type == "overflow":
        raise ConnectError("resource_exhausted", "changes came faster than they were taken; some are lost")
    return told(event, top) if event is not None else []


async def watch(call: Call) -> None:
    """Changes, until the client leaves."""
    asked = await Envelopes(call.exchange).only(Watch)

    async def work() -> None:
        async with call.within(timeout_of(call.exchange)):
            top = await _top(call, asked)
            async with call.engine.files.watching(
                *call.where, top, recursive=asked.recursive, user=call.account.name
            ) as live:
                await _told_live(call, live, top)

    await call.exchange.until_left(call.engine.stopping, work())


async def _told_live(call: Call, live: LiveStream, top: str) -> None:
    out, idle = Outgoing(call.exchange), keepalive_of(call)
    await out.send({"start": {}})
    while True:
        await live.reader.first(idle)
        if live.reader.empty and not live.reader.ended.done():
            await out.send({"keepalive": {}})
            continue
        item = await live.reader.next()
        if item is None:
            await live.end()
            await out.end()
            return
        if item[0] == frames.CONTROL:
            for event in _events(item[1], top):
                await out.send({"filesystem": event})


class Watcher:
    """A watch that outlives the request that made it. It ends with the sandbox, and with this process."""

    def __init__(self) -> None:
        self.kept: deque[dict[str, str]] = deque()
        self.error: ConnectError | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self, call: Call, asked: Watch) -> None:
        """Return once it watches. Raises ConnectError, or what the engine raises."""
        top = await _top(call, asked)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(call, asked, top, ready))
        try:
            await asyncio.shield(ready)
        except BaseException:
            self.stop()
            raise

    async def _run(self, call: Call, asked: Watch, top: str, ready: asyncio.Future[None]) -> None:
        try:
            async with call.engine.files.watching(
                *call.where, top, recursive=asked.recursive, user=call.account.name
            ) as live:
                ready.set_result(None)
                while (item := await live.reader.next()) is not None:
                    if item[0] == frames.CONTROL:
                        self.kept.extend(_events(item[1], top))
                        if len(self.kept) > MOST_KEPT:
                            raise ConnectError("resource_exhausted", "more changes than are kept; some are lost")
        except Exception as error:  # noqa: BLE001 - told to whoever asks next
            if not ready.done():
                ready.set_exception(error)
            self.error = known(error)

    def stop(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()


async def create(call: Call, asked: Watch) -> dict[str, Any]:
    """A watcher to be asked later."""
    if len(call.face.watchers) >= MOST_WATCHERS:
        raise ConnectError("resource_exhausted", f"a sandbox has at most {MOST_WATCHERS} watchers")
    watcher = Watcher()
    await watcher.begin(call, asked)
    if call.face.dead:
        watcher.stop()
        raise Cut
    name = secrets.token_hex(8)
    call.face.watchers[name] = watcher
    return {"watcherId": name}


def _mine(call: Call, asked: Named) -> Watcher:
    found: Watcher | None = call.face.watchers.get(asked.watcher_id)
    if found is None:
        raise ConnectError("not_found", f"watcher with id {asked.watcher_id!r:.60} not found")
    return found


async def events(call: Call, asked: Named) -> dict[str, Any]:
    """What changed since it was last asked."""
    watcher = _mine(call, asked)
    kept = list(watcher.kept)
    watcher.kept.clear()
    if not kept and watcher.error is not None:
        raise watcher.error
    return {"events": kept}


async def remove(call: Call, asked: Named) -> dict[str, Any]:
    """Watch no more."""
    _mine(call, asked).stop()
    with contextlib.suppress(KeyError):
        del call.face.watchers[asked.watcher_id]
    return {}


UNARY: Final[dict[str, tuple[Any, Any]]] = {
    BASE + "CreateWatcher": (Watch, create),
    BASE + "GetWatcherEvents": (Named, events),
    BASE + "RemoveWatcher": (Named, remove),
}
STREAMING: Final[dict[str, Any]] = {BASE + "WatchDir": watch}
