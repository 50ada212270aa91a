"""filesystem.Filesystem: names and directories, each by the agent inside, as the user who asks."""

from __future__ import annotations

import posixpath
import stat
import time
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.api.compat.e2b import view
from ringfence.api.compat.e2b.call import Call
from ringfence.api.compat.e2b.connect import ConnectError
from ringfence.api.compat.e2b.users import NAMES
from ringfence.domain.errors import BadRequest, Conflict, NotFound
from ringfence.engine.files import DEEPEST

BASE: Final = "/filesystem.Filesystem/"
MOVE_SECONDS: Final = 300.0
METRICS: Final = {
    "ts": "timestampUnix",
    "cpu_count": "cpuCount",
    "cpu_used_pct": "cpuUsedPct",
    "mem_total": "memTotal",
    "mem_used": "memUsed",
    "mem_cache": "memCache",
    "disk_used": "diskUsed",
    "disk_total": "diskTotal",
}
TYPES: Final = {"file": "FILE_TYPE_FILE", "dir": "FILE_TYPE_DIRECTORY", "symlink": "FILE_TYPE_SYMLINK"}


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what is sent to us."""


class Place(Message, frozen=True):
    """A path."""

    path: str = ""


class Directory(Message, frozen=True):
    """A directory, and how far down."""

    path: str = ""
    depth: int = 1


class Move(Message, frozen=True):
    """Two paths."""

    source: str = ""
    destination: str = ""


def entry_of(entry: wire.Entry) -> dict[str, Any]:
    """An entry as their clients read it: of a link the target's type, and where it leads."""
    kind = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}.get(entry.type, stat.S_IFREG)
    told: dict[str, Any] = {
        "name": entry.name,
        "type": TYPES.get(entry.type, "FILE_TYPE_UNSPECIFIED"),
        "path": entry.path,
        "size": str(entry.size),
        "mode": entry.mode,
        "permissions": stat.filemode(kind | entry.mode),
        "owner": NAMES.get(entry.uid, str(entry.uid)),
        "group": NAMES.get(entry.gid, str(entry.gid)),
        "modifiedTime": view.moment(entry.mtime),
    }
    if entry.target is not None:
        told["symlinkTarget"] = entry.target
    return told


async def look(call: Call, path: str) -> wire.Entry:
    """What stands there, links followed."""
    return await call.engine.files.stat(*call.where, path, follow=True, user=call.account.name)


async def found(call: Call, asked: Place) -> dict[str, Any]:
    """One entry."""
    return {"entry": entry_of(await look(call, call.path(asked.path)))}


async def make(call: Call, asked: Place) -> dict[str, Any]:
    """A directory and those above it; one that is there already is an error of its own."""
    path, files = call.path(asked.path), call.engine.files
    try:
        await files.mkdir(*call.where, posixpath.dirname(path), parents=True, user=call.account.name)
        await files.mkdir(*call.where, path, parents=False, user=call.account.name)
    except Conflict as error:
        if error.code != "guest_exists":
            raise
        if (await look(call, path)).type != "dir":
            raise ConnectError("invalid_argument", f"{path!r:.200} is there already and no directory") from None
        raise ConnectError("already_exists", f"directory already exists: {path!r:.200}") from None
    return {"entry": entry_of(await look(call, path))}


async def move(call: Call, asked: Move) -> dict[str, Any]:
    """Rename; what is above the new name is made. Between mounts a program of the sandbox's own carries it over."""
    source, target, files = call.path(asked.source), call.path(asked.destination), call.engine.files
    await files.stat(*call.where, source, user=call.account.name)
    await files.mkdir(*call.where, posixpath.dirname(target), parents=True, user=call.account.name)
    try:
        await files.move(*call.where, source, target, user=call.account.name)
    except BadRequest:
        await _carried(call, source, target)
    return {"entry": entry_of(await look(call, target))}


async def _carried(call: Call, source: str, target: str) -> None:
    request = wire.ProcessRequest(argv=["mv", "-T", "--", source, target], user=call.account.name, timeout=MOVE_SECONDS)
    ended = await call.engine.processes.collected(*call.where, request)
    if not ended.exit.ok:
        raise ConnectError("internal", f"cannot move it: {(ended.stderr or '').strip():.300}")


async def listed(call: Call, asked: Directory) -> dict[str, Any]:
    """What a directory holds."""
    if not 0 <= asked.depth <= DEEPEST:
        raise ConnectError("invalid_argument", f"depth is at most {DEEPEST}")
    path = call.path(asked.path)
    if (await look(call, path)).type != "dir":
        raise ConnectError("invalid_argument", f"path is not a directory: {path!r:.200}")
    answer = await call.engine.files.entries(*call.where, path, asked.depth, follow=True, user=call.account.name)
    if answer.truncated:
        raise ConnectError("resource_exhausted", "the directory has more entries than one answer can hold")
    return {"entries": [entry_of(entry) for entry in answer.entries]}


async def remove(call: Call, asked: Place) -> dict[str, Any]:
    """Remove it, with all inside; what is not there is removed already."""
    try:
        await call.engine.files.remove(*call.where, call.path(asked.path), recursive=True, user=call.account.name)
    except NotFound as error:
        if error.code != "guest_not_found":
            raise
    return {}


async def metrics(call: Call) -> dict[str, Any]:
    """What the sandbox uses now, as its daemon would tell it."""
    sandbox = await call.engine.sandboxes.get(*call.where)
    point = view.metric(sandbox, time.time(), 0.0, await call.engine.files.used(*call.where))
    return {name: point[theirs] for name, theirs in METRICS.items()}


UNARY: Final[dict[str, tuple[Any, Any]]] = {
    BASE + "Stat": (Place, found),
    BASE + "MakeDir": (Place, make),
    BASE + "Move": (Move, move),
    BASE + "ListDir": (Directory, listed),
    BASE + "Remove": (Place, remove),
}
