"""One call to a sandbox's services: whose sandbox, as which user, within which time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ringfence.api.compat.e2b.connect import ConnectError, Cut
from ringfence.api.compat.e2b.http import Exchange
from ringfence.api.compat.e2b.records import Face
from ringfence.api.compat.e2b.users import ACCOUNTS, Account
from ringfence.domain.errors import NodeLost, RingfenceError, SandboxLost
from ringfence.engine.engine import Engine

_ASLEEP: Final = frozenset({"sandbox_paused", "sandbox_busy"})
_GONE: Final = frozenset({"sandbox_ended", "not_found", "sandbox_not_found"})


class Call:
    """What every method is given."""

    def __init__(self, engine: Engine, face: Face, exchange: Exchange) -> None:
        self.engine = engine
        self.face = face
        self.exchange = exchange
        self.account: Account = ACCOUNTS["user"]
        self._began = asyncio.get_running_loop().time()

    @property
    def where(self) -> tuple[str, str]:
        """The tenant and the sandbox, as the engine's verbs take them."""
        return self.face.tenant, self.face.id

    def path(self, text: str) -> str:
        """A path as this call's user means it."""
        return self.account.resolved(text)

    def check_lost(self, error: Exception) -> None:
        """Raise Cut where an error means that the sandbox is no more; codes of its agent's begin otherwise."""
        if isinstance(error, Cut):
            raise error
        if isinstance(error, NodeLost) or (isinstance(error, RingfenceError) and error.code in _ASLEEP):
            raise Cut(sure=False) from None
        if isinstance(error, SandboxLost) or (isinstance(error, RingfenceError) and error.code in _GONE):
            raise Cut from None

    @asynccontextmanager
    async def within(self, seconds: float | None) -> AsyncIterator[None]:
        """Bound what is done inside, counted from the call's arrival. Raises ConnectError when the time is over."""
        try:
            async with asyncio.timeout_at(None if seconds is None else self._began + seconds):
                yield
        except TimeoutError:
            raise ConnectError("deadline_exceeded", "the call took longer than Connect-Timeout-Ms allows") from None
