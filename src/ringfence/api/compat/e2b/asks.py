"""What the REST routes are asked, and what they reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ringfence.api.compat.e2b import shapes
from ringfence.api.compat.e2b.http import Exchange


@dataclass(frozen=True, slots=True)
class Ask:
    """An authenticated request: whose, for which sandbox, and by which of the versions of a route."""

    exchange: Exchange
    tenant: str
    parts: tuple[str, ...]  # what stood for each `*` of the route

    @property
    def sandbox(self) -> str:
        """The id in the path, without what the oldest clients put behind it."""
        return self.parts[0].partition("-")[0]

    async def read(self, kind: type[shapes.T]) -> shapes.T:
        """The body. Raises BadRequest."""
        return shapes.read(await self.exchange.body(shapes.MOST_BODY), kind)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; without a value it has no body."""

    status: int
    value: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    encoded: bytes | None = None
