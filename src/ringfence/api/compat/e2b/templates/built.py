"""Templates that tenants build, put together; and what a sandbox that is made of one begins with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from ringfence import wire
from ringfence.api.compat.e2b.records import SHELL
from ringfence.api.compat.e2b.templates.records import Templates
from ringfence.api.compat.e2b.templates.running import Running
from ringfence.api.compat.e2b.templates.serving import TemplateRoutes, plain_name
from ringfence.api.compat.e2b.templates.uploads import Uploads
from ringfence.config import BuildSettings, E2bSettings
from ringfence.domain.building import Setting
from ringfence.domain.errors import Conflict
from ringfence.domain.limits import MIB
from ringfence.engine.builds import Builds, Rules, shell
from ringfence.engine.engine import Engine
from ringfence.engine.kept import Cache
from ringfence.engine.shelf import Shelf
from ringfence.store.base import Store

READY_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Chosen:
    """The template a sandbox is made of, by the node's name, and how its programs start."""

    name: str
    user: str = "user"
    workdir: str | None = None
    start: wire.Start | None = None
    ready: str = ""
    setting: Setting = field(default_factory=Setting)
    shell: str = SHELL


def rules_of(settings: BuildSettings) -> Rules:
    """The operator's settings as the engine's rules."""
    return Rules(
        at_once=settings.at_once,
        at_once_all=settings.at_once_all,
        seconds=settings.seconds,
        step_seconds=settings.step_seconds,
        ready_seconds=settings.ready_seconds,
        memory_bytes=settings.memory_mib * MIB,
        cpus=settings.cpus,
        disk_bytes=settings.disk_mib * MIB,
        files=settings.files,
        upload_bytes=settings.upload_mib * MIB,
        kept_bytes=settings.kept_mib * MIB,
        home_bytes=settings.home_mib * MIB,
        home_files=settings.home_files,
        log_lines=settings.log_lines,
        images_bytes=settings.images_mib * MIB,
        registry_seconds=settings.registry_seconds,
    )


class BuiltTemplates:
    """All of it."""

    def __init__(self, engine: Engine, store: Store, settings: E2bSettings, kept: Shelf) -> None:
        rules = rules_of(settings.builds)
        self._engine = engine
        self._shelf = kept
        self._rules = rules
        self._templates = Templates(store)
        cache = Cache(kept, rules.kept_bytes)
        builds = Builds(engine.node, cache, rules)
        self._running = Running(engine, builds, self._templates, settings.builds.template_mib * MIB)
        uploads = Uploads(cache, rules.upload_bytes, settings.builds.upload_url)
        self.routes = TemplateRoutes(engine, settings, self._templates, self._running, uploads)

    def begin(self) -> None:
        """The engine runs: nothing is kept of what an earlier process knew the names of, and its builds are over."""
        self._shelf.adopt([])
        self._running.begin()

    async def chosen(self, tenant: str, name: str) -> Chosen:
        """What a name means: the operator's templates come first, for theirs cannot be overwritten."""
        plain = plain_name(name)
        if self._engine.catalog.everybodys(plain):
            return Chosen(plain)
        built = self._templates.ready(tenant, name)
        if built is None:
            return Chosen(plain)
        setting, start, program = built.inherited.setting, None, built.shell or SHELL
        if built.inherited.start:
            words = shell(built.inherited.start, setting, program)
            start = wire.Start(argv=words["argv"], env=words["env"], cwd=words["cwd"], user=words["user"])
        ready = built.inherited.ready
        return Chosen(built.node_name, setting.user, setting.workdir, start, ready, setting, program)

    async def await_ready(self, tenant: str, sandbox_id: str, chosen: Chosen) -> None:
        """Return when what it began with says that it is ready. Raises Conflict; then there is no sandbox."""
        deadline = time.monotonic() + self._rules.ready_seconds
        words = shell(chosen.ready, chosen.setting, chosen.shell)
        try:
            while time.monotonic() < deadline:
                left = max(0.1, deadline - time.monotonic())
                request = wire.ProcessRequest(
                    argv=words["argv"], env=words["env"], cwd=words["cwd"], user=words["user"], timeout=left
                )
                ended = await self._engine.processes.collected(tenant, sandbox_id, request)
                if ended.exit.ok:
                    return
                await asyncio.sleep(READY_PAUSE)
        except BaseException:
            await self._engine.sandboxes.discard(tenant, sandbox_id, "it could not be seen to be ready")
            raise
        await self._engine.sandboxes.stop(tenant, sandbox_id, "it was not ready in time")
        raise Conflict(
            f"the sandbox was not ready within {self._rules.ready_seconds:g} s: {chosen.ready!r:.200}",
            code="template_not_ready",
            remediation="see what its start command says, in a sandbox made without it",
        )
