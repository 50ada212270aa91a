"""What a sandbox used and what happened to it: metrics and logs."""

from __future__ import annotations

import time
from typing import Any, Final

from ringfence import wire
from ringfence.api.compat.e2b import view
from ringfence.api.compat.e2b.asks import Ask, Reply
from ringfence.api.compat.e2b.records import Face, Registry
from ringfence.api.compat.e2b.refusals import missing
from ringfence.domain.errors import BadRequest, RingfenceError
from ringfence.engine.engine import Engine
from ringfence.store.base import Store

MOST_SAMPLES: Final = 720
MOST_LOGS: Final = 1000
SLACK_SECONDS: Final = 1.0  # a moment asked for in whole seconds
MOST_AT_ONCE: Final = 100


class Insight:
    """Metrics are taken when they are asked for; those taken before are kept while the api and the sandbox live."""

    def __init__(self, engine: Engine, store: Store, registry: Registry) -> None:
        self._engine = engine
        self._store = store
        self._registry = registry

    async def _sample(self, face: Face) -> dict[str, Any]:
        sandbox = await self._engine.sandboxes.get(face.tenant, face.id)
        if sandbox.ended_at is not None:
            raise missing(face.id)
        disk = 0
        if view.state_of(sandbox) == "running":
            disk = await self._engine.files.used(face.tenant, face.id)
        now, cpu = time.time(), sandbox.usage.cpu_seconds if sandbox.usage is not None else 0.0
        before, used = (face.samples[-1][0], face.samples[-1][1]) if face.samples else (sandbox.created_at, 0.0)
        point = view.metric(sandbox, now, max(0.0, cpu - used) / max(now - before, 0.01), disk)
        face.samples.append((now, cpu, point))
        del face.samples[:-MOST_SAMPLES]
        return point

    def _face(self, ask: Ask) -> Face:
        face = self._registry.mine(ask.tenant, ask.sandbox)
        if face is None:
            raise missing(ask.sandbox)
        return face

    async def metrics(self, ask: Ask) -> Reply:
        """The points between `start` and `end`, Unix seconds; now is one of them. Raises BadRequest."""
        face, query = self._face(ask), ask.exchange.query()
        start, end = _second(query, "start", 0.0), _second(query, "end", 2.0**40)
        await self._sample(face)
        return Reply(200, [p for at, _, p in face.samples if start - SLACK_SECONDS <= at <= end + SLACK_SECONDS])

    async def latest(self, ask: Ask) -> Reply:
        """The newest point of each of some sandboxes; those that are not there are left out."""
        text = ask.exchange.query().get("sandbox_ids", "")
        ids = [each.partition("-")[0] for each in text.split(",") if each]
        if not 1 <= len(ids) <= MOST_AT_ONCE:
            raise BadRequest(f"sandbox_ids names 1 to {MOST_AT_ONCE} sandboxes", code="bad_query")
        found: dict[str, Any] = {}
        for face in filter(None, (self._registry.mine(ask.tenant, each) for each in ids)):
            try:
                found[face.id] = await self._sample(face)
            except RingfenceError:
                continue
        return Reply(200, {"sandboxes": found})

    async def _events(self, ask: Ask) -> list[wire.Event]:
        face = self._face(ask)
        await self._store.flush()
        return self._store.events_about(face.tenant, face.id, MOST_LOGS)

    async def logs(self, ask: Ask) -> Reply:
        """What happened to it, oldest first."""
        return Reply(200, {"logs": [_entry(event) for event in await self._events(ask)]})

    async def logs_v1(self, ask: Ask) -> Reply:
        """The same, with lines as the first version of the route has them."""
        found = await self._events(ask)
        return Reply(200, {"logs": [_line(event) for event in found], "logEntries": [_entry(each) for each in found]})


def _second(query: dict[str, str], name: str, otherwise: float) -> float:
    text = query.get(name, "")
    if not text:
        return otherwise
    if not text.isdecimal() or len(text) > 12:
        raise BadRequest(f"{name} is in Unix seconds", code="bad_query")
    return float(text)


def _entry(event: wire.Event) -> dict[str, Any]:
    """An event as a log entry."""
    fields = {name: str(value)[:500] for name, value in event.data.items()}
    return {"timestamp": view.moment(event.time), "level": "info", "message": event.type, "fields": fields}


def _line(event: wire.Event) -> dict[str, Any]:
    """An event as a line, as the first version of the route has it."""
    words = " ".join(f"{name}={value!s:.200}" for name, value in event.data.items())
    return {"timestamp": view.moment(event.time), "line": f"{event.type} {words}".rstrip()}
