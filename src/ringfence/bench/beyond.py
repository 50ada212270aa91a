"""A server that is not on this host: in a network namespace of its own, one wire away. It answers one byte with one.

A sandbox may never reach the host's own addresses, whatever its policy, so a server on the loopback would not do.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Final, Self

from ringfence.bench.server import BEYOND
from ringfence.domain.errors import PlatformFault
from ringfence.guest import syscalls as sc
from ringfence.network import netlink

NEWNET: Final = 0x4000_0000  # CLONE_NEWNET, include/uapi/linux/sched.h
PORT: Final = 9000
HERE: Final = IPv4Address("10.213.77.1")
THERE: Final = IPv4Address(BEYOND)
_NAME: Final = "rfbench0"
_INDEX: Final = 0x4000_0000  # far above what any host counts up to
_MACS: Final = (bytes.fromhex("02b000000001"), bytes.fromhex("02b000000002"))


class Beyond:
    """The namespace, its wire and its server, while entered. Raises PlatformFault where this may not be made."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beyond")
        self._door: socket.socket | None = None
        self._server: threading.Thread | None = None
        self._wired = False
        self._index = _INDEX + secrets.randbelow(1 << 20)

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PlatformFault("a network namespace needs root", code="needs_root")
        try:
            self._door = self._thread.submit(self._settle).result(10)
            self._wire()
        except BaseException:
            self.__exit__()
            raise
        self._server = threading.Thread(target=_serve, args=(self._door,), name="beyond-server", daemon=True)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the wire away; with its last socket and its thread the namespace is gone."""
        if self._wired:
            with netlink.Netlink() as link:
                link.do([netlink.mark(self._index), netlink.unwire_marked()])
        if self._door is not None:
            self._door.shutdown(socket.SHUT_RDWR)
            if self._server is not None:
                self._server.join()
            self._door.close()
        self._thread.shutdown()

    def _settle(self) -> socket.socket:
        """In the thread: leave the host's network, and listen in the new one."""
        sc.execute(sc.call("unshare", NEWNET))
        self._tid = threading.get_native_id()
        with netlink.Netlink() as link:
            link.do([netlink.up(1)])
        return socket.create_server(("0.0.0.0", PORT), backlog=256)  # noqa: S104 - in a namespace that holds one wire

    def _wire(self) -> None:
        ends = netlink.End(_NAME, self._index, _MACS[0]), netlink.End("host0", self._index, _MACS[1])
        with open(f"/proc/self/task/{self._tid}/ns/net") as there, netlink.Netlink() as link:
            link.do([netlink.wire(*ends, there.fileno())])
            self._wired = True
            link.do(self._ends(HERE, THERE))
        self._thread.submit(self._in_there).result(10)

    def _in_there(self) -> None:
        with netlink.Netlink() as link:
            link.do(self._ends(THERE, HERE))

    def _ends(self, own: IPv4Address, other: IPv4Address) -> list[netlink.Request]:
        return [
            netlink.own_address(self._index, own),
            netlink.up(self._index),
            netlink.neighbour_route(self._index, other, own),
        ]


def _serve(door: socket.socket) -> None:
    """A byte for a byte, one connection after the other, until the door is closed."""
    while True:
        try:
            line, _ = door.accept()
            with line:
                line.sendall(line.recv(1))
        except ConnectionError:
            continue
        except OSError:
            return
