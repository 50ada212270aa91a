"""The program a sandbox begins with: started when it is made and again after each reset, and left to itself."""

from __future__ import annotations

import asyncio
from typing import Final

from ringfence.domain.errors import SandboxLost
from ringfence.guest import frames
from ringfence.node.live import Live

BEGIN_SECONDS: Final = 30.0


class _Begun:
    """Waits for the first word of the agent: that the program runs, or why it does not."""

    def __init__(self) -> None:
        self.said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_frame(self, type_: int, payload: bytes) -> None:
        """CONTROL says that it runs, END that it could not be started."""
        if not self.said.done() and type_ in {frames.CONTROL, frames.END}:
            self.said.set_result(payload if type_ == frames.END else b"")

    def on_lost(self) -> None:
        """The sandbox is gone."""
        if not self.said.done():
            self.said.set_exception(SandboxLost("the sandbox vanished before its program ran"))


async def begin(live: Live) -> bytes:
    """Start what a sandbox begins with, if anything; the agent's refusal, unread, or nothing once it runs.

    Raises SandboxLost when the agent says neither in time.
    """
    if not live.begins:
        return b""
    begun = _Begun()
    stream = live.link.open(live.begins, begun)
    try:
        async with asyncio.timeout(BEGIN_SECONDS):
            return await begun.said
    except TimeoutError:
        raise SandboxLost(f"the sandbox's program did not start within {BEGIN_SECONDS:g} s") from None
    finally:
        live.link.send(frames.CANCEL, stream)  # it was asked to run detached: it goes on without us
        live.link.forget(stream)
