"""A build as frozen values: what is to be done, in order, as whom and where; and what of it is the same as before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

CACHE_VERSION: Final = 1  # raise it when a step comes to mean something else

Kind = Literal["RUN", "COPY", "WORKDIR"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a step, or a template's sandboxes, find set. `env` is in the order of its names."""

    user: str = "user"
    workdir: str = "/home/user"
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """What a COPY copies: the archive its client sent, and where its files go."""

    source: str
    target: str
    user: str
    mode: int  # 0: as in the archive
    files: str  # the hash the client gave the archive


@dataclass(frozen=True, slots=True)
class Step:
    """One step that does something. `number` is its place among all that the client sent, from 1."""

    number: int
    kind: Kind
    text: str  # as it is shown
    setting: Setting
    command: str = ""
    copy: Copy | None = None
    forced: bool = False

    def key(self, before: str) -> str:
        """What its outcome is cached by: all that went before, and all that decides what it does."""
        words = [CACHE_VERSION, before, self.kind, self.command, asdict(self.setting)]
        words.append(asdict(self.copy) if self.copy is not None else None)
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Source:
    """An image to be pulled, and what its registry wants to hear. `allow` are registries the operator names."""

    reference: str
    allow: tuple[str, ...] = ()
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that was pulled: the node's name of it, a digest of whose and what it is, and what it says of itself."""

    name: str
    digest: str
    env: Mapping[str, str]
    shell: str  # empty: it has none


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole build. `template` is what it builds upon, by the node's name of it."""

    template: str
    steps: tuple[Step, ...]
    setting: Setting = field(default_factory=Setting)
    start: str = ""
    ready: str = ""

    def keys(self, tenant: str, base: str) -> list[str]:
        """The cache's names for the outcome of each step. `base` is the digest of what it builds upon."""
        found, before = [], hashlib.sha256(json.dumps([tenant, base]).encode()).hexdigest()
        for step in self.steps:
            before = step.key(before)
            found.append(before)
        return found


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: a recipe, or what makes one of an image once it is here, for its variables are needed then."""

    recipe: Recipe
    base: str = ""  # the digest of what it builds upon
    source: Source | None = None
    finish: Callable[[Pulled], Recipe] | None = None  # with `source`; then `recipe` is what is known so far
