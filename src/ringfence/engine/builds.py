"""Builds: a tenant's steps run in a sandbox whose root they may change, and what they left made into a template.

Each step's outcome is kept as the bytes its sandbox made, by all that decided it; the next build begins behind the last
step it has in common with one before. Only the tenant's own outcomes are looked at. Nothing here reads such bytes.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from ringfence.domain.building import Copy, Order, Pulled, Recipe, Setting, Source, Step
from ringfence.domain.errors import BadRequest, OverQuota, PlatformFault, RingfenceError, SandboxLost, TooLarge
from ringfence.domain.limits import MIB, Limits
from ringfence.domain.process import How
from ringfence.engine.answers import NodeAnswer, decode_node, guest_end, raise_node
from ringfence.engine.kept import Cache, Pins
from ringfence.engine.link import NodeStream, Reader
from ringfence.engine.nodeclient import NodeClient
from ringfence.engine.processes import NOWHERE
from ringfence.engine.programs import Fate, fate
from ringfence.engine.shelf import Blob
from ringfence.guest import frames
from ringfence.store.base import PauseRow

WORK: Final = (importlib.resources.files("ringfence.guest") / "building" / "work.py").read_text("utf-8")
STATE: Final = "/run/.build"  # inside: how everything was when it was last looked at
REFUSED: Final = 3
READY_PAUSE: Final = 0.25
LINE_BYTES: Final = 2000
OUTPUT_BYTES: Final = 64 * MIB  # of one step: a build that says more is not read by anybody
WORDS_BYTES: Final = 4096  # of what a job of ours says
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f-\x9f]")  # of a terminal; not its colours, nor tabs
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows. See config.BuildSettings for the reasons of the defaults."""

    at_once: int = 2
    at_once_all: int = 4
    seconds: float = 1800.0
    step_seconds: float = 900.0
    ready_seconds: float = 60.0
    memory_bytes: int = 1024 * MIB
    cpus: float = 2.0
    disk_bytes: int = 2048 * MIB
    files: int = 500_000
    upload_bytes: int = 512 * MIB
    kept_bytes: int = 4096 * MIB
    home_bytes: int = 256 * MIB
    home_files: int = 20_000
    log_lines: int = 10_000
    images_bytes: int = 4096 * MIB
    registry_seconds: float = 30.0

    def limits(self) -> Limits:
        """Of a build's sandbox."""
        return Limits(
            memory_bytes=self.memory_bytes, cpus=self.cpus, processes=512, scratch_bytes=self.disk_bytes,
            scratch_files=self.files, output_bytes=OUTPUT_BYTES, open_files=4096, wall_seconds=86_400.0,
            cpu_seconds=86_400.0,
        )  # fmt: skip


class StepFailed(BadRequest):
    """A step of the tenant's did not do what it should; `step` says which, in its client's numbers."""

    default_code = "build_step_failed"

    def __init__(self, step: str, cause: str, code: str = "build_step_failed") -> None:
        super().__init__(cause, code=code)
        self.step = step


