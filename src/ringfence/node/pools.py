"""Warm sandboxes: one pool per tenant, template and shape of limits; handed out once, never taken back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.errors import Overloaded, PlatformFault, RingfenceError
from ringfence.domain.limits import Limits
from ringfence.domain.template import PoolPolicy
from ringfence.node.live import Live

RATE_WINDOW: Final = 5.0  # seconds of demand that decide how many to hold
START_SECONDS: Final = 0.02  # what a start takes under load, rounded up
RETRY_SECONDS: Final = 1.0  # after a failed start with nobody waiting
UNUSED_SECONDS: Final = 600.0  # a pool nobody asked for this long is emptied

Start = Callable[[], Awaitable[Live]]
End = Callable[[Live], None]


@dataclass(frozen=True)
class PoolKey:
    """Two requests share a pool only if a sandbox made for one is exactly right for the other."""

    tenant: str
    template: str
    digest: str
    shape: tuple[float, ...]
    runtime: str
    one_shot: bool
    lone: bool = False
    networked: bool = False


@dataclass(eq=False)
class Pool:
    """Warm sandboxes of one kind."""

    policy: PoolPolicy
    start: Start
    end: End
    slots: asyncio.Semaphore  # how many starts the whole node makes at once
    idle: deque[Live] = field(default_factory=deque)
    _waiters: deque[asyncio.Future[Live]] = field(default_factory=deque)
    _taken: deque[float] = field(default_factory=deque)
    _starting: set[asyncio.Task[None]] = field(default_factory=set)
    _last_used: float = field(default_factory=time.monotonic)
    _not_before: float = 0.0
    closed: bool = False

    async def take(self, deadline_seconds: float) -> Live:
        """A warm sandbox, for the caller alone. Raises Overloaded at the deadline, or why none can be had."""
        self._last_used = time.monotonic()
        self._taken.append(self._last_used)
        while self.idle:
            live = self.idle.popleft()
            if not live.link.lost.done():
                self.refill()
                return live
            self.end(live)
        waiter: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.refill()
        try:
            async with asyncio.timeout(deadline_seconds):
                return await waiter
        except TimeoutError:
            self._withdraw(waiter)
            raise Overloaded(
                "no sandbox became free in time",
                code="no_capacity",
                remediation="retry later, or give the node more cores or memory",
            ) from None
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise

    def _withdraw(self, waiter: asyncio.Future[Live]) -> None:
        """Whoever waited is gone; what came for it in this very moment is the next one's."""
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._arrived(waiter.result())

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiters)

    @property
    def last_used(self) -> float:
        """When it was last asked, on the monotonic clock."""
        return self._last_used

    def target(self) -> int:
        """How many to hold: the least, plus the share of recent demand that arrives while one starts."""
        now = time.monotonic()
        while self._taken and self._taken[0] < now - RATE_WINDOW:
            self._taken.popleft()
        rate = len(self._taken) / RATE_WINDOW
        return min(self.policy.most, self.policy.least + math.ceil(self.policy.ratio * rate * START_SECONDS))

    def refill(self) -> None:
        """Start as many as are missing; the node's semaphore paces them."""
        if self.closed:
            return
        waiting = sum(not w.done() for w in self._waiters)
        spare = self.target() if time.monotonic() >= self._not_before else 0
        for _ in range(waiting + spare - len(self.idle) - len(self._starting)):
            task = asyncio.get_running_loop().create_task(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start_one(self) -> None:
        async with self.slots:
            if self.closed:
                return
            try:
                live = await self.start()
            except Exception as error:  # noqa: BLE001 - whoever waits must hear why, whatever it was
                self._not_before = time.monotonic() + RETRY_SECONDS
                ours = PlatformFault(f"no sandbox can be started: {type(error).__name__}: {error}")
                self._fail_one(error if isinstance(error, RingfenceError) else ours)
                return
        self._arrived(live)

    def _arrived(self, live: Live) -> None:
        if self.closed:
            self.end(live)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(live)
                return
        self.idle.append(live)
        live.link.lost.add_done_callback(lambda _: self._died_idle(live))

    def _died_idle(self, live: Live) -> None:
        if live in self.idle:
            self.idle.remove(live)
            self.end(live)
            self._not_before = time.monotonic() + RETRY_SECONDS

    def _fail_one(self, error: RingfenceError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    def trim(self) -> None:
        """Called every few seconds: give back what demand no longer wants, and top up what it does."""
        if time.monotonic() - self._last_used > UNUSED_SECONDS:
            self.close()
            return
        target = self.target()
        while len(self.idle) > max(target, self.policy.least):
            self.end(self.idle.pop())
        self.refill()

    def close(self) -> None:
        """End every warm sandbox and start no more."""
        self.closed = True
        while self.idle:
            self.end(self.idle.popleft())

    async def finish(self) -> None:
        """Close, and wait for starts under way: what they made is ended too."""
        self.close()
        if self._starting:
            await asyncio.wait(list(self._starting))

    def describe(self) -> dict[str, Any]:
        """For status."""
        return {
            "idle": len(self.idle),
            "starting": len(self._starting),
            "waiting": len(self._waiters),
            "target": self.target(),
            "least": self.policy.least,
            "most": self.policy.most,
        }


def shape_of(limits: Limits) -> tuple[float, ...]:
    """The limits that are built into a sandbox when it is made; the others are the node's to enforce."""
    return (
        limits.memory_bytes,
        limits.cpus,
        limits.processes,
        limits.scratch_bytes,
        limits.scratch_files,
        limits.open_files,
        limits.cpu_seconds,
    )
