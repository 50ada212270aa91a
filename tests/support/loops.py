"""An event loop in a thread, so that a test can stay a plain function and read a channel when it chooses to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

PATIENCE = 60.0  # seconds until a test gives up; nothing is timed with it
T = TypeVar("T")


class LoopThread:
    """Runs coroutines for a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def call(self, function: Callable[[], T]) -> T:
        """A plain call, on the loop's own thread."""

        async def wrapped() -> T:
            return function()

        return self.do(wrapped())

    def close(self) -> None:
        """Stop and join."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
