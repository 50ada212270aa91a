"""Which route of the REST plane is whose: a table, read on the path as it was sent, for names may hold %2F."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final
from urllib.parse import unquote

from ringfence.api.compat.e2b.asks import Ask, Reply
from ringfence.api.compat.e2b.control import Control
from ringfence.api.compat.e2b.insight import Insight
from ringfence.api.compat.e2b.templates.serving import TemplateRoutes
from ringfence.domain.errors import NotFound, Refused

Handler = Callable[[Ask], Awaitable[Reply]]
Pattern = tuple[str, ...]
# What begins a path of this face; on a host it shares with our own API nothing else is taken for E2B's.
FIRST: Final = frozenset({"sandboxes", "templates", "snapshots", "volumes", "volumecontent", "secrets", "v2", "v3"})
ANY: Final = "*"


class WrongMethod(Refused):
    """There is such a route, for another method."""

    status: ClassVar[int] = 405
    default_code: ClassVar[str] = "method_not_allowed"


class Unsupported(Refused):
    """A part of E2B's API that this server does not have."""

    status: ClassVar[int] = 501
    default_code: ClassVar[str] = "unsupported"


async def _absent(_: Ask) -> Reply:
    raise Unsupported("this server does not have this part of E2B's API")


def table_of(
    control: Control, insight: Insight, built: TemplateRoutes | None = None
) -> dict[Pattern, dict[str, Handler]]:
    """Every route."""
    one: Pattern = ("sandboxes", ANY)
    builds = _builds(built) if built is not None else {}
    return {
        **builds,
        ("sandboxes",): {"POST": control.create_v1, "GET": control.listed_v1},
        ("v2", "sandboxes"): {"POST": control.create, "GET": control.listed},
        ("sandboxes", "metrics"): {"GET": insight.latest},
        one: {"GET": control.info, "DELETE": control.kill},
        (*one, "timeout"): {"POST": control.timeout},
        (*one, "refreshes"): {"POST": control.refresh},
        (*one, "connect"): {"POST": control.connect},
        ("v2", *one, "connect"): {"POST": control.connect},
        (*one, "resume"): {"POST": control.resume},
        (*one, "pause"): {"POST": control.pause},
        (*one, "metrics"): {"GET": insight.metrics},
        (*one, "logs"): {"GET": insight.logs_v1},
        ("v2", *one, "logs"): {"GET": insight.logs},
        (*one, "network"): {"PUT": control.network},
        (*one, "snapshots"): {"POST": _absent},
        (*one, "fork"): {"POST": _absent},
        ("snapshots",): {"GET": _absent},
    }


def _builds(built: TemplateRoutes) -> dict[Pattern, dict[str, Handler]]:
    one: Pattern = ("templates", ANY)
    return {
        ("v3", "templates"): {"POST": built.request},
        ("v2", "templates"): {"GET": built.listed},
        ("templates",): {"GET": built.listed},
        ("templates", "tags"): {"POST": built.assign, "DELETE": built.remove},
        ("templates", "aliases", ANY): {"GET": built.alias},
        one: {"GET": built.info, "DELETE": built.delete},
        (*one, "tags"): {"GET": built.tags},
        (*one, "files", ANY): {"GET": built.files},
        ("v2", *one, "builds", ANY): {"POST": built.start},
        (*one, "builds", ANY, "status"): {"GET": built.status},
        (*one, "builds", ANY, "logs"): {"GET": built.logs},
    }


class Routes:
    """The table, asked."""

    def __init__(self, table: dict[Pattern, dict[str, Handler]]) -> None:
        self._table = table

    def find(self, method: str, raw_path: str) -> tuple[Handler, tuple[str, ...]]:
        """The handler, and what stood for each `*`. Raises NotFound, WrongMethod or Unsupported."""
        parts = tuple(unquote(part) for part in raw_path.split("/")[1:])
        for pattern, methods in self._table.items():
            values = _fit(pattern, parts)
            if values is not None:
                if method not in methods:
                    raise WrongMethod(f"{method} is not a method of this route")
                return methods[method], values
        if parts[0] in FIRST - {"sandboxes", "v2"} or parts[:2] == ("v2", "templates"):
            raise Unsupported("this server does not have this part of E2B's API")
        raise NotFound("no such route")


def _fit(pattern: Pattern, parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """What stands for each `*`; None where the path is another."""
    if len(pattern) != len(parts):
        return None
    if any(wanted not in {ANY, part} for wanted, part in zip(pattern, parts, strict=True)):
        return None
    return tuple(part for wanted, part in zip(pattern, parts, strict=True) if wanted == ANY)
