"""Blocking calls in a thread, in order, as many at a time as have come together: one crossing pays for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Callable[[], Any], asyncio.Future[Any]]


class Batch:
    """For calls that take well under a millisecond each; what may wait longer belongs into a thread of its own."""

    def __init__(self, threads: Executor) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._waiting: list[Job] = []
        self._busy = False

    async def do(self, call: Callable[[], T]) -> T:
        """Make the call in the thread; returns or raises what it does. Cancelled before its turn, it is not made."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((call, future))
        if not self._busy:
            self._busy = True
            self._submit()
        return await future

    def _submit(self) -> None:
        jobs, self._waiting = self._waiting, []
        self._threads.submit(self._work, jobs)

    def _work(self, jobs: list[Job]) -> None:
        results: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        for call, future in jobs:
            if future.cancelled():
                continue  # what it was to make would be nobody's
            try:
                results.append((future, call(), None))
            except BaseException as error:  # noqa: BLE001 - carried over to whoever asked
                results.append((future, None, error))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._deliver, results)

    def _deliver(self, results: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        for future, result, error in results:
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
        self._busy = bool(self._waiting)
        if self._busy:
            self._submit()
