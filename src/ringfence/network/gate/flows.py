"""One connection of a sandbox: where it meant to go, whether it may, and the bytes both ways.

A decision is made once, on the bytes that come first, and the connection then made goes to the very address that was
judged. Whatever ends it early ends it with a reset, at once; only plain HTTP and TLS have words for a refusal.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Final

from ringfence.domain.egress import MOST_PATH, Floor, Rule
from ringfence.domain.egress import Protocol as Way
from ringfence.network.gate import hello, http
from ringfence.network.gate.dialling import Down, dial
from ringfence.network.gate.guests import MOST_FLOWS, PLACEHOLDERS, Guest, Seen, Tell
from ringfence.network.gate.opening import Opening
from ringfence.network.gate.resolver import Resolver, Unresolved, own

FIRST_SECONDS: Final = 15.0  # within which a client must have said where it wants to go
POLITE_SECONDS: Final = 0.5  # to wait for words that can only change how a refusal is said
PATIENT_SECONDS: Final = 1.5  # the same where they will come: a busy machine may hold up who is about to say them
TALKATIVE: Final = frozenset({80, 443, 8080, 8443})  # ports where the client speaks first, by all custom
LINGER_SECONDS: Final = 2.0  # within which a refusal must be read
MOST_PIECES: Final = 64  # in which the first words may come
CHUNK: Final = 64 * 1024
MOST_DRAINED: Final = 1024  # chunks that nobody wants any more
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))
READABLE: Final = frozenset({Way.TLS, Way.HTTP})  # what first bytes can be
_ORIGINAL: Final = 80  # SO_ORIGINAL_DST
_PLACE: Final = struct.Struct(">2xH4s8x")
_RESET: Final = struct.pack("=ii", 1, 0)


class Denied(Exception):
    """Not allowed; its text is the reason."""

    def __init__(self, reason: str, name: str = "", way: Way = Way.TCP, misdirected: str = "") -> None:
        super().__init__(reason)
        self.name = name
        self.way = way
        self.misdirected = misdirected


class Unruled(Denied):
    """No rule allows it: what a rehearsal is for."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Where a connection goes, by which rule, and how to ask again once the policy is another."""

    rule: Rule
    address: IPv4Address
    name: str
    way: Way
    again: Callable[[Guest], Rule | None]
    first: bytes = b""  # what the server is sent before anything that still comes
    body: http.Body | None = None


def meant_for(connection: socket.socket) -> tuple[IPv4Address, int]:
    """Where the sandbox connected to, before the router turned it here. Raises OSError."""
    port, packed = _PLACE.unpack(connection.getsockopt(socket.SOL_IP, _ORIGINAL, _PLACE.size))
    return IPv4Address(packed), port


