"""What a sandbox begins with, when it is made and again after each reset: what it is furnished with, and a program."""

from __future__ import annotations

import asyncio
from typing import Final

from ringfence.domain.errors import SandboxLost
from ringfence.guest import frames
from ringfence.node.live import Live

BEGIN_SECONDS: Final = 30.0
DONE: Final = b"{}"  # the agent's word for a request that has no other answer


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
    """Furnish a sandbox and start what it begins with, if anything; the agent's refusal, unread, or nothing.

    Raises SandboxLost when the agent says neither in time.
    """
    refused = await _asked(live, live.furnishing) if live.furnishing else DONE
    if refused != DONE:
        return refused
    return await _asked(live, live.begins) if live.begins else b""


async def _asked(live: Live, words: bytes) -> bytes:
    begun = _Begun()
    stream = live.link.open(words, begun)
    try:
        async with asyncio.timeout(BEGIN_SECONDS):
            return await begun.said
    except TimeoutError:
        raise SandboxLost(f"the sandbox's program did not start within {BEGIN_SECONDS:g} s") from None
    finally:
        live.link.send(frames.CANCEL, stream)  # it was asked to run detached: it goes on without us
        live.link.forget(stream)
