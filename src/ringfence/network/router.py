"""The router: a network namespace without a way out, in which every sandbox's wire ends at the gate's door.

It exists by being held: by one thread that lives in it, by its sockets. Nothing of it has a name on the host, so
nothing of it can be left behind: when the node is gone, so are the namespace, every wire and every rule.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeVar

from ringfence.domain.errors import PlatformFault, SandboxRefused
from ringfence.guest import syscalls as sc
from ringfence.network import netlink, rules

SLOTS: Final = 16_384
LOOPBACK: Final = 1
FIRST_INDEX: Final = 1000  # above what a kernel puts into a new namespace by itself
INSIDE: Final = "eth0"
BACKLOG: Final = 4096
WAITING_BYTES: Final = 8 * 1024 * 1024
_SO_RCVBUFFORCE: Final = 33
MOST_AT_ONCE: Final = 128  # wires taken away together
HARDWARE: Final = bytes.fromhex("02ffffff0001"), bytes.fromhex("02ffffff0002")  # of every router and every sandbox
_CLONE_NEWNET: Final = 0x4000_0000
# Belt to the rules' braces: nothing is forwarded, nobody answers for others, no address by hearsay.
# And a refused datagram is always told of: the rules bound how often, for all sandboxes together.
SETTINGS: Final = (
    ("ipv4/ip_forward", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    *((f"ipv4/conf/{which}/{name}", value) for which in ("all", "default") for name, value in (
        ("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0"), ("accept_source_route", "0"),
        ("proxy_arp", "0"), ("route_localnet", "0"), ("forwarding", "0"),
    )),
)  # fmt: skip
NO_IPV6: Final = tuple((f"ipv6/conf/{which}/{name}", value) for which in ("all", "default") for name, value in (
    ("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "1"),
))  # fmt: skip
# The loopback keeps ::1, which programs expect.
QUIET: Final = tuple((path, value) for path, value in NO_IPV6 if "/default/" in path)
# In a namespace that we make for a sandbox: port 80 is its programs' own, as it is where the sandbox makes it itself.
OWN_PORTS: Final = (("ipv4/ip_unprivileged_port_start", "0"),)
_setns: Final = ctypes.CDLL(None, use_errno=True).setns
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Doors:
    """The router's listening sockets, for the gate."""

    connections: socket.socket
    names_tcp: socket.socket
    names_udp: socket.socket

    @property
    def all(self) -> tuple[socket.socket, ...]:
        """In the order in which the gate expects them."""
        return self.connections, self.names_tcp, self.names_udp

    def close(self) -> None:
        """Let go of them: once nobody holds them, connections are refused."""
        for door in self.all:
            door.close()


def enter(namespace_fd: int) -> None:
    """Move this thread into a network namespace. Raises OSError."""
    if _setns(namespace_fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"enter a network namespace: {os.strerror(ctypes.get_errno())}")


