"""An image that a build begins with: its name and its registry's credentials, read once; and what it hands on."""

from __future__ import annotations

from typing import Any, Final

from ringfence.api.compat.e2b.templates import steps
from ringfence.api.compat.e2b.templates.steps import Inherited, StartBuild
from ringfence.domain.building import Pulled, Recipe, Setting, Source
from ringfence.domain.errors import BadRequest
from ringfence.templates.image.access import basic_auth
from ringfence.templates.image.reference import parse

ANY: Final = "*"  # of the operator's registries: every one at a public address
MOST_WORD: Final = 16 * 1024  # of a user's name or a password: tokens of clouds are long
CLOUDS: Final = {
    "aws": "username AWS and what `aws ecr get-login-password` prints, which is good for twelve hours",
    "gcp": "username oauth2accesstoken and what `gcloud auth print-access-token` prints, which is good for an hour",
}


def source_of(asked: StartBuild, registries: list[str]) -> Source | None:
    """The image to be pulled; None where nothing is. Raises BadRequest, which never repeats a credential.

    `registries` are the operator's: what may be pulled from. Its addresses are judged where it is pulled.
    """
    if not asked.from_image or asked.from_template or steps.ours(asked):
        return None
    username, password = _credentials(asked.from_image_registry)
    allow = tuple(name.lower() for name in registries if name != ANY)
    reference = parse(asked.from_image, frozenset(name.removeprefix("http://") for name in allow))
    names = {reference.registry, reference.registry.partition(":")[0]}
    if ANY not in registries and not names & {name.removeprefix("http://") for name in allow}:
        raise BadRequest(
            f"this server pulls no images from {reference.registry:.120}",
            code="image_not_allowed",
            remediation="use from_template(), or have the operator name it in e2b.builds.registries",
        )
    if username:
        basic_auth(reference.registry, username, password)
    return Source(asked.from_image, allow, username, password)


def _credentials(table: dict[str, Any] | None) -> tuple[str, str]:
    if table is None:
        return "", ""
    kind = table.get("type")
    if isinstance(kind, str) and kind in CLOUDS:
        raise BadRequest(
            f"this server does not ask {kind} for a token; take one, and give it as a password: {CLOUDS[kind]}",
            code="registry_unsupported",
            remediation="from_image(IMAGE, username=..., password=...)",
        )
    if kind != "registry":
        raise _bad("its type must be registry")
    if unknown := sorted(set(table) - {"type", "username", "password"}):
        raise _bad(f"{unknown[0]!r:.40} is no field of it")
    words = [table.get(name) for name in ("username", "password")]
    for word in words:
        if not isinstance(word, str) or not word or len(word) > MOST_WORD or not word.isprintable():
            raise _bad("a username and a password are needed, each a line of text")
    username, password = (str(word) for word in words)
    if ":" in username:
        raise _bad("its username has a colon")
    return username, password


def _bad(what: str) -> BadRequest:
    return BadRequest(f"fromImageRegistry: {what}", code="bad_registry")


def recipe_of(asked: StartBuild, pulled: Pulled) -> Recipe:
    """The whole recipe, with the image's variables. As E2B has it, its user and its folder are not taken over."""
    setting = Setting(env=tuple(sorted(pulled.env.items())))
    return steps.recipe_of(asked, pulled.name, Inherited(setting))
