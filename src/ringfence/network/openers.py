"""The node's handle on the openers: one process for each tenant whose sandboxes have secrets, while they have them.

One tenant's opener never knows another's secrets: were it taken over by what it reads, it could tell its own alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from ringfence.claims import Claims
from ringfence.domain.errors import PlatformFault
from ringfence.domain.secrets import Trust, authority_to, held_to
from ringfence.network.kept import Kept, Process, Words

OPENER: Final = "ringfence.network.opener"
FIRST_UID: Final = 0x1FFF_E000  # below the gate's, and nobody's either
UIDS: Final = 0x1000
REST_SECONDS: Final = 30.0  # after the last of its sandboxes has ended
Introduce = Callable[[str, socket.socket], None]


class Opener:
    """One tenant's."""

    def __init__(
        self, label: str, uid: int, roots: str, introduce: Introduce, gate: Callable[[], Awaitable[None]], name: str
    ) -> None:
        self.label = label
        self._name = name
        self.resting: asyncio.TimerHandle | None = None
        self.wards: dict[str, Trust] = {}
        self.uid = uid
        self._config = {"uid": uid, "roots": roots}
        self._introduce = introduce
        self._gate = gate
        self._hand: socket.socket | None = None
        self.kept = Kept("opener", self._launched, self._all, lambda _: None, self._died)

    async def _launched(self) -> Process:
        await self._gate()  # it dies with its gate, and there is no use for it before the next one
        self._died()
        self._hand, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Process.launch(OPENER, json.dumps(self._config).encode(), [theirs], self._name)

    def _all(self) -> list[Words]:
        """When it is ready: everything it must know, and the gate gets to know it."""
        if self._hand is not None:
            with contextlib.suppress(OSError):
                self._introduce(self.label, self._hand)
            self._died()
        return [_told(sandbox_id, trust) for sandbox_id, trust in self.wards.items()]

    def _died(self) -> None:
        if self._hand is not None:
            self._hand.close()
            self._hand = None

    async def tell(self, sandbox_id: str) -> None:
        """Tell it of one sandbox. Raises PlatformFault."""
        await self.kept.ready()
        await self.kept.told(_told(sandbox_id, self.wards[sandbox_id]))


def _told(sandbox_id: str, trust: Trust) -> Words:
    secrets = [held_to(held) for held in trust.held]
    return {"do": "set", "sandbox": sandbox_id, "secrets": secrets, "authority": authority_to(trust.authority)}


class Openers:
    """All of a node's."""

    def __init__(self, roots: str, introduce: Introduce, gate: Callable[[], Awaitable[None]], name: str = "") -> None:
        """`roots` is a file of the authorities by which servers are known; empty: the system's."""
        self._roots = roots
        self._name = name
        self._introduce = introduce
        self._gate = gate
        self._numbers = itertools.count()
        self._uids = Claims("opener", range(UIDS))
        self._of: dict[str, Opener] = {}  # by tenant
        self._opening = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def entrust(self, tenant: str, sandbox_id: str, trust: Trust) -> str:
        """Have a sandbox's secrets injected from when this returns; gives the opener's label, for the gate.

        The first of a tenant starts its opener. Raises SandboxRefused and PlatformFault.
        """
        async with self._opening:
            opener = self._of.get(tenant)
            if opener is None:
                number = self._uids.take()  # and no other server's opener has it
                words = (f"o{next(self._numbers)}", FIRST_UID + number, self._roots, self._introduce, self._gate)
                opener = Opener(*words, self._name)
                try:
                    await opener.kept.open()
                except BaseException:
                    self._uids.give(number)
                    raise
                self._of[tenant] = opener
        if opener.resting is not None:
            opener.resting.cancel()
            opener.resting = None
        opener.wards[sandbox_id] = trust
        try:
            await opener.tell(sandbox_id)
        except BaseException:
            await self.forget(sandbox_id)
            raise
        return opener.label

    def trust_of(self, sandbox_id: str) -> tuple[str, Trust] | None:
        """A sandbox's opener and what it was entrusted with."""
        found = ((each.label, each.wards[sandbox_id]) for each in self._of.values() if sandbox_id in each.wards)
        return next(found, None)

    async def forget(self, sandbox_id: str) -> None:
        """Drop a sandbox's secrets. Never fails: an opener that died has forgotten."""
        for tenant, opener in list(self._of.items()):
            if opener.wards.pop(sandbox_id, None) is not None:
                with contextlib.suppress(PlatformFault):
                    await opener.kept.told({"do": "forget", "sandbox": sandbox_id})
                if not opener.wards and opener.resting is None:
                    opener.resting = asyncio.get_running_loop().call_later(REST_SECONDS, self._rest, tenant)

    def _rest(self, tenant: str) -> None:
        """A tenant whose sandboxes have ended costs nothing, and its secrets are in no memory of this machine's."""
        opener = self._of.get(tenant)
        if opener is not None and not opener.wards:
            del self._of[tenant]
            task = asyncio.get_running_loop().create_task(self._ended(opener))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _ended(self, opener: Opener) -> None:
        try:
            await opener.kept.close()
        finally:
            self._uids.give(opener.uid - FIRST_UID)

    def renew(self) -> None:
        """The gate has died: so has every connection, and the next gate is introduced to new ones."""
        for opener in self._of.values():
            opener.kept.renew()

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return [opener.kept.pid for opener in self._of.values()]

    async def close(self) -> None:
        """End them all."""
        openers, self._of = list(self._of.values()), {}
        for opener in openers:
            if opener.resting is not None:
                opener.resting.cancel()
            await self._ended(opener)
        if self._leaving:
            await asyncio.wait(self._leaving)
