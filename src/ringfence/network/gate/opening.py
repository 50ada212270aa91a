"""Connections to the hosts of secrets: judged here like all others, then handed to their tenant's opener.

The gate connects, and gives away two sockets: one to the server, one to itself in the client's place. So the opener
needs no network, and bytes are still counted, and cut, here.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.domain.secrets import PORT, Held, covers
from ringfence.network.finder import Finder

MOST_WORD: Final = 16 * 1024
LAST_WORD_SECONDS: Final = 2.0  # within which an opener says what came of a connection that has ended


class Gone(OSError):
    """There is no opener at the moment."""


@dataclass(eq=False)
class Opening:
    """One connection in an opener's hands."""

    near: socket.socket  # in the server's place, towards the client
    beyond: socket.socket  # the server's: kept so that it can be cut here
    ended: asyncio.Future[None]
    secrets: list[str] = field(default_factory=list)  # that were sent to the server
    verdict: str = ""  # allowed, denied or failed, as the opener judged it; empty until it has
    reason: str = ""
    misdirected: str = ""  # the secret whose placeholder was sent where it does not belong

    def hear(self, word: dict[str, Any]) -> None:
        """One word of the opener's: bounded texts, whatever they say."""
        for name in map(str, word.get("secrets", ())):
            if name not in self.secrets and len(self.secrets) < 64:
                self.secrets.append(name[:64])
        if word.get("end") is True and not self.ended.done():
            self.verdict = word["verdict"] if word.get("verdict") in {"denied", "failed"} else "allowed"
            self.reason, self.misdirected = str(word.get("reason", ""))[:400], str(word.get("misdirected", ""))[:64]
            self.ended.set_result(None)

    async def last_word(self) -> None:
        """Return once the opener has said what came of it, or has had its time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await asyncio.shield(self.ended)

    def cut(self) -> None:
        """Leave the server at once, whatever the opener does."""
        if not self.ended.done():
            self.ended.set_result(None)
        with suppress(OSError):
            self.beyond.shutdown(socket.SHUT_RDWR)
        self.beyond.close()


class Hand:
    """The way to one opener."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self.lives = True
        self._flows: dict[int, Opening] = {}
        self._number = 0
        door.setblocking(False)
        asyncio.get_running_loop().add_reader(door, self._hear)

    def open(self, sandbox_id: str, name: str, server: socket.socket) -> Opening:
        """Hand a connection over. Raises OSError; the server's socket is then still the caller's."""
        near, far = socket.socketpair()
        near.setblocking(False)
        self._number += 1
        opening = Opening(near, server, asyncio.get_running_loop().create_future())
        word = json.dumps({"flow": self._number, "sandbox": sandbox_id, "name": name}).encode()
        try:
            socket.send_fds(self._door, [word], [far.fileno(), server.fileno()])
        except OSError:
            near.close()
            raise
        finally:
            far.close()
        number = self._number
        self._flows[number] = opening
        opening.ended.add_done_callback(lambda _: self._flows.pop(number, None))
        return opening

    def _hear(self) -> None:
        try:
            data = self._door.recv(MOST_WORD)
            word = json.loads(data) if data else None
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError):
            word = None
        if not isinstance(word, dict):
            self.close()
            return
        opening = self._flows.get(word.get("flow", 0))
        if opening is not None:
            with suppress(TypeError, ValueError):
                opening.hear(word)

    def close(self) -> None:
        """It has died, or does not speak as it should: its connections are cut, and no more are handed to it."""
        if not self.lives:
            return
        self.lives = False
        asyncio.get_running_loop().remove_reader(self._door)
        self._door.close()
        for opening in list(self._flows.values()):
            opening.verdict, opening.reason = "failed", "the opener died"
            opening.cut()


class Hands:
    """The ways to all openers the node has introduced."""

    def __init__(self, introductions: socket.socket) -> None:
        self._introductions = introductions
        introductions.setblocking(False)
        self._of: dict[str, Hand] = {}

    def to(self, label: str) -> Hand:
        """The way to an opener. Raises Gone."""
        self.meet()
        hand = self._of.get(label)
        if hand is None or not hand.lives:
            raise Gone("the process that opens connections for secrets is not there")
        return hand

    def meet(self) -> None:
        """Get to know whoever was introduced meanwhile."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._introductions, 64, 1)
            except OSError:
                return
            if not data or len(fds) != 1:
                return
            label = data.decode("ascii", "replace")
            former = self._of.get(label)
            if former is not None:
                former.close()
            self._of[label] = Hand(socket.socket(fileno=fds[0]))


@dataclass(frozen=True, slots=True)
class Entrusted:
    """A sandbox's secrets as the gate knows them: names, hosts and placeholders, no value."""

    hands: Hands
    label: str
    held: tuple[Held, ...]

    def opens(self, name: str, port: int) -> bool:
        """Whether a TLS connection to a host is one that may carry a secret."""
        return port == PORT and any(covers(each.hosts, name) for each in self.held)

    def finder(self) -> Finder:
        """Finds placeholders in what leaves unencrypted, or to other hosts."""
        return Finder({each.placeholder.encode(): each.name for each in self.held})
