"""The routes of template builds: who asks, for what, and what E2B's clients are answered."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, Final

import msgspec

from ringfence.api.compat.e2b import network, view
from ringfence.api.compat.e2b.asks import Ask, Reply
from ringfence.api.compat.e2b.http import Exchange
from ringfence.api.compat.e2b.shapes import Shape
from ringfence.api.compat.e2b.templates import images, records, steps
from ringfence.api.compat.e2b.templates.records import Build, Templates
from ringfence.api.compat.e2b.templates.records import Template as Record
from ringfence.api.compat.e2b.templates.running import Entry, Running
from ringfence.api.compat.e2b.templates.steps import Inherited
from ringfence.api.compat.e2b.templates.uploads import Uploads
from ringfence.config import E2bSettings
from ringfence.domain.building import Order
from ringfence.domain.errors import BadRequest, Conflict, Forbidden, NotFound, OverQuota
from ringfence.domain.limits import MIB, Limits
from ringfence.engine.engine import Engine

MOST_ENTRIES: Final = 100
MOST_WAITING: Final = 20
LEVELS: Final = ("debug", "info", "warn", "error")
DIRECTIONS: Final = ("forward", "backward")
SOURCES: Final = ("temporary", "persistent")
Megabytes = Annotated[int, msgspec.Meta(ge=0, le=2**24)]
Cpus = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class NewBuild(Shape, frozen=True):
    """A template to be built."""

    name: str = ""
    alias: str = ""
    tags: list[str] | None = None
    cpu_count: Cpus | None = None
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=2**24)] | None = msgspec.field(default=None, name="memoryMB")
    min_free_disk_mb: Megabytes | None = msgspec.field(default=None, name="minFreeDiskMB")


class Tags(Shape, frozen=True):
    """Tags for a build, or to be taken away."""

    target: str = ""
    name: str = ""
    tags: list[str] = []


class TemplateRoutes:
    """What the routes do."""

    def __init__(
        self, engine: Engine, settings: E2bSettings, templates: Templates, running: Running, uploads: Uploads
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._templates = templates
        self._running = running
        self._uploads = uploads

    # -- building -----------------------------------------------------------------------------------------------------

    async def request(self, ask: Ask) -> Reply:
        """Announce a build: its template's id, its own, and what it will be called."""
        asked = await ask.read(NewBuild)
        name, tag = records.split(asked.name or asked.alias)
        tags = _tags([*([tag] if tag else []), *(asked.tags or [])]) or [records.DEFAULT_TAG]
        if await self._ours(name):
            raise Forbidden(f"{name!r} is a template of this server's own", code="template_reserved")
        known = self._templates.named(ask.tenant, name)
        self._check_counts(ask.tenant, known)
        template, build = self._templates.new(ask.tenant, name, tags, self._limits(ask.tenant, asked))
        body = {"templateID": template.id, "buildID": build.id, "public": False, "tags": tags}
        return Reply(202, {**body, "names": [template.name], "aliases": [template.name]})

    async def _ours(self, name: str) -> bool:
        """Whether the operator has a template of this name, or will have one: those that come with us."""
        known = await self._engine.catalog.templates("")
        return name in {each.name for each in known} | set(steps.IMAGES.values()) | {"base", "python"}

    def _check_counts(self, tenant: str, known: Record | None) -> None:
        most = self._settings.builds.templates
        if known is None and len(self._templates.of(tenant)) >= most:
            raise OverQuota(
                f"this tenant has as many templates as it may: {most}",
                code="template_quota",
                remediation="delete templates that are not needed, or have the operator raise e2b.builds.templates",
            )
        waiting = [b for b in known.builds.values() if b.status == records.WAITING] if known is not None else []
        if len(waiting) >= MOST_WAITING:
            raise OverQuota("too many builds of this template were announced and not begun", code="build_quota")

    def _limits(self, tenant: str, asked: NewBuild) -> dict[str, Any]:
        """Its sandboxes' limits. Raises BadRequest above the tenant's maxima."""
        wanted: dict[str, Any] = {}
        if asked.cpu_count is not None:
            wanted["cpus"] = float(asked.cpu_count)
        if asked.memory_mb is not None:
            wanted["memory_bytes"] = asked.memory_mb * MIB
        if asked.min_free_disk_mb and asked.min_free_disk_mb * MIB > Limits().scratch_bytes:
            wanted["scratch_bytes"] = asked.min_free_disk_mb * MIB
        self._engine.policy.ceiling(tenant).limits(dict(wanted), Limits())
        return wanted

    async def files(self, ask: Ask) -> Reply:
        """Whether a COPY's files are here, and where to put them."""
        template, files = self._templates.mine(ask.tenant, ask.parts[0]), ask.parts[1]
        if not steps.HASH.fullmatch(files):
            raise BadRequest("the hash of the files is no SHA-256", code="bad_files_hash")
        url = self._uploads.url(ask.exchange, ask.tenant, template.id, files)
        return Reply(201, {"present": self._uploads.present(ask.tenant, files), "url": url})

    async def upload(self, exchange: Exchange) -> None:
        """Take the files of a COPY, from whoever has the URL."""
        parts = exchange.raw_path.split("/")[1:]
        if len(parts) != 4 or parts[0] != "templates" or parts[2] != "files":
            raise NotFound("no such route")
        grant = self._uploads.admitted(exchange, parts[3])
        with self._engine.admission.request(grant.tenant):
            await self._uploads.take(exchange, grant)
        await exchange.say(200)

    async def start(self, ask: Ask) -> Reply:
        """Begin to build."""
        asked = await ask.read(steps.StartBuild)
        template, build = self._templates.build(ask.tenant, *ask.parts)
        if build.status != records.WAITING:
            raise Conflict(f"build {build.id} was begun already", code="build_begun")
        order = await self._order(ask.tenant, asked)
        settings = {
            "force": asked.force, "limits": build.limits, "description": f"{template.name}, built by its tenant"
        }  # fmt: skip
        self._running.start(ask.tenant, template, build, order, settings, self._egress(ask.tenant))
        return Reply(202)

    async def _order(self, tenant: str, asked: steps.StartBuild) -> Order:
        """What is to be built, as far as it is known before an image is here. Raises BadRequest, NotFound."""
        source = images.source_of(asked, self._settings.builds.registries)
        if source is not None:
            recipe = steps.recipe_of(asked, "", Inherited(), image=True)
            return Order(recipe, source=source, finish=lambda pulled: images.recipe_of(asked, pulled))
        base, is_image = steps.base_of(asked)
        node_name, digest, inherited = await self._base(tenant, base, is_image)
        return Order(steps.recipe_of(asked, node_name, inherited), digest)

    def _egress(self, tenant: str) -> dict[str, Any]:
        """What steps may reach: what E2B's sandboxes do when they ask for nothing."""
        policy = self._engine.policy
        allowed = network.egress(None, None, self._settings)
        return {**policy.egress(allowed), **policy.gateway(tenant, "")}

    async def _base(self, tenant: str, name: str, is_image: bool) -> tuple[str, str, Inherited]:
        """What the node calls it, its digest, and what it hands on. Raises NotFound."""
        ours = {each.name: each for each in await self._engine.catalog.templates("")}
        plain = plain_name(name)
        if plain in ours:
            return plain, ours[plain].digest, Inherited()
        built = None if is_image else self._templates.ready(tenant, name)
        if built is None:
            raise records.missing(name)
        return built.node_name, built.digest, built.inherited

    async def status(self, ask: Ask) -> Reply:
        """How a build is going, and the next lines of its log."""
        template, build = self._templates.build(ask.tenant, *ask.parts)
        offset = _number(ask.exchange.query().get("logsOffset", "0"), "logsOffset")
        entries = [_entry(each) for each in self._running.log(build).entries[offset : offset + MOST_ENTRIES]]
        body: dict[str, Any] = {"templateID": template.id, "buildID": build.id, "status": build.status}
        body |= {"logs": [], "logEntries": entries}
        if build.reason is not None:
            step = {"step": build.reason.step} if build.reason.step else {}
            body["reason"] = {"message": build.reason.message, "logEntries": [], **step}
        return Reply(200, body)

    async def logs(self, ask: Ask) -> Reply:
        """A build's log by itself, from a moment on, forwards or backwards; or what of it is of a level or above."""
        _, build = self._templates.build(ask.tenant, *ask.parts)
        query = ask.exchange.query()
        limit = min(_number(query.get("limit", "100"), "limit"), MOST_ENTRIES)
        entries = self._running.log(build).entries
        if "level" in query:
            least = _one_of(query["level"], LEVELS, "level")
            entries = [each for each in entries if LEVELS.index(each.level) >= LEVELS.index(least)]
        backward = _one_of(query.get("direction", "forward"), DIRECTIONS, "direction") == "backward"
        _one_of(query.get("source", "temporary"), SOURCES, "source")  # there is one place where a log can be
        cursor = _number(query["cursor"], "cursor", 15) / 1000 if "cursor" in query else None
        if backward:
            found = [each for each in reversed(entries) if cursor is None or each.at <= cursor]
        else:
            found = [each for each in entries if cursor is None or each.at >= cursor]
        return Reply(200, {"logs": [_entry(each) for each in found[:limit]]})

    # -- what there is ------------------------------------------------------------------------------------------------

    async def alias(self, ask: Ask) -> Reply:
        """Whether a name is the tenant's: 403 for the server's own, 404 for one that is not, or is another's."""
        found = self._templates.named(ask.tenant, ask.parts[0].partition(":")[0])
        if found is not None:
            return Reply(200, {"templateID": found.id, "public": False})
        if await self._ours(plain_name(ask.parts[0])):
            raise Forbidden(f"{ask.parts[0]!r:.140} is a template of this server's own", code="template_reserved")
        raise records.missing(ask.parts[0])

    async def listed(self, ask: Ask) -> Reply:
        """A tenant's templates."""
        return Reply(200, [self._shown(each) for each in self._templates.of(ask.tenant)])

    async def info(self, ask: Ask) -> Reply:
        """One template and its builds."""
        template = self._templates.mine(ask.tenant, ask.parts[0])
        builds = sorted(template.builds.values(), key=lambda build: -build.created_at)
        return Reply(200, {**self._shown(template), "builds": [self._build(template, build) for build in builds]})

    def _shown(self, template: Record) -> dict[str, Any]:
        newest = max(template.builds.values(), key=lambda build: build.created_at, default=None)
        return {
            "templateID": template.id, "buildID": newest.id if newest else "", "public": False,
            "names": [template.name], "aliases": [template.name], **self._size(newest),
            "createdAt": view.moment(template.created_at), "updatedAt": view.moment(template.updated_at),
            "buildStatus": newest.status if newest else "", "buildCount": len(template.builds), "spawnCount": 0,
            "lastSpawnedAt": None, "createdBy": None, "envdVersion": view.ENVD_VERSION,
        }  # fmt: skip

    def _size(self, build: Build | None) -> dict[str, int]:
        wanted, usual = build.limits if build is not None else {}, Limits()
        return {
            "cpuCount": max(1, math.ceil(wanted.get("cpus", usual.cpus))),
            "memoryMB": wanted.get("memory_bytes", usual.memory_bytes) // MIB,
            "diskSizeMB": wanted.get("scratch_bytes", usual.scratch_bytes) // MIB,
        }

    def _build(self, template: Record, build: Build) -> dict[str, Any]:
        finished = {"finishedAt": view.moment(build.finished_at)} if build.finished_at is not None else {}
        return {
            "buildID": build.id, "status": build.status, "createdAt": view.moment(build.created_at),
            "updatedAt": view.moment(build.finished_at or build.created_at), **self._size(build), **finished,
            "envdVersion": view.ENVD_VERSION,
            "tags": [tag for tag, known in template.tags.items() if known.build == build.id],
        }  # fmt: skip

    async def delete(self, ask: Ask) -> Reply:
        """Forget a template; what sandboxes still use of it goes with the last of them."""
        template = self._templates.mine(ask.tenant, ask.parts[0])
        if any(build.status == records.BUILDING for build in template.builds.values()):
            raise Conflict(f"template {template.name} is being built", code="build_begun")
        template.removed = True
        self._templates.keep(ask.tenant, template)
        await self._running.tidy(ask.tenant)
        return Reply(204)

    # -- tags ---------------------------------------------------------------------------------------------------------

    async def assign(self, ask: Ask) -> Reply:
        """More tags for the build that `name:tag` stands for."""
        asked = await ask.read(Tags)
        name, tag = records.split(asked.target)
        template = self._templates.mine(ask.tenant, name)
        build = template.tagged(tag or records.DEFAULT_TAG)
        if build is None or build.status != records.READY:
            raise NotFound(f"{asked.target[:140]!r} has no build", code="tag_not_found")
        tags = _tags(asked.tags)
        if not tags or len(set(template.tags) | set(tags)) > records.MOST_TAGS:
            raise BadRequest(f"a template has 1 to {records.MOST_TAGS} tags", code="bad_tag")
        now = time.time()
        for each in tags:
            template.tags[each] = records.Tagged(build.id, now)
        self._templates.keep(ask.tenant, template)
        await self._running.tidy(ask.tenant)
        return Reply(201, {"buildID": build.id, "tags": tags})

    async def remove(self, ask: Ask) -> Reply:
        """Take tags away."""
        asked = await ask.read(Tags)
        template = self._templates.mine(ask.tenant, records.split(asked.name)[0])
        tags = _tags(asked.tags)
        absent = [tag for tag in tags if tag not in template.tags]
        if absent:
            raise NotFound(f"{template.name} has no tag {absent[0]!r:.140}", code="tag_not_found")
        for tag in tags:
            del template.tags[tag]
        self._templates.keep(ask.tenant, template)
        await self._running.tidy(ask.tenant)
        return Reply(204)

    async def tags(self, ask: Ask) -> Reply:
        """All of a template's tags."""
        template = self._templates.mine(ask.tenant, ask.parts[0])
        rows = [
            {"tag": tag, "buildID": known.build, "createdAt": view.moment(known.at)}
            for tag, known in sorted(template.tags.items())
        ]
        return Reply(200, rows)


def plain_name(name: str) -> str:
    """A name without the tag that every template of the server's own has."""
    for tag in (":default", ":latest"):
        name = name.removesuffix(tag)
    return name


def _tags(wanted: list[str]) -> list[str]:
    if len(wanted) > records.MOST_TAGS or not all(records.TAG.fullmatch(tag) for tag in wanted):
        raise BadRequest(f"at most {records.MOST_TAGS} tags, of letters, digits, '.', '_' and '-'", code="bad_tag")
    return list(dict.fromkeys(wanted))


def _number(text: str, what: str, digits: int = 9) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > digits:
        raise BadRequest(f"{what} must be a number", code="bad_query")
    return int(text)


def _one_of(text: str, words: tuple[str, ...], what: str) -> str:
    if text not in words:
        raise BadRequest(f"{what} must be one of {', '.join(words)}", code="bad_query")
    return text


def _entry(entry: Entry) -> dict[str, Any]:
    step = {"step": entry.step} if entry.step else {}
    return {"timestamp": view.moment(entry.at), "level": entry.level, "message": entry.text, **step}
