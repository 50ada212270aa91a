"""Whose turn it is: one thing at a time is done to a sandbox that is paused, or on its way into a pause or out of it.

All in memory, in one thread: whoever comes first has the turn, whoever comes second is told so. A turn is a task of its
own and goes on when the one who asked for it leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from ringfence import wire
from ringfence.domain.errors import Conflict, NotFound, Overloaded

LETTING_GO_SECONDS: Final = 60.0  # for what is left of a pause once its record says that it is paused
WAKE_SECONDS: Final = 30.0  # how long a request waits for its sandbox to be resumed
PAUSING, RESUMING, REMOVING = "paused", "resumed", "removed"
Work = Callable[[], Coroutine[Any, Any, wire.Sandbox]]


def asleep(what: str = "is paused") -> Conflict:
    """The answer to whoever wants something of a paused sandbox."""
    return Conflict(
        f"the sandbox {what}",
        code="sandbox_paused",
        remediation="resume it first, or create sandboxes with wake to have that done when they are used",
    )


@dataclass
class Held:
    """A sandbox that is not simply running."""

    tenant: str
    wake: bool = False
    paused: bool = False  # its record says so
    doing: str = ""
    turn: asyncio.Task[wire.Sandbox] | None = None


class Turns:
    """The sandboxes of this machine that are paused or in a turn."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self.wake: Callable[[str, str], Coroutine[Any, Any, wire.Sandbox]] = _nobody_wakes

    def find(self, tenant: str, sandbox_id: str) -> Held | None:
        """What is known of it, for its owner alone."""
        held = self._held.get(sandbox_id)
        return held if held is not None and held.tenant == tenant else None

    def held(self, sandbox_id: str) -> bool:
        """Whether it is paused by its record; whoever's it is."""
        held = self._held.get(sandbox_id)
        return held is not None and held.paused

    def resuming(self, sandbox_id: str) -> bool:
        """Whether it is on its way out of a pause just now."""
        held = self._held.get(sandbox_id)
        return held is not None and held.turn is not None and held.doing == RESUMING

    def fell_asleep(self, tenant: str, sandbox_id: str, *, wake: bool) -> None:
        """Its record says that it is paused."""
        held = self._held.setdefault(sandbox_id, Held(tenant))
        held.paused, held.wake = True, wake

    def woke(self, sandbox_id: str) -> None:
        """Its record says something else."""
        held = self._held.get(sandbox_id)
        if held is not None:
            held.paused = False

    async def let_go(self, held: Held) -> None:
        """Wait out the end of a pause that is told of already: whoever read `paused` may act upon it."""
        if held.paused and held.turn is not None and held.doing == PAUSING:
            await asyncio.wait([held.turn], timeout=LETTING_GO_SECONDS)

    async def take(self, tenant: str, sandbox_id: str, doing: str, work: Work) -> wire.Sandbox:
        """Do this to it and nothing else meanwhile. Raises Conflict while it is another's turn, and what it raises."""
        held = self._held.setdefault(sandbox_id, Held(tenant))
        if held.turn is not None or held.tenant != tenant:
            raise Conflict(
                f"the sandbox is being {held.doing} just now", code="sandbox_busy", remediation="try again shortly"
            )
        held.doing = doing
        held.turn = asyncio.get_running_loop().create_task(self._done(sandbox_id, held, work))
        held.turn.add_done_callback(_looked_at)
        return await asyncio.shield(held.turn)

    async def _done(self, sandbox_id: str, held: Held, work: Work) -> wire.Sandbox:
        """The turn itself, and its end: nobody ever finds a turn that is over."""
        try:
            return await work()
        finally:
            held.turn = None
            if not held.paused:
                self._held.pop(sandbox_id, None)

    async def over(self, sandbox_id: str) -> None:
        """Return when nothing is being done to it."""
        while (held := self._held.get(sandbox_id)) is not None and held.turn is not None:
            await asyncio.wait({held.turn})

    def sleeps_on(self, tenant: str, sandbox_id: str) -> bool:
        """Whether using it would find it asleep and leave it so: reach() would say so at once."""
        held = self.find(tenant, sandbox_id)
        return held is not None and not held.wake and (held.turn is None or held.doing == PAUSING)

    async def reach(self, tenant: str, sandbox_id: str, seconds: float = WAKE_SECONDS) -> None:
        """Return when a sandbox can be used as far as is known here: at once, unless it is paused and wants to wake.

        Raises Conflict `sandbox_paused`, Overloaded `sandbox_waking` when it takes long, and what resuming raises.
        """
        if sandbox_id not in self._held:
            return
        try:
            async with asyncio.timeout(seconds):
                while (held := self.find(tenant, sandbox_id)) is not None:
                    await self._step(tenant, sandbox_id, held)
        except TimeoutError:
            raise Overloaded(
                "the sandbox is being resumed", code="sandbox_waking", remediation="try again in a few seconds"
            ) from None

    async def _step(self, tenant: str, sandbox_id: str, held: Held) -> None:
        if held.turn is None:
            if not held.wake:
                raise asleep()
            await self.wake(tenant, sandbox_id)
        elif held.doing == RESUMING:
            turn = held.turn
            await asyncio.wait({turn})
            if not turn.cancelled():
                turn.result()  # what went wrong is everybody's who waited
        elif held.doing == PAUSING and not held.wake:
            raise asleep("is being paused")
        else:
            await asyncio.wait({held.turn})

    async def stop(self) -> None:
        """Break off every turn: the server stops."""
        turns = [held.turn for held in self._held.values() if held.turn is not None]
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)


def _looked_at(turn: asyncio.Task[wire.Sandbox]) -> None:
    """Whoever asked may have left: nobody need complain that an error was not looked at."""
    if not turn.cancelled():
        turn.exception()


async def _nobody_wakes(_tenant: str, _sandbox_id: str) -> wire.Sandbox:
    raise NotFound("nothing is resumed here")
