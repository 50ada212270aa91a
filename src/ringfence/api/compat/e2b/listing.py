"""Which sandboxes a list shows: the query's filters, and pages that stay put while sandboxes come and go."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl, unquote

from ringfence import wire
from ringfence.api.compat.e2b.records import Face
from ringfence.domain.errors import BadRequest

LARGEST: Final = 100
Pair = tuple[Face, wire.Sandbox]
STATES: Final = frozenset({"running", "paused"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A list's query, checked."""

    metadata: dict[str, str] = field(default_factory=dict)
    states: frozenset[str] = STATES
    limit: int = LARGEST
    after: tuple[float, str] | None = None
    ascending: bool = False
    started_after: float | None = None
    template: str | None = None


def metadata_of(text: str) -> dict[str, str]:
    """A metadata filter: a query string inside a parameter, its names and values encoded once more."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=100)
        return {unquote(name, errors="strict"): unquote(value, errors="strict") for name, value in pairs}
    except ValueError:
        raise BadRequest("metadata is not a query string", code="bad_query") from None


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest("startedAfter is no ISO 8601 moment", code="bad_query") from None


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= LARGEST:
        raise BadRequest(f"limit is a number from 1 to {LARGEST}", code="bad_query")
    return int(text)


def _states(text: str) -> frozenset[str]:
    found = frozenset(filter(None, text.split(",")))
    if not found <= STATES:
        raise BadRequest("state is running, paused or both", code="bad_query")
    return found or STATES


def token_of(pair: Pair) -> str:
    """Where the next page begins."""
    return base64.urlsafe_b64encode(f"{pair[1].created_at!r} {pair[1].id}".encode()).decode()


def _after(token: str) -> tuple[float, str]:
    try:
        created, _, name = base64.urlsafe_b64decode(token).decode().partition(" ")
        return float(created), name
    except (ValueError, binascii.Error):
        raise BadRequest("nextToken is not one of ours", code="bad_query") from None


def wanted(query: dict[str, str]) -> Wanted:
    """Read a list's query. Raises BadRequest; parameters we do not know are let be."""
    order = query.get("order") or "desc"
    if order not in {"asc", "desc"}:
        raise BadRequest("order is asc or desc", code="bad_query")
    return Wanted(
        metadata=metadata_of(query.get("metadata", "")),
        states=_states(query.get("state", "")),
        limit=_whole(query["limit"]) if query.get("limit") else LARGEST,
        after=_after(query["nextToken"]) if query.get("nextToken") else None,
        ascending=order == "asc",
        started_after=_moment(query["startedAfter"]) if query.get("startedAfter") else None,
        template=query.get("template") or None,
    )


def _fits(pair: Pair, asked: Wanted, state_of: Callable[[wire.Sandbox], str]) -> bool:
    face, sandbox = pair
    return (
        state_of(sandbox) in asked.states
        and all(face.record.metadata.get(name) == value for name, value in asked.metadata.items())
        and (asked.started_after is None or sandbox.created_at > asked.started_after)
        and asked.template in {None, face.record.template, sandbox.template}
    )


def page(pairs: list[Pair], asked: Wanted, state_of: Callable[[wire.Sandbox], str]) -> tuple[list[Pair], str | None]:
    """One page, and where the next begins when there is one."""
    fitting = sorted(
        (pair for pair in pairs if _fits(pair, asked, state_of)),
        key=lambda pair: (pair[1].created_at, pair[1].id),
        reverse=not asked.ascending,
    )
    if asked.after is not None:
        mark = asked.after
        fitting = [
            p
            for p in fitting
            if ((p[1].created_at, p[1].id) > mark) is asked.ascending and (p[1].created_at, p[1].id) != mark
        ]
    rest = len(fitting) > asked.limit
    shown = fitting[: asked.limit]
    return shown, token_of(shown[-1]) if rest else None
