"""The fake runtime. It isolates nothing: for tests and demonstrations, never for a stranger's code."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Final

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import Limits
from ringfence.runtimes.base import Capabilities, GroupUsage, Layer, StartSpec
from ringfence.runtimes.fake.agent import Agent

ISOLATION: Final = "none: for tests and demonstrations"


@dataclass(slots=True)
class Host:
    """What would outlive a node that crashed: the ids of sandboxes of which something is left."""

    left: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Sandbox:
    """One live sandbox; there is no process behind it."""

    id: str
    channel: socket.socket
    agent: Agent
    layers: tuple[str, ...] = ()
    pid: int = 0
    pidfd: int = -1
    beside: tuple[int, int, int] | None = None


class Fake:
    """See runtimes/base.py for what each verb promises.

    `refuse` names a layer that cannot be put in force from now on, `start_seconds` and `stop_seconds` are how long
    those take, and `stops_fail` is how many of the next stops end in an error: a host's bad days, on request.
    """

    name = "fake"

    def __init__(self, host: Host | None = None) -> None:
        self.host = host or Host()
        self.live: dict[str, Sandbox] = {}
        self.started: list[StartSpec] = []
        self.refuse = ""
        self.start_seconds = 0.0
        self.stop_seconds = 0.0
        self.stops_fail = 0

    def capabilities(self) -> Capabilities:
        """Nothing is enforced by anybody."""
        return Capabilities(
            isolation=ISOLATION,
            fork_warm=False,
            pty=False,
            users=frozenset({"user"}),
            enforces=frozenset(),
            limits_by="nothing",
        )

    def layers(self) -> list[Layer]:
        """One, and it is missing."""
        return [Layer("isolation", in_force=False, reason="this runtime is a fake")]

    async def start(self, spec: StartSpec) -> Sandbox:
        """Make the agent and a socket to it."""
        self.started.append(spec)
        self.host.left.add(spec.id)
        try:
            await asyncio.sleep(self.start_seconds)
            if self.refuse:
                raise SandboxRefused(f"layer {self.refuse} could not be put in force: on request", code="layer_refused")
            sandbox = await self._connected(spec)
        except BaseException:
            self.host.left.discard(spec.id)
            raise
        self.live[spec.id] = sandbox
        return sandbox

    async def _connected(self, spec: StartSpec) -> Sandbox:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        agent = Agent(spec.limits)
        await asyncio.get_running_loop().create_unix_connection(lambda: agent.channel, sock=theirs)
        return Sandbox(spec.id, ours, agent)

    def claimed(self, sandbox_id: str, limits: Limits) -> None:
        """A warm fake and a used one are the same."""

    async def stop(self, sandbox_id: str) -> None:
        """Hang up, and forget it."""
        if self.stops_fail:
            self.stops_fail -= 1
            raise OSError("the host does not let go of it: on request")
        sandbox = self.live.pop(sandbox_id, None)
        if sandbox is not None:
            sandbox.agent.vanish()
            sandbox.channel.close()
        await asyncio.sleep(self.stop_seconds)
        self.host.left.discard(sandbox_id)

    def evidence(self, sandbox_id: str) -> GroupUsage:
        """The same counters; they cost nothing here."""
        return self.usage(sandbox_id)

    def usage(self, sandbox_id: str) -> GroupUsage:
        """What its programs claimed to use."""
        sandbox = self.live.get(sandbox_id)
        if sandbox is None:
            return GroupUsage()
        box = sandbox.agent.box
        running = sum(program.fate is None for program in box.programs.values())
        return GroupUsage(box.cpu_seconds, box.memory_peak, box.memory_peak, running, box.oom_kills)

    async def found(self) -> set[str]:
        """Whatever is left, of this node or an earlier one."""
        return set(self.host.left)

    async def close(self) -> None:
        """Stop everything this runtime started."""
        for sandbox_id in list(self.live):
            await self.stop(sandbox_id)