def reset(connection: socket.socket) -> None:
    """Close so that the other side hears it as refused rather than as done."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


class Flow:
    """One connection of one sandbox."""

    def __init__(self, guest: Guest, connection: socket.socket, resolver: Resolver, floor: Floor, tell: Tell) -> None:
        self._guest = guest
        self._connection = connection
        self._resolver = resolver
        self._floor = floor
        self._tell = tell
        self._address, self._port = meant_for(connection)
        self._grant: Grant | None = None
        self._task: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._sent = 0
        self._received = 0
        self._why_cut = ""
        self._heard = b""  # the client's first words
        self._asked = ("", "")  # method and path of a plain request
        self._opening: Opening | None = None  # in an opener's hands
        self._finder = guest.entrusted.finder() if guest.entrusted is not None else None

    # -- what its guest may do to it ------------------------------------------------------------------------

    def still_allowed(self) -> bool:
        """Whether the policy as it is now has a rule for it; one that is not judged yet will be by the new one."""
        if self._guest.spent:
            return False
        return self._grant is None or self._grant.again(self._guest) is not None

    def cut(self, reason: str) -> None:
        """End it at once."""
        if not self._why_cut and self._task is not None:
            self._why_cut = reason
            self._task.cancel()

    # -- its life -------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Judge it, carry it, tell of it."""
        self._task = asyncio.current_task()
        self._guest.flows.add(self)
        try:
            await self._serve()
        except Denied as error:
            self._say("denied", str(error), error.name, error.way, self._wanted(error), error.misdirected)
            await self._refuse(error)
        except (OSError, TimeoutError) as error:
            await self._done("failed", _words(error))
        except asyncio.CancelledError:
            self._say("cut", self._why_cut or "the gate is closing")
            raise
        finally:
            self._guest.flows.discard(self)
            reset(self._connection)
            if self._opening is not None:
                self._opening.cut()

    def _wanted(self, error: Denied) -> str:
        """In a rehearsal: the rule that would have allowed it. A name that was never resolved here could not be one."""
        if not self._guest.asker.rehearses or not isinstance(error, Unruled):
            return ""
        named = error.name and self._guest.pins.was_given(error.name, self._address)
        if named:
            return Rule(error.name, ports=(self._port,), protocol=error.way).text
        return Rule(cidr=f"{self._address}/32", ports=(self._port,), protocol=Way.TCP).text

    def _say(
        self, verdict: str, reason: str, name: str = "", way: Way = Way.TCP, wanted: str = "", misdirected: str = ""
    ) -> None:
        grant, opening = self._grant, self._opening
        seen = Seen(
            verdict,
            str(grant.way if grant else way),
            grant.name if grant else name,
            str(grant.address if grant else self._address),
            self._port,
            grant.rule.text if grant else wanted,
            reason or (grant.rule.reason if grant else ""),
            self._sent,
            self._received,
            round(time.monotonic() - self._began, 3),
            *self._asked,
            ",".join(opening.secrets) if opening else "",
            misdirected or (opening.misdirected if opening else ""),
        )
        self._tell(self._guest, seen)

    async def _done(self, verdict: str, reason: str) -> None:
        """Tell what came of it; an opener knows that better than who only saw bytes go by."""
        opening = self._opening
        if opening is not None:
            await opening.last_word()
            verdict, reason = (opening.verdict, opening.reason) if opening.verdict else (verdict, reason)
        self._say(verdict, reason)

    async def _serve(self) -> None:
        if len(self._guest.flows) > MOST_FLOWS:
            raise Denied(f"more than {MOST_FLOWS} connections at once")
        if self._guest.spent:
            raise Denied("the sandbox has used up the bytes it may send and receive")
        grant = await self._judged()
        if grant.again(self._guest) is None:  # names were resolved meanwhile
            raise Denied("the policy was changed", grant.name, grant.way)
        self._grant = grant
        server = self._handed(grant, await self._connected(grant))
        try:
            await self._carry(server, grant)
        except BaseException:
            reset(server)
            raise
        server.close()
        await self._done("allowed", "")
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._drained()
        self._connection.close()

    # -- judging --------------------------------------------------------------------------------------------

    async def _judged(self) -> Grant:
        try:
            grant = self._by_address()
        except Denied as why:
            if self._port not in TALKATIVE and not self._guest.asker.rehearses:
                raise
            raise await self._in_its_language(why) from None
        if grant is None and self._guest.asker.learns:
            return await self._learned()
        return grant or await self._read(self._guest.asker.reads(self._port), FIRST_SECONDS)

    def _by_address(self) -> Grant | None:
        """What can be said before a word was heard; None if it depends on the client's words."""
        address, port = self._address, self._port
        if self._guest.asker.rehearses and address in PLACEHOLDERS:
            name = next(iter(self._guest.pins.names_of(address)), "")
            raise Unruled(f"no rule for {name or address} at port {port}", name)
        if not self._floor.permits(address):
            raise Denied(f"{address} is private or otherwise below the operator's floor")
        rule = self._guest.asker.by_address(address, port)
        if rule is not None:
            return Grant(rule, address, "", Way.TCP, lambda guest: guest.asker.by_address(address, port))
        pinned = self._guest.by_pin(address, port)
        if pinned is not None:
            name = pinned[0]
            return Grant(pinned[1], address, name, Way.TCP, lambda g: g.asker.by_name(name, port, Way.TCP))
        if not self._guest.asker.reads(port):
            known = ", ".join(self._guest.pins.names_of(address)[:3])
            raise Unruled(f"no rule for {known or address} at port {port}", known)
        return None

    async def _learned(self) -> Grant:
        """While learning: where its words say, else to the name its address was given for, else just there."""
        address, port = self._address, self._port
        name = next(iter(self._guest.pins.names_of(address)), "")
        if name:
            try:
                return await self._read(READABLE, FIRST_SECONDS if port in TALKATIVE else POLITE_SECONDS)
            except Denied as why:
                if why.way is not Way.TCP:
                    raise

        def again(guest: Guest) -> Rule | None:
            return guest.asker.otherwise(name, address, port)

        rule = again(self._guest)
        if rule is None:
            raise Denied("the policy was changed", name)
        return Grant(rule, address, name, Way.TCP, again, self._heard)

    async def _in_its_language(self, why: Denied) -> Denied:
        """The same refusal, as one that the client understands, if it says at once which language is its own."""
        try:
            await self._read(frozenset(), PATIENT_SECONDS if self._port in TALKATIVE else POLITE_SECONDS)
        except Denied as heard:
            if heard.way is not Way.TCP:
                if self._guest.asker.rehearses and isinstance(why, Unruled) and not why.name:
                    return Unruled(str(why), heard.name, heard.way)  # by its address alone a rule could allow it
                below = not self._floor.permits(self._address) and not isinstance(why, Unruled)
                return Denied(str(why), heard.name, heard.way) if below else heard
        return why

    async def _read(self, ways: frozenset[Way], seconds: float) -> Grant:
        """Let the client speak first, and take its word for the name but not for the address."""
        data = b""
        try:
            async with asyncio.timeout(seconds):
                for _ in range(MOST_PIECES):
                    more = await asyncio.get_running_loop().sock_recv(self._connection, CHUNK)
                    if not more:
                        raise Denied("the client left before it said where it wants to go")
                    data += more
                    self._heard = data
                    grant = await self._by_first_bytes(data, ways)
                    if grant is not None:
                        return grant
        except TimeoutError:
            raise Denied(f"the client did not say within {seconds:g} s where it wants to go") from None
        raise Denied("the client says where it wants to go in too many pieces")

    async def _by_first_bytes(self, data: bytes, ways: frozenset[Way]) -> Grant | None:
        if data[0] == 22:
            return await self._by_hello(data, ways)
        if http.looks_like(data) or data.startswith(b"PRI "):
            return await self._by_head(data, ways)
        raise Denied(f"neither TLS nor HTTP, and port {self._port} has no rule for other protocols")

    async def _by_hello(self, data: bytes, ways: frozenset[Way]) -> Grant | None:
        try:
            name = hello.server_name(data)
        except hello.BadHello as error:
            raise Denied(str(error), way=Way.TLS) from None
        if name is None:
            return None
        rule = self._guest.asker.by_name(name, self._port, Way.TLS) if Way.TLS in ways else None
        if rule is None or not self._floor.permits_name(name):
            raise Unruled(f"no rule for TLS to {name} at port {self._port}", name, Way.TLS)
        port, address = self._port, await self._address_of(name, Way.TLS)
        return Grant(rule, address, name, Way.TLS, lambda g: g.asker.by_name(name, port, Way.TLS), data)

    async def _by_head(self, data: bytes, ways: frozenset[Way]) -> Grant | None:
        try:
            parsed = http.head_from(data)
            if parsed is None:
                return None
            head, size = parsed
            look = partial(self._look, head.host, Way.HTTP)
            look(data[:size])
            body = http.Body(head.length, look)
            first = head.onward + body.feed(data[size:])
        except http.BadRequestHead as error:
            raise Denied(f"not a plain request: {error}", way=Way.HTTP) from None
        if head.port != self._port:
            raise Denied(f"its Host is for port {head.port}, but it came to {self._port}", head.host, Way.HTTP)
        self._asked = head.method, head.path[: MOST_PATH + 1]
        rule = self._by_request(self._guest, head) if Way.HTTP in ways else None
        if rule is None or not self._floor.permits_name(head.host):
            raise Unruled(f"no rule for {head.method} http://{head.host}{head.path:.200}", head.host, Way.HTTP)
        address = await self._address_of(head.host, Way.HTTP)
        return Grant(rule, address, head.host, Way.HTTP, lambda g: self._by_request(g, head), first, body)

    def _by_request(self, guest: Guest, head: http.Head) -> Rule | None:
        return guest.asker.by_request(head.host, self._port, head.method, head.path)

    async def _address_of(self, name: str, way: Way) -> IPv4Address:
        """An address of an allowed name, resolved here; the client's own choice if it is one of them.

        A client that comes to an address it was never given for this name is after something else behind that
        address than what its words say (fronting, attack 90).
        """
        if not self._guest.pins.was_given(name, self._address):
            raise Denied(f"{self._address} was never resolved for {name} here", name, way)
        try:
            found = await self._resolver.resolve(self._guest, name)
        except Unresolved as error:
            raise Denied(f"{name} cannot be resolved: {error}", name, way) from None
        return self._address if self._address in found.addresses else found.addresses[0]

    # -- carrying -------------------------------------------------------------------------------------------

    async def _connected(self, grant: Grant) -> socket.socket:
        """A connection to exactly the address that was judged."""
        if not self._floor.permits(grant.address) or own(grant.address):
            self._grant = None  # no rule allows it, whatever it says
            raise Denied(f"{grant.address} is this host's own, or below the operator's floor", grant.name, grant.way)
        try:
            server = await dial(self._guest.gateway, grant.address, self._port)
        except Down as down:
            raise Denied(str(down), grant.name, grant.way) from None
        for each in (server, self._connection):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in KEEPALIVE:
                each.setsockopt(socket.IPPROTO_TCP, option, value)
        return server

    def _handed(self, grant: Grant, server: socket.socket) -> socket.socket:
        """The server; or, where a secret may be sent to it, the opener that stands between."""
        trust = self._guest.entrusted
        if trust is None or grant.way is not Way.TLS or not trust.opens(grant.name, self._port):
            return server
        try:
            self._opening = trust.hands.to(trust.label).open(self._guest.id, grant.name, server)
        except OSError:
            reset(server)
            raise
        return self._opening.near

    def _look(self, name: str, way: Way, data: bytes) -> None:
        """A placeholder that leaves unencrypted is on its way to where its secret does not belong."""
        secret = self._finder.feed(data) if self._finder is not None else ""
        if secret:
            raise Denied(f"the placeholder of secret {secret} was sent unencrypted", name, way, secret)

    async def _carry(self, server: socket.socket, grant: Grant) -> None:
        await asyncio.get_running_loop().sock_sendall(server, grant.first)
        self._count(len(grant.first), 0)
        up = asyncio.ensure_future(self._ending(self._up(server, grant), server))
        down = asyncio.ensure_future(self._ending(self._down(server), self._connection))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                await down
            else:
                down.result()
                if grant.body is None and self._opening is None:
                    await up  # else: one request, one answer; or nobody there any more to hear it
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _ending(self, one_way: Coroutine[Any, Any, None], towards: socket.socket) -> None:
        """An opener that has said its last word hangs up, with bytes unread or not: that is an end like any other."""
        try:
            await one_way
        except (BrokenPipeError, ConnectionResetError):
            if self._opening is None:
                raise
            with suppress(OSError):
                towards.shutdown(socket.SHUT_WR)

    async def _up(self, server: socket.socket, grant: Grant) -> None:
        loop, body = asyncio.get_running_loop(), grant.body
        while data := await loop.sock_recv(self._connection, CHUNK):
            if grant.way is Way.TCP:
                self._look(grant.name, Way.TCP, data)
            if body is not None:
                try:
                    data = body.feed(data)
                except http.BadRequestHead as error:
                    raise OSError(f"the request was broken off: {error}") from None
            if data:
                await loop.sock_sendall(server, data)
                self._count(len(data), 0)
            await asyncio.sleep(0)  # others' turn: a pair of ready sockets never waits by itself
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    async def _down(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, CHUNK):
            await loop.sock_sendall(self._connection, data)
            self._count(0, len(data))
            await asyncio.sleep(0)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _count(self, sent: int, received: int) -> None:
        self._sent += sent
        self._received += received
        self._guest.bytes += sent + received
        if self._guest.spent:
            raise OSError("the sandbox has used up the bytes it may send and receive")

    async def _drained(self) -> None:
        """Hear the client out: closing with bytes unread resets, and a reset overtakes the words before it."""
        for _ in range(MOST_DRAINED):
            if not await asyncio.get_running_loop().sock_recv(self._connection, CHUNK):
                return
            await asyncio.sleep(0)

    async def _refuse(self, error: Denied) -> None:
        """Say no in the client's own language, where it has one, and let it hear that."""
        word = {Way.TLS: hello.ACCESS_DENIED, Way.HTTP: http.refusal(str(error))}.get(error.way, b"")
        if not word or self._received:
            return  # in the middle of an answer there is no place for another
        loop = asyncio.get_running_loop()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await loop.sock_sendall(self._connection, word)
                self._connection.shutdown(socket.SHUT_WR)
                await self._drained()


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
