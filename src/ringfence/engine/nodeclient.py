"""The node as the engine sees it: verbs to call and streams to open, over one connection that heals itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ringfence.domain.errors import NodeLost, RingfenceError, TooLarge
from ringfence.engine.answers import NodeAnswer, decode_node, guest_end, raise_node
from ringfence.engine.link import Collector, Link, NodeStream, open_of
from ringfence.guest import frames

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5  # well within the patience below: who waits must not wait for a try that comes too late
ANSWER_SECONDS: Final = 120.0  # no verb but `run`, `open` and `events` takes longer, stopping under load included
PATIENCE: Final = 2.0  # how long a new request waits for a node that is coming back
_log: Final = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode
A = TypeVar("A", bound=NodeAnswer)


class NodeClient:
    """Connects, and connects again. `on_up` is awaited after each connection, before anybody else may use it."""

    def __init__(self, path: Path, on_up: Callable[[], Awaitable[None]] | None = None) -> None:
        self._path = path
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self.on_up = on_up

    @property
    def connected(self) -> bool:
        """True while requests can be sent."""
        return self._up.is_set()

    @property
    def linked(self) -> bool:
        """True while there is a connection, also when it may not be used by all yet."""
        return self._link is not None and self._link.alive

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    await self._connect()
                    pause = FIRST_PAUSE
                    await self._down.wait()
                except (OSError, RingfenceError) as error:  # TimeoutError is an OSError
                    _log.info("no node at %s: %s", self._path, error)
                    self._drop()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._lost()
            self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.abort()

    async def _connect(self) -> None:
        self._down.clear()
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_unix_connection(lambda: Link(self._lost), str(self._path))
        if self.on_up is not None:
            await self.on_up()
        if self._link.alive:
            self._up.set()

    def _lost(self) -> None:
        self._up.clear()
        self._down.set()

    async def wait_up(self, seconds: float = PATIENCE) -> None:
        """Return when connected. Raises NodeLost after `seconds`; then nothing was sent."""
        if self._up.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._up.wait()
                return
        raise NodeLost(
            "the node does not answer", code="node_unreachable", remediation="try again; the server restarts its node"
        )

    def open(self, stream: NodeStream, header: dict[str, Any], guest: bytes = b"") -> None:
        """Open a stream now. Raises NodeLost when not connected, TooLarge past the frame's bound."""
        if self._link is None:
            raise NodeLost("the node is not connected", code="node_unreachable", remediation="try again shortly")
        try:
            self._link.open(stream, open_of(_encode(header), guest))
        except frames.FrameError:
            raise TooLarge(
                f"the program and its arguments are larger than {frames.MAX_JSON // 2**20} MiB",
                remediation="send large inputs as files or stdin",
            ) from None

    async def ask(self, header: dict[str, Any], kind: type[A], guest: bytes = b"") -> A:
        """Call a verb and return its answer. Raises what the node or an agent raised; cancelling cancels the call."""
        stream = Collector(0)
        self.open(stream, header, guest)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                end = await stream.ended
        except TimeoutError:
            raise NodeLost(f"the node did not answer within {ANSWER_SECONDS:g} s", remediation="try again") from None
        finally:
            stream.cancel()
        answer = decode_node(end.header, kind)
        raise_node(answer.error)
        guest_end(end.guest)
        return answer

    async def call(self, header: dict[str, Any], kind: type[A], guest: bytes = b"") -> A:
        """As ask(), after waiting a moment for a node that is coming back."""
        await self.wait_up()
        return await self.ask(header, kind, guest)
