"""Images that tenants' builds begin with: pulled by a process of their own, and kept for who pulled them.

Nobody finds one by its name but a build that holds it, so no sandbox is ever made of what was only pulled. Credentials
come with a request, go to that process by its input, and are kept nowhere. Images are gone when the node is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringfence.domain.egress import Floor
from ringfence.domain.errors import BadRequest, PlatformFault, RingfenceError
from ringfence.domain.template import Image, PoolPolicy, ZygoteMode
from ringfence.guest.plan import HOME, USER_ID
from ringfence.templates.catalog import Built

PULLED: Final = "pulled-"  # begins the names of what was pulled, which are no template's
PULLER: Final = "ringfence.templates.pulled"
BASE: Final = "base"  # the template of ours that the agents of its sandboxes run on
LINE_BYTES: Final = 4 * 1024 * 1024
SAID: Final = 300  # characters of a line of progress
GOING_SECONDS: Final = 5.0  # until a killed job's last file is written
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NUMBERS: Final = ("seconds", "disk_bytes", "files", "step_seconds", "stall_seconds", "kept_bytes")

Tell = Callable[[str], None]


@dataclass(slots=True)
class Kept:
    """A pulled image, and how many builds hold it."""

    built: Built
    used: float
    shell: str
    pins: int = 0


class Pulls:
    """What was pulled."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._kept: dict[str, Kept] = {}
        self._count = 0

    async def begin(self) -> None:
        """Nothing is kept of what an earlier node pulled."""
        await asyncio.to_thread(shutil.rmtree, self._place, ignore_errors=True)

    def read(self, tenant: str, name: str) -> Built:
        """What a build of this tenant's holds by this name. Raises BadRequest."""
        kept = self._kept.get(name)
        if kept is None or kept.built.owner != tenant or not kept.pins:
            raise BadRequest("no such image is held by a build", code="bad_header")
        return kept.built

    @asynccontextmanager
    async def held(self, ask: dict[str, Any], trusted: Built, floor: Floor, tell: Tell) -> AsyncIterator[Kept]:
        """Pull it, or find here what it is there now; it stays while this is held. Raises BadRequest, PlatformFault."""
        self._count += 1
        work = self._place / f"building-{os.getpid()}-{self._count}"
        work.mkdir(mode=0o700, parents=True)
        kept: Kept | None = None
        try:
            try:
                told = await _puller(self._job(ask, work, floor), float(ask["bounds"]["seconds"]), tell)
                kept = self._entered(ask, told, work, trusted)
                kept.pins += 1  # before anything is waited for: another of this tenant's builds may be making room
            finally:
                await asyncio.shield(asyncio.to_thread(_remove, work))
            await self._make_room(ask["tenant"], int(ask["bounds"]["kept_bytes"]))
            yield kept
        finally:
            if kept is not None:
                kept.pins -= 1
                kept.used = time.monotonic()

    def _job(self, ask: dict[str, Any], work: Path, floor: Floor) -> dict[str, Any]:
        bounds, tenant = ask["bounds"], ask["tenant"]
        if set(bounds) != set(_NUMBERS) or not all(type(bounds[name]) in {int, float} for name in _NUMBERS):
            raise BadRequest("a pull needs its bounds", code="bad_header")
        mine = [name.removeprefix(PULLED) for name, kept in self._kept.items() if kept.built.owner == tenant]
        disk, files = int(bounds["disk_bytes"]), int(bounds["files"])
        return {
            "work": str(work), "tenant": tenant, "reference": str(ask["reference"]), "allow": list(ask["allow"]),
            "username": str(ask["username"]), "password": str(ask["password"]), "known": mine, "home": ask["home"],
            "floor": {
                "closed": [str(network) for network in floor.closed],
                "opened": [str(network) for network in floor.opened],
                "names": list(floor.names),
            },
            "bounds": {
                "download_bytes": disk, "unpacked_bytes": disk, "file_bytes": disk, "entries": files,
                "fetch_seconds": bounds["step_seconds"], "unpack_seconds": bounds["step_seconds"],
                "stall_seconds": bounds["stall_seconds"],
            },
        }  # fmt: skip

    def _entered(self, ask: dict[str, Any], told: dict[str, Any], work: Path, trusted: Built) -> Kept:
        key = str(told["key"])
        if not _KEY.fullmatch(key):
            raise _broken()
        kept = self._kept.get(PULLED + key)
        if kept is None:
            if told.get("known"):
                raise PlatformFault("the image was pulled, and has gone since", code="image_pull_failed")
            kept = self._kept[PULLED + key] = self._new(ask, told, work, trusted)
        kept.used = time.monotonic()
        return kept

    def _new(self, ask: dict[str, Any], told: dict[str, Any], work: Path, trusted: Built) -> Kept:
        key = told["key"]
        place = self._place / key
        place.mkdir(mode=0o755, exist_ok=True)
        (work / "root").rename(place / "root")
        template = dataclasses.replace(
            trusted.template,
            name=(PULLED + key)[:63],
            description="",
            debian=(),
            wheels=(),
            preload=(),
            env=tuple(sorted((str(name), str(value)) for name, value in told["env"].items())),
            zygote=ZygoteMode.NONE,
            pool=PoolPolicy(least=0, most=4),
            image=Image(
                str(ask["reference"]), str(told["digest"]), workdir=HOME, user=f"{USER_ID}:{USER_ID}",
                python=str(told["python"]),
            ),
        )  # fmt: skip
        words = template, key, place / "root", int(told["size"]), time.time(), key, ask["tenant"], trusted.root
        return Kept(Built(*words, foreign=True), time.monotonic(), str(told["shell"]))

    async def _make_room(self, tenant: str, most: int) -> None:
        """Remove what this tenant's builds have not used for longest, while it has more than it may."""
        mine = sorted((k.used, name) for name, k in self._kept.items() if k.built.owner == tenant)
        for _, name in mine:
            total = sum(k.built.size_bytes for k in self._kept.values() if k.built.owner == tenant)
            oldest = self._kept.get(name)  # gone: another build made room meanwhile
            if total > most and oldest is not None and not oldest.pins:
                del self._kept[name]
                await asyncio.to_thread(_remove, oldest.built.root.parent)