class Tell(Protocol):
    """Where a build's log goes."""

    def __call__(self, text: str, level: str = "info", step: str = "") -> None:
        """One line."""


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a build."""

    digest: str
    size: int
    cached: int  # steps that were not run
    recipe: Recipe
    shell: str  # its sandboxes'; empty: they have none


class _Started(msgspec.Struct):
    sandbox: str = ""
    send: bool = False


class _Pulling(msgspec.Struct):
    said: str = ""
    pulled: Pulled | None = None


class _Published(NodeAnswer, frozen=True):
    digest: str = ""
    size: int = 0
    shell: str = "/bin/bash"
    missing: bool = False


class Site:
    """A build's sandbox while it lasts."""

    def __init__(self, node: NodeClient, tenant: str, sandbox: str) -> None:
        self._node = node
        self._tenant = tenant
        self._sandbox = sandbox

    async def run(
        self,
        words: dict[str, Any],
        heard: Callable[[int, bytes], Awaitable[None]],
        stdin: AsyncIterator[bytes] | None = None,
        *,
        kind: str = "program",
    ) -> Fate:
        """A program to its end, its output as it comes. Raises SandboxLost when nobody knows its fate.

        Of the kind `kernel` its output is capped by who hears it.
        """
        stream = Reader()
        header = {"verb": "open", "tenant": self._tenant, "sandbox": self._sandbox, "kind": kind}
        self._node.open(stream, header, _encode({**words, "stdin": stdin is not None}))
        feeding = asyncio.get_running_loop().create_task(_fed(stream, stdin)) if stdin is not None else None
        try:
            while (item := await stream.next()) is not None:
                if item[0] in {frames.STDOUT, frames.STDERR}:
                    await heard(*item)
            if feeding is not None and feeding.done():
                feeding.result()
            return fate(await stream.ended)
        finally:
            if feeding is not None:
                feeding.cancel()
            stream.cancel()

    async def work(
        self,
        *words: str,
        stdin: AsyncIterator[bytes] | None = None,
        into: Callable[[bytes], Awaitable[None]] | None = None,
        seconds: float,
    ) -> None:
        """A job of ours (guest/building/work.py). Raises StepFailed without a step for what it refuses, or cannot."""
        said = bytearray()

        async def heard(type_: int, data: bytes) -> None:
            if type_ == frames.STDOUT and into is not None:
                await into(data)
            elif len(said) < WORDS_BYTES:
                said.extend(data[:WORDS_BYTES])

        job = {"op": "run", "code": WORK, "filename": NOWHERE, "argv": list(words)}
        order = {**job, "user": "root", "cwd": "/", "timeout": seconds}
        ended = await self.run(order, heard, stdin, kind="kernel")
        if ended.exit.ok:
            return
        lines = said.decode("utf-8", "replace").strip().splitlines()
        why = lines[-1][:600] if lines else ended.exit.reason or ended.exit.how.value
        if ended.exit.code == REFUSED and ended.exit.how is How.EXITED:
            raise StepFailed("", why, "build_copy_refused")
        raise StepFailed("", f"what the step left cannot be kept, or what it needs cannot be put there: {why}")


