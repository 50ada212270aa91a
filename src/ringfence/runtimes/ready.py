"""A guest's first word: ready, with the layers it put in force, or which layer could not be."""

from __future__ import annotations

import asyncio
import json
import socket

from ringfence.domain.errors import SandboxRefused
from ringfence.guest import frames


def died() -> SandboxRefused:
    """It ended before its first word."""
    return SandboxRefused("the sandbox died while it was set up", code="died_in_setup")


async def ready(host: socket.socket) -> list[str]:
    """The layers in force, once the guest says so. Raises SandboxRefused; the deadline is the caller's."""
    parser, loop = frames.Parser(), asyncio.get_running_loop()
    while True:
        try:
            data = await loop.sock_recv(host, frames.MAX_DATA)
        except ConnectionError:  # it died with our word to it unread
            raise died() from None
        if not data:
            raise died()
        for frame in parser.feed(data):
            message = json.loads(frame.payload)
            if "refused" in message:
                layer, cause = message["refused"].get("layer"), message["refused"].get("cause")
                raise SandboxRefused(
                    f"layer {layer!s:.60} could not be put in force: {cause!s:.400}",
                    code="layer_refused",
                    remediation="run `ringfence doctor` to see what this host lacks",
                )
            return [str(name) for name in message["ready"]["layers"]]
