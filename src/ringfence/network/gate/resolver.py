"""The sandboxes' resolver: answers for allowed names alone, with addresses that may be reached, and remembers them.

A name that is not on a sandbox's list is never asked for upstream: a question is itself a way to tell (attack 89).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import IPv4Address
from typing import Final

from ringfence.domain.egress import LEARNED, Floor
from ringfence.network.gate import dns
from ringfence.network.gate.guests import MOST_QUESTIONS, Guest, Pinned, Seen, Tell
from ringfence.network.gate.upstream import NoAnswer, Upstream

LEAST_TTL: Final = 5
MOST_TTL: Final = 300
MOST_ADDRESSES: Final = 16
STREAM_SECONDS: Final = 10.0
STREAM_QUESTIONS: Final = 64
EMPTY: Final = frozenset({dns.AAAA, dns.SVCB, dns.HTTPS})  # asked beside A by everybody: no IPv6, no hints


class Unresolved(Exception):
    """An allowed name that has no address one may connect to."""

    def __init__(self, code: int, why: str, extended: int = dns.BLOCKED) -> None:
        super().__init__(why)
        self.code = code
        self.extended = extended


class Resolver:
    """One for all sandboxes; what it remembers, it remembers for each alone."""

    def __init__(self, upstream: Upstream, floor: Floor, tell: Tell) -> None:
        self._upstream = upstream
        self._floor = floor
        self._tell = tell
        self._asking: dict[tuple[Guest, str], asyncio.Task[Pinned]] = {}

    async def resolve(self, guest: Guest, name: str) -> Pinned:
        """The addresses of an allowed name, pinned for this sandbox. Raises Unresolved."""
        known = guest.pins.fresh(name)
        if known is not None:
            return known
        if guest.asker.rehearses and not guest.asker.named(name):
            self._tell(guest, Seen("denied", "dns", name, "", 53, reason="no rule names it"))
            return guest.pretend(name, MOST_TTL)
        task = self._asking.get((guest, name))
        if task is None:
            task = self._asking[guest, name] = asyncio.get_running_loop().create_task(self._ask(guest, name))
            task.add_done_callback(lambda done: self._asked(guest, name, done))
        return await asyncio.shield(task)

    def _asked(self, guest: Guest, name: str, task: asyncio.Task[Pinned]) -> None:
        self._asking.pop((guest, name), None)
        if not task.cancelled():
            task.exception()  # whoever asked was told

    async def _ask(self, guest: Guest, name: str) -> Pinned:
        try:
            answer = await self._upstream.ask(name)
        except NoAnswer:
            raise Unresolved(dns.SERVFAIL, "no resolver of this host answers", dns.NETWORK_ERROR) from None
        if answer.code == dns.NXDOMAIN or (answer.code == dns.NOERROR and not answer.addresses):
            raise Unresolved(answer.code, "it has no IPv4 address")
        if answer.code != dns.NOERROR:
            raise Unresolved(dns.SERVFAIL, "the resolver of this host refuses it", dns.NETWORK_ERROR)
        good = tuple(each for each in answer.addresses if self._floor.permits(each))[:MOST_ADDRESSES]
        if not good:
            worst = answer.addresses[0]
            self._tell(guest, Seen("denied", "dns", name, str(worst), 53, reason=f"{worst} is below the floor"))
            raise Unresolved(dns.REFUSED, f"its address {worst} is private or otherwise below the operator's floor")
        if guest.asker.learns and not guest.asker.named(name):
            self._tell(guest, Seen("allowed", "dns", name, str(good[0]), 53, reason=LEARNED))
        if guest.asker.resolves(name):  # still: the policy may have been changed while we waited
            guest.pins.pin(name, good, max(LEAST_TTL, min(MOST_TTL, answer.ttl)))
        return guest.pins.fresh(name) or Pinned(good, 0)

    # -- answering ------------------------------------------------------------------------------------------

    async def answer(self, guest: Guest, data: bytes) -> bytes:
        """The answer to one question; empty where none is deserved."""
        try:
            query = dns.query_from(data)
        except dns.BadMessage:
            return dns.malformed(data)
        why = self._refusal(guest, query)
        if why:
            named = query.name or repr(dns.shown(query.question))
            self._tell(guest, Seen("denied", "dns", named, "", 53, reason=why))
            return dns.answer_to(query, dns.REFUSED, why=(dns.BLOCKED, f"ringfence: {why}"))
        if query.kind in EMPTY:
            return dns.answer_to(query, dns.NOERROR)
        try:
            pinned = await self.resolve(guest, query.name)
        except Unresolved as error:
            return dns.answer_to(query, error.code, why=(error.extended, f"ringfence: {error}"))
        return dns.answer_to(query, dns.NOERROR, pinned.addresses, LEAST_TTL)

    def _refusal(self, guest: Guest, query: dns.Query) -> str:
        if query.bad_name:
            return f"the name {query.bad_name}"
        if not self._floor.permits_name(query.name):
            return "the name is below the operator's floor"
        if not guest.asker.resolves(query.name):
            return "the name is not on this sandbox's list"
        if query.kind != dns.A and query.kind not in EMPTY:
            return f"only addresses are answered, not records of type {query.kind}"
        return ""

    async def serve_stream(self, guest: Guest, stream: socket.socket) -> None:
        """Questions over TCP, until the asker leaves, is silent or has asked enough."""
        reader, writer = await asyncio.open_connection(sock=stream, limit=dns.MOST_TCP)
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            for _ in range(STREAM_QUESTIONS):
                async with asyncio.timeout(STREAM_SECONDS):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    if size > dns.MOST_TCP:
                        break
                    answer = await self.answer(guest, await reader.readexactly(size))
                    if not answer:
                        break
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        writer.close()

    async def serve_datagram(self, guest: Guest, door: socket.socket, data: bytes, asker: tuple[str, int]) -> None:
        """One question by datagram. What cannot be answered at once for want of room is asked again."""
        if guest.questions >= MOST_QUESTIONS:
            return
        guest.questions += 1
        try:
            answer = await self.answer(guest, data)
            if answer:
                with contextlib.suppress(OSError):
                    door.sendto(answer, asker)
        finally:
            guest.questions -= 1


def own(address: IPv4Address) -> bool:
    """Whether an address is this host's: the kernel then connects from the very address it connects to.

    Nothing is sent. Addresses that come and go need no list that could be out of date.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except PermissionError:
            return True  # a broadcast address
        except OSError:
            return False  # no way there: the connection will say so
        return bool(probe.getsockname()[0] == str(address))
