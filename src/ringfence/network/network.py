"""The network of one node's sandboxes: wires, rules and gate together, in the few verbs that a node needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ringfence.domain.egress import DEFAULT_FLOOR, Floor, Policy
from ringfence.domain.errors import PlatformFault, SandboxRefused
from ringfence.domain.gateways import Gateway
from ringfence.domain.secrets import Trust
from ringfence.network import rules
from ringfence.network.keeper import Event, Keeper, resolvers_of
from ringfence.network.openers import Openers
from ringfence.network.router import Router, namespace_of

RESOLV_CONF: Final = Path("/etc/resolv.conf")
# What a sandbox with a network finds at /etc/resolv.conf.
NAMESERVER: Final = f"nameserver {rules.GATEWAY}\noptions timeout:3 attempts:2\n"


def lacking() -> str:
    """Why this host cannot give sandboxes a network; empty when nothing is known to be missing."""
    if os.geteuid() != 0:
        return "it needs root: the node lays a wire into each sandbox"
    if not os.access(rules.NFT, os.X_OK):
        return f"{rules.NFT} is missing: install Debian's package nftables"
    return ""


class Network:
    """Opened when the first sandbox needs it; none of it exists before."""

    def __init__(
        self,
        *,
        floor: Floor = DEFAULT_FLOOR,
        resolvers: tuple[tuple[str, int], ...] = (),
        gateways: Mapping[str, Gateway] = MappingProxyType({}),
        roots: str = "",
        name: str = "",
    ) -> None:
        """`resolvers` are asked for allowed names; none given means the host's own. `gateways` may be left by.

        `roots` is a file of the authorities by which the hosts of secrets are known; none given means the system's.
        `name` tells this node's gate and openers from another's.
        """
        self.floor = floor
        self._router = Router()
        servers = resolvers or resolvers_of(RESOLV_CONF.read_text() if RESOLV_CONF.exists() else "")
        self._keeper = Keeper(self._router.doors, servers, floor, self._heard, gateways, name, self._gate_died)
        self._openers = Openers(roots, self._keeper.introduce, self._keeper.ready, name)
        self._listeners: list[Callable[[Event], None]] = []
        self._opening = asyncio.Lock()
        self._is_open = False
        self._holders = 0

    def held(self) -> Network:
        """Itself, for one more holder: close() ends it when the last of them lets go."""
        self._holders += 1
        return self

    def on_event(self, heard: Callable[[Event], None]) -> None:
        """Call back with every event from now on; once, however often the same listener is named."""
        if heard not in self._listeners:
            self._listeners.append(heard)

    def _heard(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _gate_died(self) -> None:
        self._openers.renew()

    async def open(self) -> None:
        """Make the router and start the gate, unless that was done before. Raises SandboxRefused."""
        async with self._opening:
            if not self._is_open:
                await self._open()
                self._is_open = True

    async def _open(self) -> None:
        why = lacking()
        if why:
            raise SandboxRefused(f"no network for sandboxes: {why}", code="no_network")
        await self._router.open()
        try:
            await self._keeper.open()
        except BaseException:
            await self._router.close()
            raise

    async def attach(self, sandbox_id: str, pid: int) -> None:
        """Lay a wire into the namespace of a process that waits. Until set() nothing can be reached by it.

        The first opens the network. Raises SandboxRefused; then there is no wire.
        """
        if not self._is_open:
            await self.open()
        namespace = namespace_of(pid)
        try:
            await self._router.attach(sandbox_id, namespace)
        finally:
            os.close(namespace)

    async def namespace(self, sandbox_id: str) -> int:
        """A descriptor of a new namespace with its wire laid, for a tool that is told where to put a sandbox.

        Until set() nothing can be reached by it. The caller closes it. Raises SandboxRefused; then there is none.
        """
        if not self._is_open:
            await self.open()
        try:
            namespace = await self._router.namespace()
        except OSError as error:
            raise SandboxRefused(f"no network namespace can be made: {error}", code="no_network") from None
        try:
            await self._router.attach(sandbox_id, namespace)
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    async def set(self, sandbox_id: str, policy: Policy) -> None:
        """Put a policy in force, also over a former one, whose connections are cut. Raises PlatformFault."""
        address = self._router.address_of(sandbox_id)
        if address is None:
            raise PlatformFault("this sandbox has no network", code="no_network")
        label, trust = self._openers.trust_of(sandbox_id) or ("", None)
        await self._keeper.set(sandbox_id, address, policy, label, trust.held if trust is not None else ())

    async def entrust(self, sandbox_id: str, tenant: str, trust: Trust) -> None:
        """Have a sandbox's secrets ready, also over former ones. The next set() lets it reach their hosts.

        The first of a tenant starts its opener. Raises SandboxRefused and PlatformFault.
        """
        await self._openers.entrust(tenant, sandbox_id, trust)

    async def detach(self, sandbox_id: str) -> None:
        """Cut everything, then take the wire away. Harmless when there is none."""
        address = self._router.address_of(sandbox_id)
        if address is not None:
            await self._keeper.forget(address)
            await self._openers.forget(sandbox_id)
            await self._router.detach(sandbox_id)

    async def status(self) -> dict[str, Any]:
        """Numbers for operators."""
        if not self._is_open:
            return {"gate": 0, "gate_deaths": 0, "openers": [], "dropped": {}}
        return {
            "gate": self._keeper.pid,
            "gate_deaths": self._keeper.deaths,
            "openers": self._openers.pids,
            "dropped": await self._router.counts(),
        }

    async def close(self) -> None:
        """End the gate and let go of every wire, unless somebody else still holds it."""
        self._holders -= 1
        async with self._opening:
            if self._is_open and self._holders <= 0:
                self._is_open = False
                await self._openers.close()
                await self._keeper.close()
                await self._router.close()
