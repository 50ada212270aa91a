"""A template: the immutable recipe of a sandbox, read once from TOML and checked at the door."""

from __future__ import annotations

import dataclasses
import enum
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.egress import NO_FLOOR, NOTHING, Floor, Policy, policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.gateways import gateway_name
from ringfence.domain.limits import Limits, limits_from

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
DEB: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")
WHEEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(\[[A-Za-z0-9,._-]+\])?([=<>!~]=?[A-Za-z0-9.*+!,<>=~-]+)?")
ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ON_TIMEOUT: Final = ("stop", "pause")
RUNTIMES: Final = ("auto", "jail", "container", "gvisor")
# Only what could be a reference at all: its grammar is checked where images are fetched.
REFERENCE: Final = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]{0,511}")
DIGEST: Final = re.compile(r"(sha256:[0-9a-f]{64})?")
USER: Final = re.compile(r"([A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63})?)?")
WORD_BYTES: Final = 64 * 1024
WORDS: Final = 1024
PATH_BYTES: Final = 1024


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
class Image:
    """Where a template's files came from, and what the image says should be run in them."""

    reference: str  # as asked, without credentials
    digest: str  # sha256:... of the manifest; empty in a recipe that was not built yet
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = "/"
    user: str = ""  # as in the image: name, uid, uid:gid; empty is the image's root
    python: str = ""  # absolute path of a Python 3.8 or newer that was found in the files, empty if there is none


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
    image: Image | None = None
    egress: Policy = (
        NOTHING  # of a sandbox whose request says nothing of it; judged again by the floor where it is used
    )
    egress_gateway: str = ""  # by which its sandboxes leave, whatever their policy; empty: as they ask, or directly
    on_timeout: str = "stop"  # likewise: what becomes of one whose time is over
    wake: bool = False  # likewise: whether using it while it is paused resumes it


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


def _bad_image(what: str) -> BadRequest:
    return BadRequest(f"template: image {what}", code="bad_template")


def _words(what: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > WORDS:
        raise _bad_image(f"{what} must be a list of at most {WORDS} texts")
    for value in values:
        if not isinstance(value, str) or "\0" in value or len(value) > WORD_BYTES:
            raise _bad_image(f"{what} has an entry that is no text, or too long a one")
    return tuple(values)


def _variables(values: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        raise _bad_image("env must be a list of pairs")
    pairs = [_words("env", pair) for pair in values]
    if len(pairs) > WORDS or not all(ENV_NAME.fullmatch(name) for name, _ in pairs):
        raise _bad_image("env has a name that is none, or too many names")
    return tuple((name, value) for name, value in pairs)


def _absolute(what: str, value: object) -> str:
    """A path in the image that is spelt in the one plain way."""
    plain = isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) <= PATH_BYTES
    if not plain or {"..", "."} & set(str(value).split("/")):
        raise _bad_image(f"{what} must be an absolute path")
    return str(value)


def _image(value: object) -> Image | None:
    """A reference in a recipe, all fields in the catalog."""
    if value is None:
        return None
    table = {"reference": value, "digest": ""} if isinstance(value, str) else value
    known = {f.name for f in dataclasses.fields(Image)}
    if not isinstance(table, dict) or not {"reference", "digest"} <= set(table) <= known:
        raise _bad_image("must be a reference, as registry/name:tag or registry/name@sha256:...")
    for name, pattern in (("reference", REFERENCE), ("digest", DIGEST), ("user", USER)):
        text = table.get(name, "")
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise _bad_image(f"{name} is no valid one: {text!r:.120}")
    python = table.get("python", "")
    return Image(
        reference=table["reference"],
        digest=table["digest"],
        entrypoint=_words("entrypoint", table.get("entrypoint", [])),
        cmd=_words("cmd", table.get("cmd", [])),
        env=_variables(table.get("env", [])),
        workdir=_absolute("workdir", table.get("workdir", "/")),
        user=table.get("user", ""),
        python=_absolute("python", python) if python != "" else "",
    )


def _runtime(value: object) -> str:
    if value not in RUNTIMES:
        raise BadRequest(f"template: runtime must be one of {', '.join(RUNTIMES)}", code="bad_template")
    return str(value)


def _on_timeout(value: object) -> str:
    if value not in ON_TIMEOUT:
        raise BadRequest(f"template: on_timeout must be one of {', '.join(ON_TIMEOUT)}", code="bad_template")
    return str(value)


def _wake(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest("template: wake must be true or false", code="bad_template")
    return value


def template_from(table: dict[str, Any], floor: Floor = NO_FLOOR) -> Template:
    """Check a parsed template file. Raises BadRequest on any unknown field or bad value.

    `floor` is the operator's, where it is known: what it closes is then refused here, rather than where it is used.
    """
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
    description, image = table.get("description", ""), _image(table.get("image"))
    if not isinstance(description, str):
        raise BadRequest("template: description must be text", code="bad_template")
    for other in ("debian", "wheels", "preload"):
        if image and table.get(other):
            raise BadRequest(f"template: {other} cannot be added to an image", code="bad_template")
    return Template(
        name=name,
        description=description,
        debian=_matching(DEB, "debian", table.get("debian", [])),
        wheels=_matching(WHEEL, "wheels", table.get("wheels", [])),
        preload=_matching(MODULE, "preload", table.get("preload", [])),
        env=_env(table.get("env", {})),
        limits=limits_from(table.get("limits", {}), Limits()),
        runtime=_runtime(table.get("runtime", "auto")),
        zygote=ZygoteMode(zygote),
        pool=_pool(table.get("pool", {})),
        image=image,
        egress=policy_from(table.get("egress"), floor),
        egress_gateway=gateway_name(table.get("egress_gateway", ""), "template"),
        on_timeout=_on_timeout(table.get("on_timeout", "stop")),
        wake=_wake(table.get("wake", False)),
    )


def template_from_toml(text: str, floor: Floor = NO_FLOOR) -> Template:
    """Read a template file. Raises BadRequest for anything that is not one."""
    try:
        return template_from(tomllib.loads(text), floor)
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"template: not valid TOML: {error}", code="bad_template") from None
