"""What a tenant's build needs of the node: a sandbox whose root may be changed, and its outcome made into a template.

What a build leaves comes as opaque bytes that its own sandbox made. They are counted, written to a file and handed to
a process of their own (templates/owned.py), which has them unpacked by a job without rights; nothing here looks inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import BadRequest, NotFound, PlatformFault, RingfenceError
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.domain.sandbox import new_id
from ringfence.domain.template import Template, ZygoteMode
from ringfence.guest import frames
from ringfence.guest.building.work import NEEDS
from ringfence.node.egress import check_network
from ringfence.node.live import Live
from ringfence.node.pulling import BASE, PULLED, Pulls
from ringfence.runtimes.base import Runtime, StartSpec
from ringfence.templates.catalog import OWNED, Both, Built, template_fields

JAIL: Final = "jail"
BUILDER: Final = "ringfence.templates.owned"
BUILDER_SECONDS: Final = 600.0
GRANT: Final = frames.WINDOW // 4
MOST_LAYERS: Final = 512
MOST_BYTES: Final = 64 * 1024**3  # of what one build leaves; the api's own quotas are far below
KEPT_FREE: Final = 512 * 1024 * 1024  # of the disk
SAID_BYTES: Final = 64 * 1024
_OWN_NAME: Final = re.compile(OWNED + r"[a-z0-9]{8,48}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def _jail(node: Any, built: Built) -> Runtime:
    """What builds are made in. Raises BadRequest where there is none, or it cannot be trusted with these files."""
    runtime: Runtime | None = node.isolation.present.get(JAIL)
    if runtime is None or "root" not in runtime.capabilities().users:
        raise BadRequest("builds need jails, made with privileges; this node has none", code="builds_absent")
    if built.template.image is not None and built.trusted_root is None:
        raise BadRequest(
            f"{built.template.name} comes from an image; only templates of ours can be built upon",
            code="build_unsuited",
        )
    return runtime


def _base(node: Any, ask: dict[str, Any]) -> Built:
    """What is built upon: a template, or an image that its build holds. Raises NotFound, BadRequest."""
    name = str(ask["template"])
    if name.startswith(PULLED):
        return works_of(node).pulls.read(ask["tenant"], name)
    built: Built = node.built(name, tenant=ask["tenant"], fresh=True)
    return built


def _workshop(built: Built) -> Template:
    """As the template, with what our jobs in there need (guest/building/work.py) imported before they come to it.

    So they run on files of ours, whatever an image or a step has in the place of Python. What was removed and pulled
    again since is another one: a zygote that rests looks at the files that were there.
    """
    name = f"build-{built.digest[:24]}-{int(built.built_at * 1000)}"
    return dataclasses.replace(built.template, name=name, preload=NEEDS, zygote=ZygoteMode.FORK)


@asynccontextmanager
async def pulled_image(node: Any, ask: dict[str, Any], tell: Callable[[str], None]) -> AsyncIterator[dict[str, Any]]:
    """An image, for as long as this is held; what its build needs to know. Raises BadRequest, PlatformFault."""
    works = works_of(node)
    try:
        trusted = node.built(BASE, tenant=ask["tenant"], fresh=True)
    except NotFound:
        raise PlatformFault(
            f"images need our template {BASE!r}, which is not built here",
            code="builds_absent",
            remediation=f"as the operator: ringfence templates build {BASE}",
        ) from None
    _jail(node, trusted)
    async with works.pulls.held(ask, trusted, node.settings.floor, tell) as kept:
        yield {
            "name": PULLED + kept.built.digest, "digest": kept.built.digest, "shell": kept.shell,
            "env": dict(kept.built.template.env),
        }  # fmt: skip


@asynccontextmanager
async def building_sandbox(node: Any, ask: dict[str, Any], limits: Limits) -> AsyncIterator[Live]:
    """A sandbox to build in; gone when this is left. Raises what claiming one raises."""
    built = _base(node, ask)
    runtime = _jail(node, built)
    policy = node.policy(ask, built.template)
    if policy.networked:
        check_network(runtime)
    words = ask["tenant"], _workshop(built), built.root, built.digest, limits, False, False, policy.networked
    spec = StartSpec(new_id("s"), *words, writable=True, trusted_root=built.trusted_root)
    live: Live = await node.made_now(runtime, spec)
    live.building = True
    try:
        await node.give(live, ask, limits, float(ask["ttl_seconds"]), policy, None)
        live.on_timeout, live.wake = "stop", False
        yield live
    finally:
        node.end_beside(live, How.STOPPED, "its build is over")


class Intake:
    """What the api sends for one template: written to files of given sizes, as it comes."""

    def __init__(self, send: Any, folder: Path, sizes: list[int]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send = send
        self._files = [(folder / f"blob-{number}", size) for number, size in enumerate(sizes)]
        self._number = 0
        self._left = 0
        self._owed = 0
        self._file: Any = None
        self._next()

    def _next(self) -> None:
        """Begin the next file that has bytes; there may be none."""
        self.close()
        while self._number < len(self._files):
            path, self._left = self._files[self._number]
            self._number += 1
            self._file = path.open("xb")
            if self._left:
                return
            self.close()
        self._left = 0

    def from_above(self, type_: int, payload: bytes) -> None:
        """Bytes, their end, or that nobody wants this any more."""
        if self.ended.done():
            return
        if type_ == frames.STDIN:
            try:
                self._take(memoryview(payload))
            except OSError as error:
                self._fail(PlatformFault(f"what a build left cannot be kept: {error}", code="build_disk_full"))
        elif type_ == frames.EOF:
            short = self._left or self._number < len(self._files)
            self._fail(BadRequest("less came than was announced", code="bad_header")) if short else self._done()
        elif type_ == frames.CANCEL:
            self._fail(BadRequest("the build was called off", code="build_stopped"))

    def condemn(self, _how: How, reason: str) -> None:
        """As a relay's."""
        self._fail(BadRequest(reason, code="build_stopped"))

    def _take(self, data: memoryview) -> None:
        self._owed += len(data)
        while data:
            if not self._left:
                self._fail(BadRequest("more came than was announced", code="bad_header"))
                return
            piece = data[: self._left]
            self._file.write(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if not self._left:
                self._next()
        if self._owed >= GRANT:
            self._send(frames.CREDIT, self._owed.to_bytes(4, "big"))
            self._owed = 0

    def _done(self) -> None:
        self.close()
        self.ended.set_result(None)

    def _fail(self, error: RingfenceError) -> None:
        self.close()
        self.ended.set_exception(error)

    def close(self) -> None:
        """Have no file open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _checked(ask: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    name, blobs = str(ask["name"]), ask["blobs"]
    if not _OWN_NAME.fullmatch(name) or len(blobs) > MOST_LAYERS:
        raise BadRequest("no such template can be made", code="bad_header")
    for blob in blobs:
        if not _DIGEST.fullmatch(blob["sha256"]) or type(blob["size"]) is not int or blob["size"] < 0:
            raise BadRequest("what a build left is described badly", code="bad_header")
    if sum(blob["size"] for blob in blobs) > MOST_BYTES:
        raise BadRequest("a build left too much", code="bad_header")
    return name, blobs


def key_of(tenant: str, base: str, blobs: list[dict[str, Any]]) -> str:
    """What a root is called: whose it is, what it was built upon, what was laid over that."""
    words = [tenant, base, *(blob["sha256"] for blob in blobs)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


class Works:
    """The templates that tenants have built, on disk. One thing is done at a time."""

    def __init__(self, catalog: Both) -> None:
        self._catalog = catalog
        self._place = catalog.owned.directory
        self.pulls = Pulls(self._place.parent / "pulled")
        self._turn = asyncio.Lock()
        self._count = 0

    async def begin(self) -> None:
        """Remove what an earlier node left half made, or pulled."""
        await self.pulls.begin()
        if self._place.is_dir():
            await self._job({"job": "sweep", "directory": str(self._place)})

    async def publish(self, node: Any, call: Any, ask: dict[str, Any]) -> dict[str, Any]:
        """A template of what came, and what it comes to; `missing` where it first has to be sent."""
        name, blobs = _checked(ask)
        base = _base(node, ask)
        _jail(node, base)
        pulled = base.template.name.startswith(PULLED)
        key = key_of(ask["tenant"], base.digest, blobs)
        job = {
            "job": "publish", "directory": str(self._place), "tenant": ask["tenant"], "name": name, "key": key,
            "base": str(base.root), "trusted": str(base.trusted_root or base.root), "blobs": blobs,
            "template": ask["settings"], "bounds": ask["bounds"], "home": ask["home"], "limits": _limits(ask),
            "from": base.template.name, "from_owned": bool(base.owner), "foreign": base.foreign,
            "source": _plain(template_fields(base.template)) if pulled else None,
            "base_bytes": base.size_bytes if pulled else 0,
        }  # fmt: skip
        if (self._place / key / "root").is_dir():
            return await self._job({**job, "blobs": []})
        if not ask.get("send"):
            return {"missing": True}
        with self._folder(sum(blob["size"] for blob in blobs)) as folder:
            await self._receive(call, folder, [blob["size"] for blob in blobs])
            return await self._job({**job, "work": str(folder)})

    async def _receive(self, call: Any, folder: Path, sizes: list[int]) -> None:
        intake = Intake(call.send, folder, sizes)
        call.attach(intake)
        call.send(frames.CONTROL, b'{"send": true}')
        try:
            await intake.ended
        finally:
            intake.close()

    @contextlib.contextmanager
    def _folder(self, size: int) -> Iterator[Path]:
        self._count += 1
        folder = self._place / f"building-{os.getpid()}-{self._count}"
        self._place.mkdir(mode=0o755, parents=True, exist_ok=True)
        if shutil.disk_usage(self._place).free < 3 * size + KEPT_FREE:
            raise PlatformFault("the server's disk has no room for what the build left", code="build_disk_full")
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def unpublish(self, tenant: str, names: list[str]) -> None:
        """Forget these of a tenant's, and every root that none has any more."""
        known = [name for name in names if _OWN_NAME.fullmatch(name)]
        await self._job({"job": "remove", "directory": str(self._place), "tenant": tenant, "names": known})

    async def _job(self, job: dict[str, Any]) -> dict[str, Any]:
        """Have it done elsewhere. Raises what went wrong there."""
        async with self._turn:
            words = [sys.executable, "-B", "-m", BUILDER]
            pipe = asyncio.subprocess.PIPE
            child = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, start_new_session=True)
            try:
                async with asyncio.timeout(BUILDER_SECONDS):
                    said, _ = await child.communicate(json.dumps(job).encode())
            except TimeoutError:
                raise PlatformFault("making the template took too long", code="template_build_failed") from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        return _answer(said)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def works_of(node: Any) -> Works:
    """What tenants build here. Raises BadRequest where there is no place for it."""
    works: Works | None = node.works
    if works is None:
        raise BadRequest("this node builds nothing for tenants", code="builds_absent")
    return works


def _limits(ask: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in ask["limits"].items() if name in Limits.__slots__}


def _answer(said: bytes) -> dict[str, Any]:
    """The builder's last word. It is our own process, and had a stranger's bytes unpacked: its word is checked."""
    try:
        told = json.loads(said[-SAID_BYTES:].splitlines()[-1])
        error = told.get("error")
        if error is None:
            return {name: told[name] for name in ("digest", "size", "shell") if name in told}
        words = str(error["code"])[:80], str(error["cause"])[:600], str(error["remediation"])[:300]
        refused = error["status"] == BadRequest.status
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise PlatformFault("making the template broke off", code="template_build_failed") from None
    kind = BadRequest if refused else PlatformFault
    raise kind(words[1], code=words[0], remediation=words[2])
