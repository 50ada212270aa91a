"""A template: the immutable recipe of a sandbox, read once from TOML and checked at the door."""

from __future__ import annotations

import dataclasses
import enum
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.errors import BadRequest
from ringfence.domain.limits import Limits, limits_from

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
DEB: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")
WHEEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(\[[A-Za-z0-9,._-]+\])?([=<>!~]=?[A-Za-z0-9.*+!,<>=~-]+)?")
ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class ZygoteMode(enum.StrEnum):
    """Whether a sandbox's interpreter is a fork of its tenant's zygote or exec'd afresh."""

    FORK = "fork"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How many warm sandboxes to keep: least, most, and the share of recent demand to hold ready."""

    least: int = 2
    most: int = 16
    ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Template:
    """Name, packages and defaults. Equal recipes have equal `recipe_digest`s (see templates/build.py)."""

    name: str
    description: str = ""
    debian: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
    runtime: str = "auto"
    zygote: ZygoteMode = ZygoteMode.FORK
    pool: PoolPolicy = field(default_factory=PoolPolicy)


def _matching(pattern: re.Pattern[str], what: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > 500:
        raise BadRequest(f"template: {what} must be a list of at most 500 names", code="bad_template")
    for value in values:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise BadRequest(f"template: {what} has an entry that is no valid name: {value!r:.80}", code="bad_template")
    return tuple(values)


def _env(table: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, dict):
        raise BadRequest("template: env must be a table", code="bad_template")
    for name, value in table.items():
        if not ENV_NAME.fullmatch(name) or not isinstance(value, str) or "\0" in value:
            raise BadRequest(f"template: env {name!r:.80} is not a valid variable", code="bad_template")
    return tuple(sorted(table.items()))


def _pool(table: object) -> PoolPolicy:
    known = {f.name for f in dataclasses.fields(PoolPolicy)}
    if not isinstance(table, dict) or set(table) - known:
        raise BadRequest(f"template: pool must be a table of {sorted(known)}", code="bad_template")
    policy = PoolPolicy(**table)
    numbers = (policy.least, policy.most, policy.ratio)
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise BadRequest("template: pool values must be numbers", code="bad_template")
    if not 0 <= policy.least <= policy.most <= 4096 or not 0 <= policy.ratio <= 100:
        raise BadRequest("template: pool needs 0 <= least <= most <= 4096, 0 <= ratio <= 100", code="bad_template")
    return policy


def template_from(table: dict[str, Any]) -> Template:
    """Check a parsed template file. Raises BadRequest on any unknown field or bad value."""
    known = {f.name for f in dataclasses.fields(Template)}
    unknown = set(table) - known
    if unknown:
        raise BadRequest(
            f"template: unknown fields {sorted(unknown)}", code="bad_template", remediation=f"use {sorted(known)}"
        )
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadRequest("template: name must be lower-case letters, digits and dashes", code="bad_template")
    zygote = table.get("zygote", "fork")
    if zygote not in {"fork", "none"}:
        raise BadRequest('template: zygote must be "fork" or "none"', code="bad_template")
    description, runtime = table.get("description", ""), table.get("runtime", "auto")
    if not isinstance(description, str) or not isinstance(runtime, str):
        raise BadRequest("template: description and runtime must be text", code="bad_template")
    return Template(
        name=name,
        description=description,
        debian=_matching(DEB, "debian", table.get("debian", [])),
        wheels=_matching(WHEEL, "wheels", table.get("wheels", [])),
        preload=_matching(MODULE, "preload", table.get("preload", [])),
        env=_env(table.get("env", {})),
        limits=limits_from(table.get("limits", {}), Limits()),
        runtime=runtime,
        zygote=ZygoteMode(zygote),
        pool=_pool(table.get("pool", {})),
    )


def template_from_toml(text: str) -> Template:
    """Read a template file. Raises BadRequest for anything that is not one."""
    try:
        return template_from(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"template: not valid TOML: {error}", code="bad_template") from None
