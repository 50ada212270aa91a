"""The opener's two sides: the node's word on which sandbox has which secrets, and the gate's connections for them."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ringfence.domain.names import BadName, host_name
from ringfence.domain.secrets import Authority, Held, held_from
from ringfence.network import words
from ringfence.network.opener.authority import Issuer
from ringfence.network.opener.opened import Opened, Order

MOST_ORDER: Final = 4096
MOST_OPEN: Final = 4096
AT_A_TIME: Final = 32


class Opener:
    """One tenant's sandboxes, their secrets, and their connections under way."""

    def __init__(
        self, control: asyncio.StreamWriter, hand: socket.socket, onward: ssl.SSLContext, folder: Path
    ) -> None:
        self._control = control
        self._hand = hand
        self._onward = onward
        self._folder = folder
        self._issuer: Issuer | None = None
        self._held: dict[str, tuple[Held, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the node's side ------------------------------------------------------------------------------------

    def hear(self, message: dict[str, Any]) -> None:
        """Carry out one word of the node's, and say so. What is wrong with it is said without its contents."""
        answer: dict[str, Any] = {"done": message.get("number")}
        try:
            self._do(message)
        except (KeyError, TypeError, ValueError) as error:
            answer["error"] = type(error).__name__
        self._control.write(words.encode(answer))

    def _do(self, message: dict[str, Any]) -> None:
        sandbox = str(message["sandbox"])
        if message["do"] == "forget":
            self._held.pop(sandbox, None)
            return
        authority = Authority(str(message["authority"]["certificate"]), str(message["authority"]["key"]))
        if self._issuer is None or self._issuer.authority != authority:
            self._issuer = Issuer(authority, self._folder)
        self._held[sandbox] = tuple(map(held_from, message["secrets"]))

    # -- the gate's side ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take connections from now on."""
        asyncio.get_running_loop().add_reader(self._hand, self._handed)

    def _handed(self) -> None:
        for _ in range(AT_A_TIME):
            try:
                data, fds, _, _ = socket.recv_fds(self._hand, MOST_ORDER, 2)
            except OSError:
                return
            given = [socket.socket(fileno=fd) for fd in fds]
            if not data and not given:
                asyncio.get_running_loop().remove_reader(self._hand)  # the gate is gone: the node ends us too
                return
            order = _order(data, given)
            if order is None or order.sandbox not in self._held or len(self._tasks) >= MOST_OPEN:
                for each in given:
                    each.close()
                if order is not None:
                    self._tell({"flow": order.flow, "end": True, "verdict": "failed", "reason": "no room for it"})
                continue
            task = asyncio.get_running_loop().create_task(self._serve(order))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _serve(self, order: Order) -> None:
        issuer = self._issuer
        if issuer is None:
            order.close()
            return
        contexts = issuer.context(order.host), self._onward
        await Opened(order, lambda: self._held.get(order.sandbox, ()), contexts, self._tell).serve()

    def _tell(self, word: dict[str, Any]) -> None:
        """To the gate; a gate that does not read is gone."""
        with suppress(OSError):
            self._hand.send(json.dumps(word).encode())


def _order(data: bytes, given: list[socket.socket]) -> Order | None:
    try:
        word = json.loads(data)
        flow, sandbox, host = int(word["flow"]), str(word["sandbox"]), host_name(str(word["name"]))
        client, server = given
    except (ValueError, KeyError, TypeError, RecursionError, BadName):
        return None
    for each in given:
        each.setblocking(False)
    return Order(flow, sandbox, host, client, server)
