"""The node's handle on the gate: starts it, tells it the policies, and starts another when it dies.

The node keeps no copy of the doors: while there is no gate, nobody listens, and the kernel refuses every connection.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final

from ringfence.domain.egress import Floor, Policy, policy_to
from ringfence.domain.errors import PlatformFault
from ringfence.domain.gateways import Gateway, gateway_to
from ringfence.domain.secrets import Held, held_to
from ringfence.network.kept import Kept, Process, Words
from ringfence.network.router import Doors

GATE: Final = "ringfence.network.gate"
_TEXTS: Final = (
    "sandbox", "verdict", "protocol", "name", "address", "rule", "reason", "method", "path", "secrets", "misdirected",
)  # fmt: skip
_NUMBERS: Final = ("port", "sent", "received", "seconds", "swallowed")
_RARE: Final = ("secrets", "misdirected")  # left out where they say nothing
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ward:
    """A sandbox the gate is told about: what it may reach, and whose connections go through which opener."""

    id: str
    address: IPv4Address
    policy: Policy
    opener: str = ""
    held: tuple[Held, ...] = ()

    @property
    def words(self) -> Words:
        """For the gate, which needs no secret's value."""
        told = {"do": "set", "sandbox": self.id, "address": str(self.address), "policy": policy_to(self.policy)}
        told["gateway"] = self.policy.gateway
        if not self.held:
            return told
        return {**told, "opener": self.opener, "secrets": [held_to(held, value=False) for held in self.held]}


def resolvers_of(text: str) -> tuple[tuple[str, int], ...]:
    """The name servers in the text of a resolv.conf; the loopback where it has none, as the C library does."""
    rows = (line.split() for line in text.splitlines())
    found = tuple((row[1].partition("%")[0], 53) for row in rows if len(row) > 1 and row[0] == "nameserver")
    return found[:3] or (("127.0.0.1", 53),)


def event_from(words_: Any) -> Event | None:
    """An event as it may be passed on: known fields of the right kind and bounded size. The gate reads strangers."""
    if not isinstance(words_, dict):
        return None
    event: Event = {name: str(words_.get(name, ""))[:500] for name in _TEXTS}
    for name in _RARE:
        if not event[name]:
            del event[name]
    for name in _NUMBERS:
        value = words_.get(name, 0)
        event[name] = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    return event


class Keeper:
    """Keeps one gate alive, and keeps it informed."""

    def __init__(
        self,
        doors: Callable[[], Awaitable[Doors]],
        resolvers: tuple[tuple[str, int], ...],
        floor: Floor,
        heard: Callable[[Event], None],
        gateways: Mapping[str, Gateway] = MappingProxyType({}),
        name: str = "",
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self._doors = doors
        self._name = name
        self._floor = floor
        self._event = heard
        self._config = {
            "resolvers": [list(server) for server in resolvers],
            "floor": {
                "closed": [str(network) for network in floor.closed],
                "opened": [str(network) for network in floor.opened],
                "names": list(floor.names),
            },
            "gateways": {name: gateway_to(gateway) for name, gateway in gateways.items()},
        }
        self._wards: dict[IPv4Address, Ward] = {}
        self._openings: socket.socket | None = None  # by which the gate gets to know the openers
        self._gate = Kept("gate", self._launched, self._all, self._heard, died)

    @property
    def pid(self) -> int:
        """The gate's process; 0 while there is none."""
        return self._gate.pid

    @property
    def deaths(self) -> int:
        """How many gates have died."""
        return self._gate.deaths

    async def open(self) -> None:
        """Return when a gate serves. Raises SandboxRefused."""
        await self._gate.open()

    async def _launched(self) -> Process:
        doors = await self._doors()
        self._unintroduce()
        self._openings, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._openings.setblocking(False)
        return Process.launch(GATE, json.dumps(self._config).encode(), [*doors.all, theirs], self._name)

    def _all(self) -> list[Words]:
        return [ward.words for ward in self._wards.values()]

    def _heard(self, message: Words) -> None:
        event = event_from(message.get("event"))
        if event is not None:
            self._event(event)

    def introduce(self, opener: str, hand: socket.socket) -> None:
        """Give the gate the socket by which it hands connections to an opener. Raises OSError while there is none."""
        if self._openings is None:
            raise ConnectionError("there is no gate at the moment")
        socket.send_fds(self._openings, [opener.encode()], [hand.fileno()])

    def _unintroduce(self) -> None:
        if self._openings is not None:
            self._openings.close()
            self._openings = None

    async def ready(self) -> None:
        """Return once there is a gate. Raises PlatformFault."""
        await self._gate.ready()

    async def set(
        self, sandbox_id: str, address: IPv4Address, policy: Policy, opener: str = "", held: tuple[Held, ...] = ()
    ) -> None:
        """Let a sandbox reach what its policy allows, from when this returns. Raises PlatformFault.

        Connections that a changed policy does not allow are cut before this returns.
        """
        ward = self._wards[address] = Ward(sandbox_id, address, policy, opener, held)
        await self._gate.ready()
        await self._gate.told(ward.words)

    async def forget(self, address: IPv4Address) -> None:
        """Cut everything a sandbox has open, and let it reach nothing. Never fails: a gate that died has forgotten."""
        if self._wards.pop(address, None) is not None:
            with contextlib.suppress(PlatformFault):
                await self._gate.told({"do": "forget", "address": str(address)})

    async def close(self) -> None:
        """End the gate."""
        await self._gate.close()
        self._unintroduce()
