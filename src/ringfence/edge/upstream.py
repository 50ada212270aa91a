"""The sandbox's end: a tunnel per request, and the wait for a port to accept.

No tunnel is used twice. A connection that carries one request cannot hand one client the answer to another's, whatever
the program behind it makes of the bytes.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import ClassVar, Final

from ringfence.domain.errors import PlatformFault, RingfenceError
from ringfence.edge.routes import Route
from ringfence.engine.engine import Engine
from ringfence.engine.files import LiveStream
from ringfence.guest import frames

CONNECT_SECONDS: Final = 12.0  # the agent itself gives a listener with a full queue ten
AGAIN_SECONDS: Final = 2.0  # a port that accepted once may be between two lives of its server for this long
WAKE_SECONDS: Final = 10.0  # longer than most sandboxes take to be resumed; a browser is told to come again
FAULT_SECONDS: Final = 2.0
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.25
NOT_LISTENING: Final = "guest_not_listening"


class BadUpstream(RingfenceError):
    """The program behind the port did not answer as HTTP asks."""

    status: ClassVar[int] = 502
    default_code: ClassVar[str] = "bad_upstream"


class NotListening(BadUpstream):
    """Nothing accepts connections on the port."""

    default_code: ClassVar[str] = "port_not_listening"


class SlowUpstream(RingfenceError):
    """The program behind the port took too long."""

    status: ClassVar[int] = 504
    default_code: ClassVar[str] = "upstream_timeout"


class Upstream:
    """One connection to a port inside."""

    def __init__(self, live: LiveStream) -> None:
        self.buffer = bytearray()
        self.ended = False  # the program closed its end, as it should
        self._live = live
        self._reader = live.reader

    async def more(self) -> bool:
        """Wait for bytes beyond those in the buffer; False when none will come, and `ended` says whether that is fine.

        A sandbox that dies takes the stream with it: then there is an end of the stream and none of the connection.
        """
        while not self.ended:
            item = await self._reader.next()
            if item is None:
                return False
            if item[0] == frames.EOF:
                self.ended = True
            elif item[0] == frames.STDOUT:
                self.buffer += item[1]
                return True
        return False

    async def send(self, data: bytes) -> bool:
        """Send as the program reads. False when it takes nothing any more."""
        return await self._reader.send(data)

    async def fault(self) -> RingfenceError | None:
        """What ended it, when that was not the program: the sandbox's death, the node's. None otherwise."""
        if self.ended:
            return None
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                await self._live.end()
        except RingfenceError as error:
            return _as_gateway(error)
        except TimeoutError:
            return None
        return None

    def eof(self) -> None:
        """Say that no more follows."""
        self._reader.eof()


def _as_gateway(error: RingfenceError) -> RingfenceError:
    """The engine's refusals are about our own request: to the client they are the gateway's trouble, not its own."""
    if isinstance(error, PlatformFault):
        return error
    return BadUpstream(error.cause, code=error.code, remediation=error.remediation)


async def reach(engine: Engine, route: Route, stack: AsyncExitStack) -> Upstream:
    """Connect, waiting for the port to accept. Raises NotListening, SlowUpstream, or what the engine raises."""
    await _awake(engine, route)
    wait = min(route.record.wait_seconds, AGAIN_SECONDS) if route.accepted else route.record.wait_seconds
    deadline = time.monotonic() + wait
    upstream = await _attempt(engine, route, stack)
    if upstream is not None:
        return upstream
    async with route.gate:  # one asks for all who wait
        pause = FIRST_PAUSE
        while time.monotonic() < deadline:
            await asyncio.sleep(pause)
            upstream = await _attempt(engine, route, stack)
            if upstream is not None:
                return upstream
            pause = min(pause * 1.5, LONGEST_PAUSE)
    raise NotListening(
        f"nothing listens on port {route.port} inside the sandbox; waited {wait:g} s",
        remediation=f"start a server there that listens on 127.0.0.1:{route.port} or 0.0.0.0:{route.port}",
    )


async def _awake(engine: Engine, route: Route) -> None:
    """Have a paused sandbox resumed that wants to be. Raises Overloaded, which asks to come again, when slow."""
    if engine.turns.find(route.tenant, route.sandbox) is None:
        return
    try:
        await engine.turns.reach(route.tenant, route.sandbox, WAKE_SECONDS)
    except RingfenceError as error:
        raise _as_gateway(error) from None


async def _attempt(engine: Engine, route: Route, stack: AsyncExitStack) -> Upstream | None:
    """Connect once; None when nothing listens."""
    tunnel = engine.files.tunnel(route.tenant, route.sandbox, route.port)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            live = await stack.enter_async_context(tunnel)
    except TimeoutError:
        raise SlowUpstream(
            "the sandbox did not open a connection in time", remediation="it may be overloaded; try again"
        ) from None
    except RingfenceError as error:
        if error.code != NOT_LISTENING:
            raise _as_gateway(error) from None
        if "in time" in error.cause:
            raise SlowUpstream(f"port {route.port} did not accept in time", code="port_not_accepting") from None
        return None
    route.accepted = True
    return Upstream(live)
