"""Which way to isolate a request gets: its own word, else its template's, else what suits the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ringfence.domain.errors import BadRequest
from ringfence.domain.template import Template
from ringfence.runtimes.base import Runtime

AUTO: Final = "auto"
NONE_ABSENT: Final[Mapping[str, str]] = {}
FOR_IMAGES: Final = ("container", "gvisor")  # in this order; the jail forks an interpreter it knows


class Isolation:
    """The runtimes of this node, and the reasons why others are absent. Never a weaker one than was asked for."""

    def __init__(self, *present: Runtime, absent: Mapping[str, str] = NONE_ABSENT) -> None:
        """The first is what "auto" means."""
        self.present = {runtime.name: runtime for runtime in present}
        self.absent = dict(absent)

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self.present.values())

    def choose(self, asked: str, template: Template, *, trusted: bool = False) -> Runtime:
        """The runtime for a request. Raises BadRequest with the reason when what was asked for cannot be had.

        `trusted`: whatever its files are, there are some of ours for its agent to run on.
        """
        foreign = template.image is not None and not trusted
        if asked != AUTO and template.runtime not in {AUTO, asked}:
            raise BadRequest(
                f"template {template.name} is isolated by {template.runtime}, not by {asked!r:.40}",
                code="isolation_conflict",
                remediation="leave isolation out, or change the template",
            )
        wanted = template.runtime if asked == AUTO else asked
        if wanted == AUTO:
            wanted = self._suited(foreign=foreign)
        if foreign and wanted not in FOR_IMAGES and wanted in self.present:
            raise BadRequest(
                f"{wanted} runs templates of our own making; {template.name} comes from an image",
                code="runtime_unsuited",
                remediation=f"use {' or '.join(FOR_IMAGES)}",
            )
        runtime = self.present.get(wanted)
        if runtime is None:
            why = self.absent.get(wanted, "there is no such runtime")
            raise BadRequest(
                f"isolation {wanted!r:.40} is not available here: {why}",
                code="runtime_absent" if wanted in self.absent else "unknown_runtime",
                remediation=f"use auto or {', '.join(self.present)}; see `ringfence doctor`",
            )
        return runtime

    def _suited(self, *, foreign: bool) -> str:
        if not foreign:
            return next(iter(self.present))
        return next((name for name in FOR_IMAGES if name in self.present), FOR_IMAGES[0])
