"""The gate's process: `python -m ringfence.network.gate`, started by the node with one socket, as descriptor 3."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from ipaddress import IPv4Network
from typing import Any, Final

from ringfence.domain.egress import Floor
from ringfence.domain.gateways import gateway_from
from ringfence.network import words
from ringfence.network.gate.confine import confine, die_with_parent
from ringfence.network.gate.gate import Gate
from ringfence.network.gate.opening import Hands
from ringfence.network.gate.upstream import Upstream

CONTROL_FD: Final = 3
DOORS: Final = 3
GIVEN: Final = DOORS + 1  # and the socket on which openers are introduced
FIRST: Final = 256 * 1024
READ: Final = 256 * 1024


def floor_of(config: dict[str, Any]) -> Floor:
    """The floor as the node gave it."""
    closed, opened = ([IPv4Network(text) for text in config[name]] for name in ("closed", "opened"))
    return Floor(tuple(closed), tuple(opened), tuple(config["names"]))


async def serve(control: socket.socket, given: list[socket.socket], config: dict[str, Any]) -> None:
    """Until the node hangs up."""
    reader, writer = await asyncio.open_connection(sock=control)
    servers = tuple((str(address), int(port)) for address, port in config["resolvers"])
    gateways = {name: gateway_from(name, table) for name, table in config["gateways"].items()}
    gate = Gate(writer, Upstream(servers), floor_of(config["floor"]), gateways, Hands(given[DOORS]))
    gate.open(*given[:DOORS])
    writer.write(words.encode({"ready": True}))
    parser = words.Parser(words.MOST_TO_GATE)
    while data := await reader.read(READ):
        for message in parser.feed(data):
            gate.hear(message)
    await gate.close()


def main() -> int:
    """Take the doors and the settings, give up everything else, serve."""
    die_with_parent()
    control = socket.socket(fileno=CONTROL_FD)
    data, fds, _, _ = socket.recv_fds(control, FIRST, GIVEN)
    if len(fds) != GIVEN:
        return 1
    config = json.loads(data)
    given = [socket.socket(fileno=fd) for fd in fds]
    os.closerange(max(CONTROL_FD, *fds) + 1, 1 << 16)
    confine()
    with contextlib.suppress(ConnectionError):
        asyncio.run(serve(control, given, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