def namespace_of(pid: int | str) -> int:
    """A descriptor of a process's network namespace; `thread-self` for this thread's."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set(settings: tuple[tuple[str, str], ...]) -> None:
    for path, value in settings:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            Path(f"/proc/sys/net/{path}").write_text(value)


class Router:
    """All wires of one node. Its namespace is that of its one thread."""

    def __init__(self) -> None:
        """Cheap; the rest is open()'s."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="router")
        self._netlink: netlink.Netlink | None = None
        self._free: deque[int] = deque(range(SLOTS))
        self._slots: dict[str, int] = {}
        self._home = -1
        self._leaving: list[tuple[int, asyncio.Future[None]]] = []
        self._unwiring: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the namespace and put its rules in force. Raises SandboxRefused naming what this host lacks."""
        try:
            await self._there(self._prepare)
        except OSError as error:
            await self.close()
            raise SandboxRefused(
                f"no network for sandboxes: {error}",
                code="no_router",
                remediation="it needs root, network namespaces, veth and nf_tables; see `ringfence doctor`",
            ) from None
        except SandboxRefused:
            await self.close()
            raise

    async def _there(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _prepare(self) -> None:
        sc.execute(sc.call("unshare", _CLONE_NEWNET))
        self._home = namespace_of("thread-self")
        _set(SETTINGS)
        _set(NO_IPV6)
        rules.load()  # before there is anything they could be needed for
        self._netlink = netlink.Netlink()
        self._netlink.do([netlink.up(LOOPBACK), netlink.own_address(LOOPBACK, rules.GATEWAY)])

    async def doors(self) -> Doors:
        """New listening sockets; those handed out before must be closed."""
        return await self._there(_listening)

    async def counts(self) -> dict[str, int]:
        """How many packets met each rule that drops."""
        return await self._there(rules.counts)

    def address_of(self, sandbox_id: str) -> IPv4Address | None:
        """The address of a wired sandbox."""
        slot = self._slots.get(sandbox_id)
        return rules.GATEWAY + 1 + slot if slot is not None else None

    async def namespace(self) -> int:
        """A descriptor of a new network namespace with a loopback in it, for a sandbox that is made elsewhere.

        It belongs to the host's user namespace: no root inside can change a wire, a route or a setting of it.
        Raises OSError; the caller closes what it gets.
        """
        making = asyncio.get_running_loop().run_in_executor(self._thread, self._new)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_unwanted)
            raise

    def _new(self) -> int:
        try:
            sc.execute(sc.call("unshare", _CLONE_NEWNET))
            _set(OWN_PORTS)
            with netlink.Netlink() as inside:
                inside.do([netlink.up(LOOPBACK)])
            return namespace_of("thread-self")
        finally:
            enter(self._home)

    async def attach(self, sandbox_id: str, namespace_fd: int) -> IPv4Address:
        """Lay a wire into a sandbox's network namespace. Nothing can be reached by it before the gate is told.

        Raises SandboxRefused; then there is none.
        """
        if not self._free:
            raise SandboxRefused("every network address is in use", code="no_address")
        slot = self._slots[sandbox_id] = self._free.popleft()
        address = rules.GATEWAY + 1 + slot
        try:
            await self._there(lambda: self._wire(slot, address, namespace_fd))
        except BaseException as error:
            await self.detach(sandbox_id)
            if isinstance(error, OSError):
                raise SandboxRefused(f"the network could not be laid: {error}", code="no_network") from None
            raise
        return address

    def _opened(self) -> netlink.Netlink:
        if self._netlink is None:
            raise PlatformFault("the router is not open")
        return self._netlink

    def _wire(self, slot: int, address: IPv4Address, namespace_fd: int) -> None:
        link, index = self._opened(), FIRST_INDEX + slot
        here = netlink.End(f"{rules.WIRE}{slot}", index, HARDWARE[0])
        there = netlink.End(INSIDE, FIRST_INDEX, HARDWARE[1])
        enter(namespace_fd)
        try:
            _set(QUIET)
            link.do([netlink.wire(here, there, namespace_fd), netlink.up(index)])
            link.do([netlink.neighbour_route(index, address, rules.GATEWAY)])
            with netlink.Netlink() as inside:
                inside.do(
                    [
                        netlink.own_address(FIRST_INDEX, address),
                        netlink.up(FIRST_INDEX),
                        netlink.neighbour_route(FIRST_INDEX, rules.GATEWAY, address),
                        netlink.default_route(FIRST_INDEX, rules.GATEWAY),
                    ]
                )
                inside.wait_operating(FIRST_INDEX)
        finally:
            enter(self._home)
        link.wait_operating(index)

    async def detach(self, sandbox_id: str) -> None:
        """Take the wire away; its address is free for another afterwards. Harmless when there is none."""
        slot = self._slots.pop(sandbox_id, None)
        if slot is None:
            return
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving.append((slot, gone))
        if self._unwiring is None or self._unwiring.done():
            self._unwiring = asyncio.get_running_loop().create_task(self._unwire())
        await gone

    async def _unwire(self) -> None:
        """Take away all that came together while the kernel was busy with those before."""
        while self._leaving:
            leaving, self._leaving = self._leaving[:MOST_AT_ONCE], self._leaving[MOST_AT_ONCE:]
            indices = [FIRST_INDEX + slot for slot, _ in leaving]
            failure: Exception | None = None
            try:
                link = self._opened()
                await self._there(lambda link=link, indices=indices: link.unwire(indices))  # type: ignore[misc]
            except (OSError, PlatformFault, RuntimeError) as error:
                failure = error
            for slot, gone in leaving:
                self._free.append(slot)  # the longest unused is taken next
                if gone.done():
                    continue
                if failure is None:
                    gone.set_result(None)
                else:
                    gone.set_exception(failure)

    async def close(self) -> None:
        """Let go of the namespace; with the last socket in it, it and every wire are gone."""
        # Its thread is in the namespace: it must end.
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._home >= 0:
            os.close(self._home)
            self._home = -1
        self._slots.clear()


def _unwanted(made: asyncio.Future[int]) -> None:
    if not made.cancelled() and made.exception() is None:
        os.close(made.result())


def _listening() -> Doors:
    gateway = str(rules.GATEWAY)
    connections = socket.create_server((gateway, rules.GATE_PORT), backlog=BACKLOG)
    names_tcp = socket.create_server((gateway, rules.NAMES_PORT), backlog=BACKLOG)
    names_udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # All sandboxes' questions wait here: one that floods must not crowd out the others' before they are read.
    names_udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, WAITING_BYTES)
    names_udp.bind((gateway, rules.NAMES_PORT))
    doors = Doors(connections, names_tcp, names_udp)
    for door in doors.all:
        door.setblocking(False)
    return doors
