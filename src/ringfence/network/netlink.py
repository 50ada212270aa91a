"""Routing netlink, as far as a pair of virtual wires needs it: the standard library and nothing else.

Messages are values made by pure functions; a Netlink socket belongs to the network namespace it was opened in, so
one can be kept for a namespace that nobody is in.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Final, Self

_GET_LINK: Final = 18
NEW_LINK, DELETE_LINK, NEW_ADDRESS, NEW_ROUTE = 16, 17, 20, 24
_ERROR: Final = 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x01, 0x04, 0x200, 0x400
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_IFF_UP: Final = 1
_IFLA_OPERSTATE, _OPERATES = 16, 6
OPERATING_SECONDS: Final = 5.0
OPERATING_PAUSE: Final = 0.0002
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 1, 3, 18, 27, 28
_MARKED: Final = 7
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DESTINATION, _RTA_INTERFACE, _RTA_GATEWAY, _RTA_SOURCE = 1, 4, 5, 7
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 4, 0, 253, 1
ANSWER_SECONDS: Final = 10.0


class NetlinkError(OSError):
    """The kernel refused a request; its text names it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prepared request: what to say when it fails, and what to send."""

    what: str
    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire: its name, number and hardware address."""

    name: str
    index: int
    hardware: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _named(end: End) -> bytes:
    return attribute(_IFLA_IFNAME, end.name.encode() + b"\0") + attribute(_IFLA_ADDRESS, end.hardware)


def wire(here: End, there: End, namespace_fd: int) -> Request:
    """A pair of virtual wires, whose far end is made inside the namespace and is never anywhere else."""
    far = _LINK.pack(0, 0, there.index, 0, 0) + _named(there)
    far += attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace_fd))
    info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, attribute(_VETH_PEER, far))
    body = _LINK.pack(0, 0, here.index, 0, 0) + _named(here) + attribute(_IFLA_LINKINFO, info)
    return Request(f"make the wire {here.name}", NEW_LINK, _CREATE | _EXCLUSIVE, body)


def up(index: int) -> Request:
    """Switch an interface on."""
    return Request(f"switch interface {index} on", NEW_LINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP))


def mark(index: int) -> Request:
    """Put a wire among those that unwire_marked() takes away."""
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_GROUP, struct.pack("=I", _MARKED))
    return Request(f"mark interface {index}", NEW_LINK, 0, body)


def unwire_marked() -> Request:
    """Take all marked wires away, both ends of each: at once, for the kernel waits as long for one as for many."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_GROUP, struct.pack("=I", _MARKED))
    return Request("take wires away", DELETE_LINK, 0, body)


def own_address(index: int, address: IPv4Address) -> Request:
    """An address for an interface, with nobody beside it."""
    both = attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    body = _ADDRESS.pack(socket.AF_INET, 32, 0, _SCOPE_UNIVERSE, index) + both
    return Request(f"give interface {index} its address", NEW_ADDRESS, _CREATE | _EXCLUSIVE, body)


def neighbour_route(index: int, address: IPv4Address, source: IPv4Address) -> Request:
    """A route to the one address at the other end of a wire."""
    body = _ROUTE.pack(socket.AF_INET, 32, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST, 0)
    body += attribute(_RTA_DESTINATION, address.packed) + attribute(_RTA_INTERFACE, struct.pack("=I", index))
    body += attribute(_RTA_SOURCE, source.packed)
    return Request(f"route to {address}", NEW_ROUTE, _CREATE | _EXCLUSIVE, body)


def default_route(index: int, gateway: IPv4Address) -> Request:
    """The route to everything else."""
    body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, 0)
    body += attribute(_RTA_GATEWAY, gateway.packed) + attribute(_RTA_INTERFACE, struct.pack("=I", index))
    return Request("the default route", NEW_ROUTE, _CREATE | _EXCLUSIVE, body)


class Netlink:
    """A socket to the kernel's routing side, of the namespace that its opener is in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(ANSWER_SECONDS)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def do(self, requests: Sequence[Request]) -> None:
        """Have the kernel carry out every request, in order. Raises NetlinkError for the first that it refused."""
        for request, error in zip(requests, self.tried(requests), strict=True):
            if error:
                raise NetlinkError(error, f"{request.what}: {os.strerror(error)}")

    def tried(self, requests: Sequence[Request]) -> list[int]:
        """The kernel's answer to every request: 0, or an errno."""
        first, batch = self._number + 1, b""
        for request in requests:
            self._number += 1
            size = _HEADER.size + len(request.body)
            flags = _REQUEST | _ACK | request.flags
            batch += _HEADER.pack(size, request.kind, flags, self._number, 0) + request.body + bytes(-size % 4)
        self._socket.send(batch)
        answers = [-1] * len(requests)
        while -1 in answers:
            for number, error in _answers(self._socket.recv(65_536)):
                if first <= number < first + len(answers):
                    answers[number - first] = error
        return answers

    def wait_operating(self, index: int) -> None:
        """Return when an interface carries packets. Raises NetlinkError after a while.

        The kernel starts its queue a moment after both ends are switched on; what is sent in that moment is lost,
        and a first connection would take the second that its address is asked for again.
        """
        deadline = time.monotonic() + OPERATING_SECONDS
        while self._state(index) != _OPERATES:
            if time.monotonic() > deadline:
                raise NetlinkError(errno.ETIMEDOUT, f"interface {index} does not come up")
            time.sleep(OPERATING_PAUSE)
        self.do([up(index)])  # waits for the lock under which the queue is started: now it has been

    def _state(self, index: int) -> int:
        self._number += 1
        body = _LINK.pack(0, 0, index, 0, 0)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _GET_LINK, _REQUEST, self._number, 0) + body)
        data = self._socket.recv(65_536)
        at = _HEADER.size + _LINK.size
        while at + 5 <= len(data):
            size, kind = struct.unpack_from("=HH", data, at)
            if kind == _IFLA_OPERSTATE:
                return data[at + 4]
            at += max(4, (size + 3) & ~3)
        return 0

    def unwire(self, indices: Sequence[int]) -> None:
        """Take wires away; that one went with its namespace already is fine."""
        errors = [error for error in self.tried([mark(index) for index in indices]) if error]
        if len(errors) < len(indices):
            errors += self.tried([unwire_marked()])
        bad = [error for error in errors if error not in {0, errno.ENODEV}]
        if bad:
            raise NetlinkError(bad[0], f"take wires away: {os.strerror(bad[0])}")


def _answers(data: bytes) -> list[tuple[int, int]]:
    """(number of the request, errno or 0) of every answer in a datagram from the kernel."""
    found, at = [], 0
    while at + _HEADER.size + 4 <= len(data):
        size, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if kind == _ERROR:
            found.append((number, -struct.unpack_from("=i", data, at + _HEADER.size)[0]))
        at += max(_HEADER.size, (size + 3) & ~3)
    return found
