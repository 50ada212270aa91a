"""Events: written to the store, read back by whoever follows. The store is the only queue: a follower costs nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ringfence import wire
from ringfence.store.base import NewEvent, Store


class Feed:
    """Adds events, and wakes followers when some were committed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Follow the store's commits; called once, on the loop."""
        self._loop = asyncio.get_running_loop()
        self._store.on_events(self._committed)

    def stop(self) -> None:
        """Follow no more."""
        self._store.on_events(None)
        self._notify()

    def _committed(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def add(self, tenant: str, type_: str, *, sandbox: str | None = None, run: str | None = None, **data: Any) -> None:
        """Something happened, now."""
        self._store.event(NewEvent(tenant, type_, time.time(), sandbox, run, data))

    def put(self, event: NewEvent) -> None:
        """Something happened, at its own time."""
        self._store.event(event)

    def last(self, tenant: str) -> int:
        """The cursor of the newest event."""
        return self._store.last_event(tenant)

    async def after(self, tenant: str, cursor: int, seconds: float) -> list[wire.Event]:
        """Events past the cursor, oldest first; empty when none came for `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            changed = self._changed
            found = self._store.events(tenant, cursor, 100)
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            await asyncio.wait([changed], timeout=left)
