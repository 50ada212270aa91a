"""Builds under way: their logs while they last, what becomes of them, and what of old ones can go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.api.compat.e2b.templates.records import BUILDING, ERROR, READY, WAITING, Build, Reason, Tagged, Templates
from ringfence.api.compat.e2b.templates.records import Template as Record
from ringfence.api.compat.e2b.templates.steps import Inherited
from ringfence.domain.building import Order
from ringfence.domain.errors import OverQuota, RingfenceError
from ringfence.engine.builds import Builds, StepFailed, broken
from ringfence.engine.engine import Engine
from ringfence.store.base import Filter

MOST_LOGS: Final = 200  # builds whose logs are kept, in memory
WAITS_SECONDS: Final = 7200.0  # how long a build may wait to be told what to do
MOST_ENDED: Final = 20  # ended builds of a template that are remembered and stand for nothing
RESTARTED: Final = "the server was restarted while this was built"
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a build's log."""

    at: float
    level: str
    text: str
    step: str


@dataclass
class Log:
    """What a build has said, up to a bound."""

    most: int
    entries: list[Entry] = field(default_factory=list)

    def __call__(self, text: str, level: str = "info", step: str = "") -> None:
        """One line more."""
        if len(self.entries) < self.most:
            self.entries.append(Entry(time.time(), level, text, step))
        elif len(self.entries) == self.most:
            self.entries.append(Entry(time.time(), "warn", "the log is full: what follows is left out", step))


class Running:
    """What is built now, and was a while ago."""

    def __init__(self, engine: Engine, builds: Builds, templates: Templates, most_bytes: int) -> None:
        self._engine = engine
        self._builds = builds
        self._templates = templates
        self._most_bytes = most_bytes
        self._logs: dict[str, Log] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        engine.ledger.on_gone.append(lambda _: self._tidy_soon())
        self._tidying: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """What an earlier process did not finish has failed."""
        for tenant, build in self._templates.begin():
            build.status, build.finished_at = ERROR, time.time()
            build.reason = Reason(RESTARTED)
            for template in self._templates.every(tenant):
                if build.id in template.builds:
                    self._templates.keep(tenant, template)
            self._spawn(self._forget(tenant, [build.node_name]))

    def _spawn(self, work: Coroutine[Any, Any, Any], over: Callable[[], None] | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if over is not None:
            task.add_done_callback(lambda _: over())

    async def _forget(self, tenant: str, names: list[str]) -> bool:
        try:
            await self._builds.forget(tenant, names)
        except (RingfenceError, TimeoutError) as error:
            _log.info("builds of %s are not removed yet: %s", tenant, error)
            return False
        return True

    def log(self, build: Build) -> Log:
        """A build's log; empty for one that a former process ran."""
        return self._logs.get(build.id, Log(0))

    def start(
        self,
        tenant: str,
        template: Record,
        build: Build,
        order: Order,
        settings: dict[str, Any],
        egress: dict[str, Any],
    ) -> None:
        """Begin to build. Raises OverQuota."""
        if sum(each.bytes() for each in self._templates.every(tenant)) >= self._most_bytes:
            raise OverQuota(
                "this tenant's templates take as many bytes as they may",
                code="template_quota",
                remediation="delete templates that are not needed, or have the operator raise template_bytes",
            )
        over = self._builds.begin(tenant)
        build.status = BUILDING
        self._templates.keep(tenant, template)
        log = self._logs[build.id] = Log(self._builds.rules.log_lines)
        while len(self._logs) > MOST_LOGS:
            del self._logs[next(iter(self._logs))]
        self._spawn(self._built(tenant, template, build, order, settings, egress, log), over)

    async def _built(
        self, tenant: str, template: Record, build: Build, order: Order, settings: dict[str, Any],
        egress: dict[str, Any], log: Log,
    ) -> None:  # fmt: skip
        try:
            made = await self._builds.build(tenant, build.node_name, order, settings, egress, log)
        except Exception as error:  # noqa: BLE001 - whatever it was, the build has ended with it
            self._failed(build, error, log)
        else:
            build.digest, build.size, build.cached = made.digest, made.size, made.cached
            recipe, build.shell = made.recipe, made.shell
            build.inherited = Inherited(recipe.setting, recipe.start, recipe.ready)
            await self._known(tenant, build)
            build.status = READY
            for tag in build.tags:
                template.tags[tag] = Tagged(build.id, time.time())
            log(f"done: {made.cached} of {len(recipe.steps)} steps were cached", step="finalize")
        build.finished_at = time.time()
        self._templates.keep(tenant, template)
        await self.tidy(tenant)

    async def _known(self, tenant: str, build: Build) -> None:
        """Sandboxes can be made of it when its build says that it is ready."""
        try:
            await self._engine.catalog.refresh()
        except RingfenceError as error:
            _log.info("build %s of %s: %s", build.id, tenant, error)

    @staticmethod
    def _failed(build: Build, error: Exception, log: Log) -> None:
        known = broken(error)
        if not isinstance(error, RingfenceError | TimeoutError):
            _log.error("build %s broke off", build.id, exc_info=error)
        step = known.step if isinstance(known, StepFailed) else ""
        log(known.cause, "error", step)
        build.status, build.reason = ERROR, Reason(known.cause, step)

    # -- what can go --------------------------------------------------------------------------------------------------

    def _tidy_soon(self) -> None:
        """Something ended that may have been the last to use an old template."""
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.get_running_loop().create_task(self._tidy_all())

    async def _tidy_all(self) -> None:
        for tenant in self._templates.tenants():
            await self.tidy(tenant)

    def _used(self, tenant: str) -> set[str]:
        """What sandboxes that live, or are paused, were made of."""
        paused = self._engine.store.sandboxes(tenant, Filter(limit=1000, state="paused"))
        return {sandbox.template for sandbox in [*self._engine.ledger.living_of(tenant), *paused]}

    async def tidy(self, tenant: str) -> None:
        """Remove what no tag stands for any more and no sandbox uses."""
        untold = [(template, _spare(template)) for template in self._templates.every(tenant)]
        if not any(spare or template.removed for template, spare in untold):
            return  # as usual: a sandbox that ends costs no look at the store
        used, now = self._used(tenant), time.time()
        for template, spare in untold:
            for build in spare:
                if build.status == WAITING and now - build.created_at > WAITS_SECONDS:
                    build.status, build.finished_at = ERROR, now
            ready = [build for build in spare if build.status == READY and build.node_name not in used]
            if ready and not await self._forget(tenant, [build.node_name for build in ready]):
                continue
            gone = [build.id for build in spare if build.status == ERROR]
            gone = gone if template.removed else gone[: max(0, len(gone) - MOST_ENDED)]
            for name in [*(build.id for build in ready), *gone]:
                template.builds.pop(name, None)
            if template.removed and not template.builds:
                self._templates.drop(tenant, template)
            elif ready or gone:
                self._templates.keep(tenant, template)


def _spare(template: Record) -> list[Build]:
    """The builds that no tag stands for."""
    kept = set() if template.removed else {tagged.build for tagged in template.tags.values()}
    return [build for build in template.builds.values() if build.id not in kept]
