"""An opener's process: `python -m ringfence.network.opener`, started by the node with one socket, as descriptor 3."""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # used by the TLS library for a host's name: there will be no file to load it from
import json
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Final

from ringfence.network import words
from ringfence.network.gate.confine import confine, die_with_parent
from ringfence.network.opener.authority import Issuer, make_authority, onward_context
from ringfence.network.opener.opener import Opener

CONTROL_FD: Final = 3
GIVEN: Final = 1
FIRST: Final = 64 * 1024
READ: Final = 256 * 1024
SCRATCH: Final = 64 * 1024  # for one certificate at a time
HERE: Final = Path("/")


async def serve(control: socket.socket, hand: socket.socket, onward: ssl.SSLContext) -> None:
    """Until the node hangs up."""
    reader, writer = await asyncio.open_connection(sock=control)
    opener = Opener(writer, hand, onward, HERE)
    opener.open()
    writer.write(words.encode({"ready": True}))
    parser = words.Parser(words.MOST_TO_GATE)
    while data := await reader.read(READ):
        for message in parser.feed(data):
            opener.hear(message)


def main() -> int:
    """Take the gate's hand and the system's authorities, give up everything else, serve."""
    die_with_parent()
    control = socket.socket(fileno=CONTROL_FD)
    data, fds, _, _ = socket.recv_fds(control, FIRST, GIVEN)
    if len(fds) != GIVEN:
        return 1
    config = json.loads(data)
    hand = socket.socket(fileno=fds[0])
    hand.setblocking(False)
    os.closerange(max(CONTROL_FD, *fds) + 1, 1 << 16)
    onward = onward_context(str(config["roots"]))
    # Whatever the libraries load when they are first used, they load now; and what cannot issue is never ready.
    encodings.idna.ToASCII("example")
    trial = make_authority()
    confine(int(config["uid"]), offline=True, scratch=SCRATCH)
    Issuer(trial, HERE).context("trial.example")
    with contextlib.suppress(ConnectionError):
        asyncio.run(serve(control, hand, onward))
    return 0


if __name__ == "__main__":
    sys.exit(main())
