"""Asking the host's resolver. Whoever answers must echo our number and our question, from where we asked."""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass, field
from typing import Final

from ringfence.network.gate import dns

TRY_SECONDS: Final = 2.0
TRIES: Final = 2
ALL_SECONDS: Final = 6.0
AT_ONCE: Final = 256
Server = tuple[str, int]


class NoAnswer(Exception):
    """No resolver gave a usable answer in time."""


@dataclass(eq=False)
class Upstream:
    """The resolvers of this host, in order."""

    servers: tuple[Server, ...]
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def ask(self, name: str) -> dns.Answer:
        """A name's addresses. Raises NoAnswer."""
        try:
            async with asyncio.timeout(ALL_SECONDS), self._places:
                for _ in range(TRIES):
                    for server in self.servers:
                        answer = await self._once(server, name)
                        if answer is not None and answer.code != dns.SERVFAIL:
                            return answer
        except TimeoutError:
            pass
        raise NoAnswer

    async def _once(self, server: Server, name: str) -> dns.Answer | None:
        try:
            async with asyncio.timeout(TRY_SECONDS):
                answer = await _by_datagram(server, name)
                return await _by_stream(server, name) if answer.truncated else answer
        except (OSError, TimeoutError, dns.BadMessage, asyncio.IncompleteReadError):
            return None


async def _by_datagram(server: Server, name: str) -> dns.Answer:
    """A new socket for every question: its port is as hard to guess as its number."""
    loop, number = asyncio.get_running_loop(), secrets.randbelow(1 << 16)
    with socket.socket(_family(server), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        await loop.sock_connect(asking, server)
        await loop.sock_sendall(asking, dns.ask(number, name))
        while True:
            data = await loop.sock_recv(asking, 65_535)
            try:
                return dns.answer_from(data, number, name)
            except dns.BadMessage:
                continue  # a forgery must not keep the real answer from being heard


async def _by_stream(server: Server, name: str) -> dns.Answer:
    number = secrets.randbelow(1 << 16)
    reader, writer = await asyncio.open_connection(*server, limit=65_537)
    try:
        question = dns.ask(number, name)
        writer.write(len(question).to_bytes(2, "big") + question)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return dns.answer_from(await reader.readexactly(size), number, name)
    finally:
        writer.close()


def _family(server: Server) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server[0] else socket.AF_INET
