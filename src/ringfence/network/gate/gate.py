"""The gate's two sides: the doors at which sandboxes knock, and the node's word on who may go where."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any, Final

from ringfence.domain.egress import Asker, Floor, policy_from
from ringfence.domain.errors import RingfenceError
from ringfence.domain.gateways import Gateway
from ringfence.domain.secrets import held_from
from ringfence.network import words
from ringfence.network.gate.flows import Flow, reset
from ringfence.network.gate.guests import Guest, Seen
from ringfence.network.gate.opening import Entrusted, Hands
from ringfence.network.gate.resolver import Resolver
from ringfence.network.gate.upstream import Upstream

MOST_CONNECTIONS: Final = 16_384
AT_A_TIME: Final = 64
MOST_UNSENT: Final = 4 * 1024 * 1024  # of events the node has not read
PAUSE_SECONDS: Final = 0.2  # when there are no descriptors left


class Gate:
    """All guests, all flows."""

    def __init__(
        self,
        control: asyncio.StreamWriter,
        upstream: Upstream,
        floor: Floor,
        gateways: dict[str, Gateway],
        hands: Hands,
    ) -> None:
        self._control = control
        self._gateways = gateways
        self._hands = hands
        self._floor = floor
        self._guests: dict[str, Guest] = {}
        self._resolver = Resolver(upstream, floor, self.tell)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the node's side ------------------------------------------------------------------------------------

    def tell(self, guest: Guest, seen: Seen) -> None:
        """An event, unless this sandbox makes too many or the node is behind; then it is counted."""
        behind = self._control.transport.get_write_buffer_size() > MOST_UNSENT
        if behind:
            guest.pace.swallowed += 1
        elif guest.pace.take():
            self._control.write(words.encode(seen.words(guest)))

    def hear(self, message: dict[str, Any]) -> None:
        """Carry out one word of the node's, and say so."""
        answer: dict[str, Any] = {"done": message.get("number")}
        try:
            self._do(message)
        except (RingfenceError, KeyError, TypeError, ValueError) as error:
            answer["error"] = f"{type(error).__name__}: {error}"[:500]
        self._control.write(words.encode(answer))

    def _do(self, message: dict[str, Any]) -> None:
        address = str(message["address"])
        if message["do"] == "forget":
            guest = self._guests.pop(address, None)
            if guest is not None:
                guest.leave()
                if guest.pace.swallowed:
                    self._control.write(words.encode(Seen("unrecorded", "").words(guest)))
            return
        policy = policy_from(message["policy"], self._floor, learn=True)  # the node has judged whether it may
        gateway = self._gateways[message["gateway"]] if message.get("gateway") else None
        entrusted = self._entrusted(message)
        known = self._guests.get(address)
        if known is not None and known.id == message["sandbox"]:
            known.adopt(policy, entrusted)
            return
        if known is not None:
            known.leave()
        asker, place = Asker.of(policy), IPv4Address(address)
        self._guests[address] = Guest(str(message["sandbox"]), place, asker, gateway, entrusted)

    def _entrusted(self, message: dict[str, Any]) -> Entrusted | None:
        if not message.get("secrets"):
            return None
        return Entrusted(self._hands, str(message["opener"]), tuple(map(held_from, message["secrets"])))

    # -- the sandboxes' side --------------------------------------------------------------------------------

    def open(self, connections: socket.socket, names_tcp: socket.socket, names_udp: socket.socket) -> None:
        """Answer at the doors from now on."""
        loop = asyncio.get_running_loop()
        loop.add_reader(connections, self._knocked, connections, self._carry)
        loop.add_reader(names_tcp, self._knocked, names_tcp, self._resolver.serve_stream)
        loop.add_reader(names_udp, self._asked, names_udp)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    def _knocked(self, door: socket.socket, serve: Any) -> None:
        for _ in range(AT_A_TIME):
            try:
                connection, (address, _) = door.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:
                self._rest(door, serve)
                return
            connection.setblocking(False)
            guest = self._guests.get(address)
            # No policy yet, or no longer: nobody speaks for it.
            if guest is None or len(self._tasks) >= MOST_CONNECTIONS:
                reset(connection)
            else:
                self._begin(serve(guest, connection))

    def _rest(self, door: socket.socket, serve: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(door)
        loop.call_later(PAUSE_SECONDS, loop.add_reader, door, self._knocked, door, serve)

    async def _carry(self, guest: Guest, connection: socket.socket) -> None:
        try:
            flow = Flow(guest, connection, self._resolver, self._floor, self.tell)
        except OSError:
            reset(connection)  # it is gone already
            return
        await flow.serve()

    def _asked(self, door: socket.socket) -> None:
        for _ in range(AT_A_TIME):
            try:
                data, asker = door.recvfrom(65_535)
            except OSError:
                return
            guest = self._guests.get(asker[0])
            if guest is not None and len(self._tasks) < MOST_CONNECTIONS:
                self._begin(self._resolver.serve_datagram(guest, door, data, asker))

    async def close(self) -> None:
        """End everything."""
        for task in list(self._tasks):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
