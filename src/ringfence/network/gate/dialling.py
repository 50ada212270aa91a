"""Connecting out: directly, from a fixed address, or through a proxy; and never another way than was asked for.

A proxy is told the address that was judged here, not the name: it must not resolve for itself what was checked.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
from ipaddress import IPv4Address
from typing import Final

from ringfence.domain.gateways import Gateway, Kind

CONNECT_SECONDS: Final = 10.0
MOST_ANSWER: Final = 8 * 1024  # bytes of a proxy's head
_BIND_ADDRESS_NO_PORT: Final = 24  # the port is chosen when it connects, so that it is used up for one place only
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_SOCKS_SAYS: Final = {
    1: "failed", 2: "does not allow it", 3: "cannot reach that network", 4: "cannot reach that host",
    5: "was refused there", 6: "got no answer there",
}  # fmt: skip


class Down(Exception):
    """The gateway cannot be used; its text says why. Nothing was sent anywhere else."""


async def dial(gateway: Gateway | None, address: IPv4Address, port: int) -> socket.socket:
    """A connection to exactly this address. Raises Down for its gateway's failure, OSError or TimeoutError for its own.

    With a proxy it is the proxy's connection: whatever fails before the proxy has answered is the gateway's failure.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if gateway is None:
                await _connect(server, address, port)
            elif gateway.kind is Kind.SOURCE:
                _from(server, gateway)
                await _connect(server, address, port)
            else:
                await _through(server, gateway, address, port)
    except BaseException:
        server.close()
        raise
    return server


async def _connect(server: socket.socket, address: IPv4Address, port: int) -> None:
    await asyncio.get_running_loop().sock_connect(server, (str(address), port))


def _from(server: socket.socket, gateway: Gateway) -> None:
    try:
        server.setsockopt(socket.SOL_IP, _BIND_ADDRESS_NO_PORT, 1)
        server.bind((str(gateway.address), 0))
    except OSError as error:
        why = f"the egress gateway {gateway.name} is down: {gateway.address} is no address of this host"
        raise Down(f"{why} ({error.strerror})") from None


async def _through(server: socket.socket, gateway: Gateway, address: IPv4Address, port: int) -> None:
    speak = _connect_http if gateway.kind is Kind.HTTP else _connect_socks
    try:
        async with asyncio.timeout(CONNECT_SECONDS / 2):
            await _connect(server, gateway.address, gateway.port)
            # What it says of the destination is said by _far(), which is no OSError of our own connection.
            failed = await speak(server, gateway, address, port)
    except TimeoutError:
        raise Down(f"the egress gateway {gateway.name} is down: it does not answer") from None
    except (OSError, EOFError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it hung up"
        raise Down(f"the egress gateway {gateway.name} is down: {why}") from None
    if failed:
        raise OSError(f"the egress gateway {gateway.name} {failed}")


async def _exactly(server: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(server, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# -- HTTP -------------------------------------------------------------------------------------------------------------


async def _connect_http(server: socket.socket, gateway: Gateway, address: IPv4Address, port: int) -> str:
    """Ask for a tunnel; gives what the proxy says of the destination when it is not open."""
    place = f"{address}:{port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if gateway.username:
        secret = base64.b64encode(f"{gateway.username}:{gateway.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    await asyncio.get_running_loop().sock_sendall(server, "\r\n".join([*lines, "", ""]).encode())
    status = await _status(server, gateway)
    if 200 <= status < 300:
        return ""
    if status in {401, 407}:
        raise Down(f"the egress gateway {gateway.name} does not take our credentials")
    return f"does not open the connection: it says {status}"


async def _status(server: socket.socket, gateway: Gateway) -> int:
    """Read the head of an answer and not a byte more: what follows is the other side's, for whoever asked."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if len(head) >= MOST_ANSWER:
            raise Down(f"the egress gateway {gateway.name} is no HTTP proxy: its answer has no end")
        head += await _exactly(server, 1)
    found = _STATUS.match(head)
    if found is None:
        raise Down(f"the egress gateway {gateway.name} is no HTTP proxy: it answers something else")
    return int(found[1])


# -- SOCKS5 (RFC 1928, RFC 1929) --------------------------------------------------------------------------------------


async def _connect_socks(server: socket.socket, gateway: Gateway, address: IPv4Address, port: int) -> str:
    """Ask for a connection; gives what the proxy says of the destination when there is none."""
    loop = asyncio.get_running_loop()
    offered = b"\x02" if gateway.username else b"\x00"
    await loop.sock_sendall(server, b"\x05\x01" + offered)
    if await _exactly(server, 2) != b"\x05" + offered:
        raise Down(f"the egress gateway {gateway.name} is no SOCKS5 proxy that takes what it was offered")
    if gateway.username:
        user, password = gateway.username.encode(), gateway.password.encode()
        await loop.sock_sendall(server, b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password)
        if (await _exactly(server, 2))[1] != 0:
            raise Down(f"the egress gateway {gateway.name} does not take our credentials")
    await loop.sock_sendall(server, b"\x05\x01\x00\x01" + address.packed + port.to_bytes(2, "big"))
    version, code, _, kind = await _exactly(server, 4)
    if version != 5:
        raise Down(f"the egress gateway {gateway.name} is no SOCKS5 proxy")
    if code:
        return _SOCKS_SAYS.get(code, f"says {code}")
    await _bound(server, kind)
    return ""


async def _bound(server: socket.socket, kind: int) -> None:
    """Read past the address it speaks from, in whichever of the three forms."""
    sizes = {1: 4, 4: 16}
    await _exactly(server, (sizes.get(kind) or (await _exactly(server, 1))[0]) + 2)
