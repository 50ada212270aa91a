"""The one way out of the job that fetches: every connection is asked for here, checked by address, and counted.

The job has no network. Its client speaks to a proxy that is this module, in the builder. So a registry's redirects,
its token servers and the addresses that its names resolve to are all judged at one place, by the address that is
then connected to, and no more bytes come in than the image may have. Loopback is never asked of a proxy; the few
registries there that the operator allows have a door each at the same port, inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Final

from ringfence.domain.egress import Floor
from ringfence.network.gate.resolver import own
from ringfence.templates.image.access import Access
from ringfence.templates.image.reference import is_public

PROXY_PORT: Final = 3128
TENANTS_PORT: Final = 443  # of registries that a tenant names; others the operator has to
HEAD_BYTES: Final = 64 * 1024
CHUNK: Final = 64 * 1024
HEAD_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 15.0
CONNECTIONS: Final = 256
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost"})
_LINE: Final = re.compile(r"(?P<method>[A-Z]{3,7}) (?:http://)?(?P<place>[^/\s]+)(?P<path>/\S*)? HTTP/1\.[01]")
_PLACE: Final = re.compile(r"\[?(?P<host>[A-Za-z0-9.:_-]+?)\]?(?::(?P<port>[0-9]{1,5}))?")
_REFUSAL: Final = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_GONE: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_GRANTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"

Address = tuple[str, int]
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Denied(Exception):
    """An address that may not be spoken to."""


def doors(access: Access) -> dict[int, str]:
    """Ports of the loopback inside the job, and the registry that each one leads to."""
    found = {}
    for name in sorted(access.allowed):
        host, _, port = name.partition(":")
        if host in LOOPBACK:
            found[int(port or (80 if name in access.plain else 443))] = host
    return found


class Gateway:
    """Answers at the job's doors. `received` counts what came in, `denied` names what was refused."""

    def __init__(self, access: Access, most_bytes: int) -> None:
        self._access = access
        self._most = most_bytes
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.Task[None]] = set()
        self.received = 0
        self.heard = time.monotonic()
        self.denied: list[str] = []
        self.unreachable: list[str] = []

    @property
    def exhausted(self) -> bool:
        """Whether more was sent than the image may have."""
        return self.received > self._most

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Answer at the proxy's door, the first, and at those of loopback registries."""
        hosts = doors(self._access)
        for listener in listeners:
            port = listener.getsockname()[1]
            answer = self._straight((hosts[port], port)) if port in hosts else self._proxy
            server = await asyncio.start_server(self._tracked(answer), sock=listener, limit=HEAD_BYTES)
            self._servers.append(server)

    async def close(self) -> None:
        """End every connection."""
        for server in self._servers:
            server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _tracked(self, answer: Answer) -> Answer:
        async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is None or len(self._open) >= CONNECTIONS:
                writer.close()
                return
            self._open.add(task)
            try:
                await answer(reader, writer)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # the client hears it as a lost connection
            finally:
                self._open.discard(task)
                writer.close()

        return tracked

    def _straight(self, address: Address) -> Answer:
        async def straight(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._join(reader, writer, *await asyncio.open_connection(*address))

        return straight

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what the client asks of a proxy; connect it, or say no."""
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        asked = _LINE.fullmatch(line.decode("latin-1"))
        place = _PLACE.fullmatch(asked["place"]) if asked else None
        if asked is None or place is None:
            writer.write(_REFUSAL)
            return
        tunnel = asked["method"] == "CONNECT"
        address = place["host"].lower(), int(place["port"] or (443 if tunnel else 80))
        try:
            theirs = await self._connect(address, plain=not tunnel)
        except Denied:
            self.denied.append(f"{address[0]}:{address[1]}")
            writer.write(_REFUSAL)
            return
        except (OSError, TimeoutError, UnicodeError):  # the last: a name with an empty label, which is nobody's
            self.unreachable.append(f"{address[0]}:{address[1]}")
            writer.write(_GONE)
            return
        if tunnel:
            writer.write(_GRANTED)
        else:
            theirs[1].write(_plain_head(asked, rest))
        await self._join(reader, writer, *theirs)

    def _is_allowed(self, address: Address) -> bool:
        return address[0] in self._access.allowed or f"{address[0]}:{address[1]}" in self._access.allowed

    async def _connect(self, address: Address, *, plain: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the very address that was judged: a name that resolves otherwise the next time gains nothing."""
        host, port = address
        if plain and not {host, f"{host}:{port}"} & self._access.plain:
            raise Denied
        floor = self._access.floor if not self._is_allowed(address) else None
        if floor is not None and (port != TENANTS_PORT or not floor.permits_name(host.rstrip("."))):
            raise Denied
        loop, family = asyncio.get_running_loop(), socket.AF_UNSPEC if floor is None else socket.AF_INET
        asking = loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await asking
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        if not self._is_allowed(address) and not all(is_public(each) for each in addresses):
            raise Denied
        if floor is not None and not all(_above(floor, each) for each in addresses):
            raise Denied
        failure: OSError = OSError("no address")
        for each in addresses[:4]:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection(each, port)
            except (OSError, TimeoutError) as error:
                failure = error if isinstance(error, OSError) else OSError("timed out")
        raise failure

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        their_reader: asyncio.StreamReader,
        their_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay both ways until either side ends."""
        up = asyncio.create_task(_copy(reader, their_writer, lambda _: None))
        down = asyncio.create_task(_copy(their_reader, writer, self._count))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done() and not up.cancelled() and up.exception() is None:
                await down  # it has asked all it wanted, and waits for the answer
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            their_writer.close()

    def _count(self, size: int) -> None:
        self.received += size
        self.heard = time.monotonic()
        if self.exhausted:
            raise OSError("more than the image may have")


def _above(floor: Floor, address: str) -> bool:
    """Whether a tenant may have an address spoken to: it is not this host's, whatever listens here for others."""
    found = IPv4Address(address)
    return floor.permits(found) and not own(found)


def _plain_head(asked: re.Match[str], rest: bytes) -> bytes:
    """The request as its registry expects it: one per connection, so that no other host's follows on the same."""
    kept = [
        line
        for line in rest.split(b"\r\n")
        if line and not line.lower().startswith((b"proxy-", b"connection:", b"keep-alive:"))
    ]
    first = f"{asked['method']} {asked['path'] or '/'} HTTP/1.1".encode("latin-1")
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    while data := await reader.read(CHUNK):
        count(len(data))
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