def _remove(place: Path) -> None:
    """A killed job's own jobs may write a moment longer."""
    deadline = time.monotonic() + GOING_SECONDS
    while place.exists() and time.monotonic() < deadline:
        shutil.rmtree(place, ignore_errors=True)


async def _puller(job: dict[str, Any], seconds: float, tell: Tell) -> dict[str, Any]:
    """Have it pulled elsewhere. Raises what went wrong there."""
    words, pipe = [sys.executable, "-B", "-m", PULLER], asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *words, stdin=pipe, stdout=pipe, start_new_session=True, limit=LINE_BYTES
    )
    try:
        async with asyncio.timeout(seconds):
            return _answer(await _conversation(child, json.dumps(job).encode(), tell))
    except TimeoutError:
        raise BadRequest("pulling the image took longer than a build may", code="build_timed_out") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()


async def _conversation(child: asyncio.subprocess.Process, job: bytes, tell: Tell) -> dict[str, Any]:
    """Its last line that is no progress. It is our own process, and had a stranger's bytes unpacked: it is checked."""
    if child.stdin is None or child.stdout is None:
        raise _broken()
    told: dict[str, Any] = {}
    try:
        child.stdin.write(job)
        await child.stdin.drain()
        child.stdin.close()
        while line := await child.stdout.readline():
            said = json.loads(line)
            if "said" in said:
                tell(str(said["said"])[:SAID])
            else:
                told = dict(said)
        await child.wait()
    except (OSError, ValueError, TypeError, RecursionError):
        raise _broken() from None
    return told


def _answer(told: dict[str, Any]) -> dict[str, Any]:
    try:
        error = told.get("error")
        if error is None:
            if not told.get("known"):
                told = {"known": False, **{name: told[name] for name in _FACTS}}
            return {**told, "key": told["key"]}
        code, cause, refused = str(error["code"])[:80], str(error["cause"])[:600], 400 <= int(error["status"]) < 500
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _broken() from None
    raise (BadRequest if refused else PlatformFault)(cause, code=code)


_FACTS: Final = ("key", "size", "digest", "env", "python", "shell")


def _broken() -> RingfenceError:
    return PlatformFault("pulling the image broke off", code="image_pull_failed")
