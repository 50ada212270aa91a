"""The one thread that writes: it gathers what was queued for a moment and commits it together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

GATHER_SECONDS: Final = 0.02  # a queued row is durable within this and one commit
RETRY_SECONDS: Final = 0.2
MOST_QUEUED: Final = 200_000
_log: Final = logging.getLogger(__name__)

Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class Awaited:
    """Work whose result somebody waits for."""

    work: Work
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    hard: bool = False  # a power cut after the answer must not undo it

    def resolve(self, result: Any) -> None:
        """Hand the result, or the exception, to the waiter; on its own loop."""

        def deliver() -> None:
            if self.future.done():
                return
            if isinstance(result, Exception):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop closed: nobody waits any more
            self.loop.call_soon_threadsafe(deliver)


Statement = tuple[str, tuple[Any, ...]]


class Writer:
    """Owns the writing connection from start() to stop()."""

    def __init__(self, connection: sqlite3.Connection, committed: Callable[[], None]) -> None:
        self._connection = connection
        self._committed = committed
        self._queue: deque[Statement | Awaited] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = False
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Begin to write. Called after privileges are dropped: a thread keeps those it was born with."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """False while the last commit failed or too much waits."""
        return not self._broken and len(self._queue) < MOST_QUEUED

    def put(self, sql: str, values: tuple[Any, ...]) -> None:
        """Queue one statement."""
        self._queue.append((sql, values))
        if not self._wake.is_set():
            self._wake.set()

    async def ask(self, work: Work, *, hurry: bool = True, hard: bool = False) -> Any:
        """Run `work` in the next batch, now or with the others; returns after its commit, `hard`: on disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(Awaited(work, loop, future, hard))
        if hurry:
            self._hurry.set()
        self._wake.set()
        return await future

    def stop(self) -> None:
        """Write what is queued, then end the thread."""
        self._stopping = True
        self._hurry.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping or self._queue:
            self._wake.wait()
            self._hurry.wait(GATHER_SECONDS)
            self._wake.clear()
            self._hurry.clear()
            batch = self._drain()
            if batch:
                self._keep(batch)

    def _drain(self) -> list[Statement | Awaited]:
        batch: list[Statement | Awaited] = []
        try:
            while True:
                batch.append(self._queue.popleft())
        except IndexError:
            return batch

    def _keep(self, batch: list[Statement | Awaited]) -> None:
        """Commit the batch; a full or locked disk is waited for, a bad statement costs only itself."""
        while True:
            try:
                answers = self._attempt(batch)
                break
            except sqlite3.OperationalError as error:
                _log.error("the store cannot be written: %s", error)
                self._broken = True
                if self._stopping:
                    return
                self._hurry.wait(RETRY_SECONDS)
                self._hurry.clear()
        self._broken = False
        if any(waiter.hard for waiter, _ in answers):
            with contextlib.suppress(sqlite3.OperationalError):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # which syncs the log first
        for waiter, answer in answers:
            waiter.resolve(answer)
        self._committed()

    def _attempt(self, batch: list[Statement | Awaited]) -> list[tuple[Awaited, Any]]:
        answers: list[tuple[Awaited, Any]] = []
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for item in batch:
                if isinstance(item, Awaited):
                    answers.append((item, self._one(item.work)))
                else:
                    self._statement(item)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return answers

    def _statement(self, item: Statement) -> None:
        try:
            self._connection.execute(*item)
        except sqlite3.OperationalError:
            raise
        except (sqlite3.Error, ValueError, OverflowError):
            _log.exception("a row was refused by the store")

    def _one(self, work: Work) -> Any:
        self._connection.execute("SAVEPOINT one")
        try:
            answer = work(self._connection)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the one who asked
            self._connection.execute("ROLLBACK TO one")
            answer = error
        self._connection.execute("RELEASE one")
        return answer