async def _fed(stream: NodeStream, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        if not await stream.send(chunk):
            return
    stream.eof()


class Lines:
    """A program's output as lines of a log, each bounded, control characters left out."""

    def __init__(self, tell: Tell, step: str, most: int) -> None:
        """After `most` lines only the last words are kept."""
        self._tell = tell
        self._step = step
        self._left = most
        self._rest: dict[int, bytes] = {}
        self.last: dict[int, str] = {}

    async def __call__(self, type_: int, data: bytes) -> None:
        """Some of it."""
        whole = self._rest.get(type_, b"") + data
        if self._left <= 0:
            self._rest[type_] = whole[-LINE_BYTES:]
            return
        *lines, rest = whole.split(b"\n", self._left)
        for line in lines:
            self._say(type_, line)
        while len(rest) > LINE_BYTES and self._left > 0:
            self._say(type_, rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._rest[type_] = rest

    def _say(self, type_: int, line: bytes) -> None:
        self._left -= 1
        text = _CONTROL.sub("", line[:LINE_BYTES].decode("utf-8", "replace"))
        if text.strip():
            self.last[type_] = text
        self._tell(text, "warn" if type_ == frames.STDERR else "info", self._step)

    def end(self) -> str:
        """No more comes; gives the last words, those of the error output first."""
        for type_, rest in self._rest.items():
            for line in rest.splitlines()[-1:]:
                self._say(type_, line)
        self._rest.clear()
        return self.last.get(frames.STDERR) or self.last.get(frames.STDOUT) or ""


class Builds:
    """What runs builds."""

    def __init__(self, node: NodeClient, cache: Cache, rules: Rules) -> None:
        self._node = node
        self.cache = cache
        self.rules = rules
        self._running: Counter[str] = Counter()
        self._started: set[tuple[str, str, str]] = set()  # outcomes whose start and ready commands were seen to work

    def begin(self, tenant: str) -> Callable[[], None]:
        """Hold a place for a build; returns how to give it back. Raises OverQuota."""
        if self._running[tenant] >= self.rules.at_once or self._running.total() >= self.rules.at_once_all:
            raise OverQuota(
                "as many builds are under way as may be at once", code="build_quota", remediation="wait for one to end"
            )
        self._running[tenant] += 1

        def over() -> None:
            self._running[tenant] -= 1

        return over

    async def build(
        self, tenant: str, name: str, order: Order, settings: dict[str, Any], egress: dict[str, Any], tell: Tell
    ) -> Made:
        """Do all of it. Raises StepFailed for the tenant's, RingfenceError for what else went wrong."""
        async with (
            asyncio.timeout(self.rules.seconds),
            self.cache.pinning() as pins,
            self._ready(tenant, order, tell) as (recipe, base),
        ):
            one = _Build(self, self._node, tenant, recipe, tell, pins)
            await one.steps(base, egress, force=settings["force"])
            return await one.publish(name, settings)

    @asynccontextmanager
    async def _ready(self, tenant: str, order: Order, tell: Tell) -> AsyncIterator[tuple[Recipe, str]]:
        """The whole recipe, and the digest of what it builds upon; an image stays where it is meanwhile."""
        if order.source is None or order.finish is None:
            yield order.recipe, order.base
            return
        async with self._pulled(tenant, order.source, tell) as pulled:
            if pulled.shell != "/bin/bash":
                has = f"commands are run by {pulled.shell}" if pulled.shell else "it has no other shell either"
                tell(f"the image has no /bin/bash: {has}", "warn", "base")
            yield order.finish(pulled), pulled.digest

    @asynccontextmanager
    async def _pulled(self, tenant: str, source: Source, tell: Tell) -> AsyncIterator[Pulled]:
        """The image, for as long as this is held. Its credentials go to the node, and nowhere else."""
        rules, stream = self.rules, Reader()
        header = {
            "verb": "pull", "tenant": tenant, "reference": source.reference, "allow": source.allow,
            "username": source.username, "password": source.password,
            "home": {"files": rules.home_files, "bytes": rules.home_bytes},
            "bounds": {
                "seconds": rules.seconds, "disk_bytes": rules.disk_bytes, "files": rules.files,
                "step_seconds": rules.step_seconds, "stall_seconds": rules.registry_seconds,
                "kept_bytes": rules.images_bytes,
            },
        }  # fmt: skip
        tell(f"FROM {source.reference}", step="base")
        await self._node.wait_up()
        self._node.open(stream, header)
        try:
            pulled = None
            while pulled is None and (item := await stream.next()) is not None:
                heard = msgspec.json.decode(item[1], type=_Pulling)
                pulled = heard.pulled
                if heard.said:
                    tell(_CONTROL.sub("", heard.said), step="base")
            if pulled is None:
                raise await _not_pulled(stream)
            yield pulled
        finally:
            stream.cancel()

    async def forget(self, tenant: str, names: list[str]) -> None:
        """Remove templates. Raises RingfenceError."""
        await self._node.call({"verb": "unpublish", "tenant": tenant, "names": names}, NodeAnswer)

    def started(self, tenant: str, key: str, words: str) -> bool:
        """Whether these commands were seen to work on this outcome; and now they were."""
        seen = (tenant, key, words) in self._started
        if len(self._started) > 10_000:
            self._started.clear()
        self._started.add((tenant, key, words))
        return seen

    def unstarted(self, tenant: str, key: str, words: str) -> None:
        """They did not work after all."""
        self._started.discard((tenant, key, words))


class _Build:
    """One build under way."""

    def __init__(self, builds: Builds, node: NodeClient, tenant: str, recipe: Recipe, tell: Tell, pins: Pins) -> None:
        self._pins = pins
        self._builds = builds
        self._cache = builds.cache
        self._rules = builds.rules
        self._node = node
        self._tenant = tenant
        self._recipe = recipe
        self._tell = tell
        self._keys: list[str] = []
        self._rows: list[PauseRow] = []
        self._uploads: dict[str, PauseRow] = {}
        self._cached = 0

    def _common(self, *, force: bool) -> list[PauseRow]:
        """What is kept of the first steps, up to the first that is not, or must be run."""
        rows: list[PauseRow] = []
        for step, key in zip(self._recipe.steps, self._keys, strict=True):
            row = self._cache.row(self._tenant, key)
            if row is None or force or step.forced:
                break
            rows.append(self._pins.add(row))
        return rows

    async def steps(self, base: str, egress: dict[str, Any], *, force: bool) -> None:
        """Run what has to be run, and see that what its sandboxes begin with works."""
        self._keys = self._recipe.keys(self._tenant, base)
        for name in [upload_key(step.copy.files) for step in self._recipe.steps if step.copy is not None]:
            row = self._cache.row(self._tenant, name)
            if row is not None and name not in self._uploads:
                self._uploads[name] = self._pins.add(row)
        self._rows = self._common(force=force)
        self._cached = len(self._rows)
        for step in self._recipe.steps[: self._cached]:
            self._tell(f"CACHED [{step.number}] {step.text}", step=str(step.number))
        last = self._keys[-1] if self._keys else base
        words = f"{self._recipe.start}\0{self._recipe.ready}\0{self._recipe.setting}"
        tried = not (self._recipe.start or self._recipe.ready) or self._builds.started(self._tenant, last, words)
        if self._cached == len(self._recipe.steps) and tried and not force:
            return
        try:
            async with self._site(egress) as site:
                await self._rest(site)
                if self._recipe.start or self._recipe.ready:
                    await self._try_start(site)
        except BaseException:
            self._builds.unstarted(self._tenant, last, words)
            raise

    @asynccontextmanager
    async def _site(self, egress: dict[str, Any]) -> AsyncIterator[Site]:
        """A sandbox to build in, for as long as this is held."""
        stream = Reader()
        header = {
            "verb": "build", "tenant": self._tenant, "template": self._recipe.template, "limits": self._rules.limits(),
            "ttl_seconds": self._rules.seconds + 60, "labels": {}, **egress,
        }  # fmt: skip
        await self._node.wait_up()
        self._node.open(stream, header)
        try:
            first = await stream.next()
            if first is None:
                raise_node(decode_node((await stream.ended).header, NodeAnswer).error)
                raise SandboxLost("the build's sandbox ended before it began")
            sandbox = msgspec.json.decode(first[1], type=_Started).sandbox
            yield Site(self._node, self._tenant, sandbox)
        finally:
            stream.cancel()

    async def _rest(self, site: Site) -> None:
        """Lay what is kept over the root, then run the steps behind."""
        for row in self._rows:
            await self._ours(site.work("apply", stdin=self._cache.shelf.reading(row), seconds=self._rules.step_seconds))
        steps = self._recipe.steps[self._cached :]
        if steps:
            await self._ours(site.work("mark", STATE, seconds=self._rules.step_seconds))
        for step, key in zip(steps, self._keys[self._cached :], strict=True):
            self._tell(f"[{step.number}] {step.text}", step=str(step.number))
            try:
                await self._one(site, step)
                self._rows.append(await self._captured(site, key))
            except StepFailed as failed:
                raise StepFailed(str(step.number), failed.cause, failed.code) from None
            except TooLarge as error:
                raise StepFailed(str(step.number), f"what the step left is {error.cause}", error.code) from None

    @staticmethod
    async def _ours(work: Awaitable[None]) -> None:
        """What fails before any step is nobody's step."""
        try:
            await work
        except StepFailed as failed:
            raise StepFailed("base", failed.cause, failed.code) from None

    async def _one(self, site: Site, step: Step) -> None:
        if step.kind == "COPY" and step.copy is not None:
            await self._copy(site, step, step.copy)
        elif step.kind == "WORKDIR":
            await site.work("folder", step.command, step.setting.user, seconds=self._rules.step_seconds)
        else:
            await self._program(site, step, _line(step.command, step.setting))

    async def _program(self, site: Site, step: Step, words: dict[str, Any]) -> None:
        lines = Lines(self._tell, str(step.number), self._rules.log_lines)
        ended = await site.run({"op": "exec", **words, "timeout": self._rules.step_seconds}, lines)
        last = lines.end()
        if ended.exit.ok:
            return
        how = f"exit code {ended.exit.code}" if ended.exit.how is How.EXITED else ended.exit.how.value.replace("_", " ")
        more = f": {last}" if last else f": {ended.exit.reason}" if ended.exit.reason else ""
        raise StepFailed(str(step.number), f"failed to run {step.text[:200]!r}: {how}{more}"[:1000])

    async def _copy(self, site: Site, step: Step, copy: Copy) -> None:
        row = self._uploads.get(upload_key(copy.files))
        if row is None:
            raise StepFailed(
                str(step.number), f"the files of COPY {copy.source!r:.100} were not uploaded", "build_files_missing"
            )
        most = {"entries": self._rules.files, "bytes": self._rules.disk_bytes, "free": 128 * MIB, "ratio": 100}
        words = {
            "source": copy.source, "target": copy.target, "user": copy.user, "mode": copy.mode,
            "workdir": step.setting.workdir, "most": most,
        }  # fmt: skip
        sent = self._cache.shelf.reading(row)
        await site.work("place", _encode(words).decode(), stdin=sent, seconds=self._rules.step_seconds)

    async def _captured(self, site: Site, key: str) -> PauseRow:
        """What a step changed, kept as it comes."""

        async def fill(blob: Blob) -> None:
            await site.work("layer", STATE, into=blob.write, seconds=self._rules.step_seconds)

        return self._pins.add(await self._cache.keep(self._tenant, key, self._rules.disk_bytes, fill))

    async def _try_start(self, site: Site) -> None:
        """Start what its sandboxes begin with, and wait until it says that it is ready."""
        recipe, running = self._recipe, None
        if recipe.start:
            self._tell(f"starting: {recipe.start}", step="finalize")
            lines = Lines(self._tell, "finalize", self._rules.log_lines)
            loop = asyncio.get_running_loop()
            running = loop.create_task(site.run({"op": "exec", **_line(recipe.start, recipe.setting)}, lines))
        try:
            if recipe.ready:
                await self._until_ready(site, running)
        finally:
            if running is not None:
                running.cancel()

    async def _until_ready(self, site: Site, running: asyncio.Task[Fate] | None) -> None:
        deadline = time.monotonic() + self._rules.ready_seconds
        while time.monotonic() < deadline:
            lines = Lines(_silent, "finalize", 1)
            words = _line(self._recipe.ready, self._recipe.setting)
            ended = await site.run({"op": "exec", **words, "timeout": self._rules.ready_seconds}, lines)
            if ended.exit.ok:
                self._tell("ready", step="finalize")
                return
            if running is not None and running.done() and not running.result().exit.ok:
                raise StepFailed("finalize", f"the start command ended: exit code {running.result().exit.code}")
            await asyncio.sleep(READY_PAUSE)
        raise StepFailed(
            "finalize", f"it was not ready within {self._rules.ready_seconds:g} s: {self._recipe.ready!r:.200}"
        )

    # -- the template -----------------------------------------------------------------------------------------------

    async def publish(self, name: str, settings: dict[str, Any]) -> Made:
        """Have a template made of it."""
        rules = self._rules
        header = {
            "verb": "publish", "tenant": self._tenant, "name": name, "template": self._recipe.template,
            "blobs": [{"sha256": row.digest.hex(), "size": row.size} for row in self._rows],
            "settings": {"env": dict(self._recipe.setting.env), "description": settings["description"]},
            "limits": settings["limits"],
            "bounds": {
                "unpacked_bytes": rules.disk_bytes, "file_bytes": rules.disk_bytes, "entries": rules.files,
                "unpack_seconds": rules.step_seconds,
            },
            "home": {"files": rules.home_files, "bytes": rules.home_bytes},
        }  # fmt: skip
        self._tell("making the template", step="finalize")
        try:
            told = await self._published(header)
            if told.missing:
                told = await self._published({**header, "send": True})
        except BadRequest as refused:
            raise StepFailed("finalize", refused.cause, refused.code) from None
        return Made(told.digest, told.size, self._cached, self._recipe, told.shell)

    async def _published(self, header: dict[str, Any]) -> _Published:
        stream = Reader()
        await self._node.wait_up()
        self._node.open(stream, header)
        try:
            while (item := await stream.next()) is not None:
                if item[0] == frames.CONTROL:
                    await _fed(stream, self._bytes())
            end = await stream.ended
        finally:
            stream.cancel()
        told = decode_node(end.header, _Published)
        raise_node(told.error)
        guest_end(end.guest)
        return told

    async def _bytes(self) -> AsyncIterator[bytes]:
        for row in self._rows:
            async for chunk in self._cache.shelf.reading(row):
                yield chunk


def _silent(text: str, level: str = "info", step: str = "") -> None:
    """A log that nobody reads."""


def upload_key(files: str) -> str:
    """What an uploaded archive is kept by."""
    return f"upload {files}"


def shell(line: str, setting: Setting, program: str = "/bin/bash") -> dict[str, Any]:
    """A shell line as a program of these settings, as E2B's clients start one."""
    return {"argv": [program, "-l", "-c", line], **_as_set(setting)}


def _line(line: str, setting: Setting) -> dict[str, Any]:
    """The same in a build, where a step may have brought bash: whichever shell there is now."""
    return {"shell": line, "login": True, **_as_set(setting)}


def _as_set(setting: Setting) -> dict[str, Any]:
    home = "/root" if setting.user == "root" else f"/home/{setting.user}"
    env = {"HOME": home, "USER": setting.user, "LOGNAME": setting.user, **dict(setting.env)}
    return {"user": setting.user, "cwd": setting.workdir, "env": env}


async def _not_pulled(stream: Reader) -> RingfenceError:
    """Why there is no image: nobody's step, and not ours either where its registry is to blame."""
    try:
        raise_node(decode_node((await stream.ended).header, NodeAnswer).error)
    except RingfenceError as error:
        theirs = isinstance(error, BadRequest) or error.code.startswith("registry_")
        return StepFailed("base", error.cause, error.code) if theirs else error
    return SandboxLost("pulling the image broke off")


def broken(error: BaseException) -> RingfenceError:
    """Why a build ended that nobody expected to end so."""
    if isinstance(error, RingfenceError):
        return error
    if isinstance(error, TimeoutError):
        return StepFailed("", "the build took longer than it may", "build_timed_out")
    return PlatformFault(f"the build broke off: {type(error).__name__}", code="build_broken")
