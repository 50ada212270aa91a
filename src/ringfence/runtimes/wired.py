"""What every runtime whose sandboxes can have a network does with it: the node's one network, held and used in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ringfence.domain.egress import Policy
from ringfence.domain.errors import PlatformFault, SandboxRefused
from ringfence.domain.secrets import Trust
from ringfence.network.keeper import Event
from ringfence.network.network import Network, lacking

NO_NETWORK: Final = "this node was started without a network for sandboxes"


@dataclass(frozen=True, slots=True)
class Listener:
    """Equal to any other for the same ears."""

    heard: Callable[[str, dict[str, Any]], None]

    def __call__(self, event: Event) -> None:
        """Pass it on with the sandbox it is about."""
        self.heard(event["sandbox"], event)


class Wired:
    """One runtime's share of the network. Without one it refuses, and says why."""

    def __init__(self, network: Network | None) -> None:
        self._network = network.held() if network is not None else None
        self.offline = lacking() or ("" if network is not None else NO_NETWORK)

    async def lay(self, sandbox_id: str, pid: int) -> None:
        """A wire into the namespace of a process that waits. Raises SandboxRefused; then there is none."""
        await self._there().attach(sandbox_id, pid)

    async def namespace(self, sandbox_id: str) -> int:
        """A descriptor of a new namespace with a wire, for a tool to use. Raises SandboxRefused; then there is none."""
        return await self._there().namespace(sandbox_id)

    def _there(self) -> Network:
        if self._network is None:
            raise SandboxRefused(f"no network: {NO_NETWORK}", code="no_network")
        return self._network

    async def allow(self, sandbox_id: str, policy: Policy) -> None:
        """From now on this policy, and no connection that it does not allow. Raises PlatformFault."""
        if self._network is None:
            raise PlatformFault("this node has no network for sandboxes", code="no_network")
        await self._network.set(sandbox_id, policy)

    async def entrust(self, sandbox_id: str, tenant: str, trust: Trust) -> None:
        """These secrets from the next allow() on. Raises SandboxRefused and PlatformFault."""
        await self._there().entrust(sandbox_id, tenant, trust)

    def on_flow(self, heard: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell of every connection and question, of any runtime's sandboxes: who asks several of them hears it once."""
        if self._network is not None:
            self._network.on_event(Listener(heard))

    async def cut(self, sandbox_id: str) -> None:
        """Cut everything a sandbox has open and take its wire away. Harmless when there is none."""
        if self._network is not None:
            await self._network.detach(sandbox_id)

    async def close(self) -> None:
        """Let go of the network."""
        network, self._network = self._network, None
        if network is not None:
            await network.close()


class OnWires:
    """A runtime whose sandboxes can have a network: what `Networked` promises, kept by its share of it."""

    _wired: Wired

    async def allow(self, sandbox_id: str, policy: Policy) -> None:
        """From now on this policy, and no connection that it does not allow. Raises PlatformFault."""
        await self._wired.allow(sandbox_id, policy)

    async def entrust(self, sandbox_id: str, tenant: str, trust: Trust) -> None:
        """These secrets from the next allow() on. Raises SandboxRefused and PlatformFault."""
        await self._wired.entrust(sandbox_id, tenant, trust)

    def on_flow(self, heard: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell of every connection and question."""
        self._wired.on_flow(heard)
