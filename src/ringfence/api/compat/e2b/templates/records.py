"""Which templates a tenant has built, by what names and tags: kept in the store, looked up here and nowhere else."""

from __future__ import annotations

import logging
import re
import secrets
import time
import uuid
from typing import Any, Final

import msgspec

from ringfence.api.compat.e2b.records import SHELL
from ringfence.api.compat.e2b.templates.steps import Inherited
from ringfence.domain.errors import BadRequest, NotFound
from ringfence.store.base import BuiltRow, Store

DEFAULT_TAG: Final = "default"
OWNED: Final = "built-"  # as the node calls them
MOST_TAGS: Final = 64
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
WAITING, BUILDING, READY, ERROR = "waiting", "building", "ready", "error"
_log: Final = logging.getLogger(__name__)


class Reason(msgspec.Struct, frozen=True):
    """Why a build failed, and at which step."""

    message: str
    step: str = ""


class Build(msgspec.Struct, kw_only=True):
    """One build of a template."""

    id: str
    tags: list[str]
    limits: dict[str, Any] = {}
    status: str = WAITING
    created_at: float = 0.0
    finished_at: float | None = None
    reason: Reason | None = None
    inherited: Inherited = Inherited()
    digest: str = ""
    size: int = 0
    cached: int = 0
    shell: str = SHELL  # as /bin/bash or /bin/sh; empty: an image without any

    @property
    def node_name(self) -> str:
        """What the node calls its outcome."""
        return OWNED + self.id.replace("-", "")


class Tagged(msgspec.Struct, frozen=True):
    """Which build a tag stands for, and since when."""

    build: str
    at: float


class Template(msgspec.Struct, kw_only=True):
    """A name of a tenant's, and what was built under it."""

    id: str
    name: str
    created_at: float
    updated_at: float
    builds: dict[str, Build] = {}
    tags: dict[str, Tagged] = {}
    removed: bool = False  # nobody finds it any more; what is still in use of it goes later

    def tagged(self, tag: str) -> Build | None:
        """The build a tag stands for."""
        known = self.tags.get(tag)
        return self.builds.get(known.build) if known is not None else None

    def bytes(self) -> int:
        """What its builds take."""
        return sum(build.size for build in self.builds.values())


def split(text: str) -> tuple[str, str]:
    """A name and its tag, as clients write them. Raises BadRequest for what is no name."""
    name, colon, tag = text.partition(":")
    if not NAME.fullmatch(name) or (colon and not TAG.fullmatch(tag)):
        raise BadRequest(
            f"{text!r:.140} is no template's name",
            code="bad_template_name",
            remediation="use lower-case letters, digits, '.', '_' and '-', and a tag behind a ':' if any",
        )
    return name, tag


def missing(text: str) -> NotFound:
    """The one answer for what never was, is gone, or is another's."""
    return NotFound(f"template {text[:140]!r} was not found", code="template_not_found")


class Templates:
    """All tenants' templates."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of: dict[str, dict[str, Template]] = {}

    def begin(self) -> list[tuple[str, Build]]:
        """Read back what an earlier process kept; gives the builds that it did not finish."""
        broken: list[tuple[str, Build]] = []
        for row in self._store.built():
            try:
                template = msgspec.json.decode(row.record, type=Template)
            except msgspec.MsgspecError:
                _log.error("the record of template %s cannot be read back", row.id)
                continue
            self._of.setdefault(row.tenant, {})[row.id] = template
            broken += [(row.tenant, b) for b in template.builds.values() if b.status in {WAITING, BUILDING}]
        return broken

    def keep(self, tenant: str, template: Template) -> None:
        """Make it known, and durable soon."""
        template.updated_at = time.time()
        self._of.setdefault(tenant, {})[template.id] = template
        self._store.built_saved(BuiltRow(tenant, template.id, msgspec.json.encode(template)))

    def drop(self, tenant: str, template: Template) -> None:
        """Forget it."""
        self._of.get(tenant, {}).pop(template.id, None)
        self._store.built_removed(tenant, template.id)

    def tenants(self) -> list[str]:
        """Who has any."""
        return list(self._of)

    def every(self, tenant: str) -> list[Template]:
        """A tenant's, what was removed included."""
        return list(self._of.get(tenant, {}).values())

    def of(self, tenant: str) -> list[Template]:
        """A tenant's, the newest first."""
        return sorted((t for t in self.every(tenant) if not t.removed), key=lambda t: -t.created_at)

    def named(self, tenant: str, name: str) -> Template | None:
        """By its id or its name."""
        return next((t for t in self.of(tenant) if name in {t.id, t.name}), None)

    def mine(self, tenant: str, name: str) -> Template:
        """The same. Raises NotFound."""
        found = self.named(tenant, name)
        if found is None:
            raise missing(name)
        return found

    def build(self, tenant: str, name: str, build: str) -> tuple[Template, Build]:
        """One of its builds. Raises NotFound."""
        template = self.mine(tenant, name)
        if build not in template.builds:
            raise NotFound(f"build {build[:60]!r} was not found", code="build_not_found")
        return template, template.builds[build]

    def ready(self, tenant: str, text: str) -> Build | None:
        """The build that `name`, `name:tag` or an id stands for; None where there is none that is ready."""
        name, _, tag = text.partition(":")
        template = self.named(tenant, name)
        build = template.tagged(tag or DEFAULT_TAG) if template is not None else None
        return build if build is not None and build.status == READY else None

    def new(self, tenant: str, name: str, tags: list[str], limits: dict[str, Any]) -> tuple[Template, Build]:
        """A build that waits to be told what to do, of a new template or one more of an old."""
        template, now = self.named(tenant, name), time.time()
        if template is None:
            fresh = "".join(secrets.choice(ALPHABET) for _ in range(20))
            template = Template(id=fresh, name=name, created_at=now, updated_at=now)
        build = Build(id=str(uuid.uuid4()), tags=tags, limits=limits, created_at=now)
        template.builds[build.id] = build
        self.keep(tenant, template)
        return template, build
