"""The templates that are built, by name, and the recipes they are built from."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringfence.domain.egress import NO_FLOOR, Floor, policy_to
from ringfence.domain.errors import BadRequest, NotFound, PlatformFault, RingfenceError
from ringfence.domain.template import Template, template_from, template_from_toml

RECIPE_FILE_BYTES: Final = 64 * 1024
OWNED: Final = "built-"  # begins the names of what tenants have built, and of nothing else
BUILTIN: Final = importlib.resources.files("ringfence.templates") / "builtin"


@dataclass(frozen=True, slots=True)
class Built:
    """A template with its root file system on disk; `digest` is the hash of everything in that root."""

    template: Template
    digest: str
    root: Path
    size_bytes: int
    built_at: float
    recipe: str
    owner: str = ""  # the tenant who built it; empty: it is everybody's
    trusted_root: Path | None = None  # then: the files of ours that its sandboxes' agents run on
    foreign: bool = False  # its files came from an image: that agent's interpreter has no library in them

    @property
    def python(self) -> str | None:
        """Where its sandboxes' source code finds an interpreter, empty: nowhere; None: it is a fork of the agent's."""
        image = self.template.image
        return image.python if self.foreign and image is not None else None


def builtin_names() -> list[str]:
    """Return the names of the templates that come with ringfence."""
    return sorted(file.name.removesuffix(".toml") for file in BUILTIN.iterdir() if file.name.endswith(".toml"))


def recipe_named(word: str, floor: Floor = NO_FLOOR) -> Template:
    """Read a template's recipe: a built-in one by its name, any other by the path of its .toml file.

    What it wants to reach is judged by `floor`, where the operator's is known, and again where it is used.
    """
    if word in builtin_names():
        return template_from_toml((BUILTIN / f"{word}.toml").read_text("utf-8"))
    if not word.endswith(".toml"):
        known = ", ".join(builtin_names())
        raise NotFound(
            f"no built-in template {word!r:.80}", remediation=f"use one of {known}, or the path of a .toml file"
        )
    try:
        with open(word, encoding="utf-8") as file:
            text = file.read(RECIPE_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read template file {word}: {error}", code="bad_template") from None
    if len(text) > RECIPE_FILE_BYTES:
        raise BadRequest(f"template file {word} is larger than 64 KiB", code="bad_template")
    return template_from_toml(text, floor)


def template_fields(template: Template) -> dict[str, Any]:
    """Return a template as plain data that `template_from` reads back to an equal template."""
    fields = dataclasses.asdict(template) | {"env": dict(template.env), "zygote": template.zygote.value}
    fields["egress"] = policy_to(template.egress)
    if template.image:
        # A list of pairs: unlike the template's own variables these may be in any order that matters.
        fields["image"] = _lists(fields["image"]) | {"env": [list(pair) for pair in template.image.env]}
    return fields


def _lists(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


class Catalog:
    """What is built in one templates directory: <digest>/root, <digest>/manifest and index/<name>.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = directory / "index"

    def load(self) -> dict[str, Built]:
        """Return every built template by name. Raises PlatformFault for an index entry that cannot be trusted."""
        return {file.stem: self.read(file.stem) for file in sorted(self.index.glob("*.json"))}

    def read(self, name: str) -> Built:
        """Return one built template. Raises NotFound when it is not built."""
        try:
            entry = json.loads((self.index / f"{name}.json").read_text())
            built = Built(
                digest=entry["digest"],
                root=self.directory / entry["digest"] / "root",
                size_bytes=entry["size_bytes"],
                built_at=entry["built_at"],
                recipe=entry["recipe"],
                **self._owned(entry),
            )
        except FileNotFoundError:
            raise NotFound(
                f"template {name} is not built", remediation=f"run: ringfence templates build {name}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RingfenceError) as error:
            raise self._unusable(name, f"its index entry is damaged ({type(error).__name__})") from error
        if not built.root.is_dir():
            raise self._unusable(name, "its root file system is gone")
        return built

    def _owned(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What an entry says of its template, and of whose it is."""
        return {"template": template_from(entry["template"])}

    def _owner_of(self, built: Built) -> dict[str, Any]:
        return {}

    def usable(self) -> list[Built]:
        """Return the built templates that are whole; used to find what a new build can start from."""
        found = []
        for file in sorted(self.index.glob("*.json")):
            try:
                found.append(self.read(file.stem))
            except RingfenceError:
                continue
        return found

    def record(self, built: Built) -> None:
        """Enter a built template under its name, replacing what was there, in one step."""
        entry = {
            "name": built.template.name,
            "digest": built.digest,
            "recipe": built.recipe,
            "size_bytes": built.size_bytes,
            "built_at": built.built_at,
            "template": _lists(template_fields(built.template)),
            **self._owner_of(built),
        }
        self.index.mkdir(mode=0o755, exist_ok=True)
        fresh = self.index / f".{built.template.name}.{os.getpid()}"
        fresh.write_text(json.dumps(entry, indent=2) + "\n")
        fresh.chmod(0o644)
        fresh.replace(self.index / f"{built.template.name}.json")

    def forget(self, name: str) -> None:
        """Take a name out; harmless when it is none."""
        (self.index / f"{name}.json").unlink(missing_ok=True)

    @staticmethod
    def _unusable(name: str, why: str) -> PlatformFault:
        return PlatformFault(
            f"template {name}: {why}", code="template_damaged", remediation=f"run: ringfence templates build {name}"
        )


class Owned(Catalog):
    """What tenants have built, in a directory of its own. `trusted` is the operator's templates directory."""

    def __init__(self, directory: Path, trusted: Path) -> None:
        super().__init__(directory)
        self._trusted = trusted

    def _owned(self, entry: dict[str, Any]) -> dict[str, Any]:
        root = self._trusted / entry["base"] / "root"
        if not entry["owner"] or not root.is_dir():
            raise self._unusable(entry["name"], "what it was built from is not here any more")
        # What is preloaded is imported from the files of ours: no image could have it.
        template = dataclasses.replace(template_from(entry["template"]), preload=tuple(entry["preload"]))
        foreign = entry.get("foreign", False) is True
        return {"template": template, "owner": entry["owner"], "trusted_root": root, "foreign": foreign}

    def _owner_of(self, built: Built) -> dict[str, Any]:
        template = dataclasses.replace(built.template, preload=())
        return {
            "owner": built.owner,
            "base": built.trusted_root.parent.name if built.trusted_root else "",
            "template": _lists(template_fields(template)),
            "preload": list(built.template.preload),
            "foreign": built.foreign,
        }


class Both(Catalog):
    """The operator's templates and those that tenants have built; which is which, a name tells."""

    def __init__(self, directory: Path, owned: Owned) -> None:
        super().__init__(directory)
        self.owned = owned

    def load(self) -> dict[str, Built]:
        """The operator's, as Catalog.load; of the tenants' those that are whole: one tenant's damage is its own."""
        return {**super().load(), **{built.template.name: built for built in self.owned.usable()}}

    def read(self, name: str) -> Built:
        """See Catalog.read."""
        return self.owned.read(name) if name.startswith(OWNED) else super().read(name)
