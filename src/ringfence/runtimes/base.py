"""What a way to isolate must offer: a few verbs and a frozen record of what it can enforce.

The node is the only caller. Everything beyond these verbs (pause, snapshot, fork) is a protocol of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ringfence.domain.egress import Policy
from ringfence.domain.limits import Limits
from ringfence.domain.secrets import Trust
from ringfence.domain.template import Template


@dataclass(frozen=True, slots=True)
class Layer:
    """One fence, and whether it is in force on this host; `reason` says why not."""

    name: str
    in_force: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime can honour. A request that needs more is refused at the door, with the reason."""

    isolation: str
    fork_warm: bool
    pty: bool
    users: frozenset[str]
    enforces: frozenset[str]
    limits_by: str
    lone: bool = False  # it can run lone source code without an agent beside it
    sees_oom: bool = True  # a program killed for memory is seen to die of a signal; if not, the group alone tells
    offline: str = "it has no network for sandboxes yet"  # why it can hold no egress policy; empty: it can


@dataclass(frozen=True, slots=True)
class StartSpec:
    """Everything a start needs; values only, decided above."""

    id: str
    tenant: str
    template: Template
    template_root: Path
    template_digest: str
    limits: Limits
    one_shot: bool = True  # made for one program at once; otherwise to stay, and to stay small until it is asked
    lone: bool = False  # that program is source code and nothing else will be asked: no agent is needed
    networked: bool = False  # with a wire to the gate, which lets nothing through until it is told a policy
    writable: bool = False  # for a build: its root is a copy that it may change, and its `root` acts like one
    # The files of ours that its agent runs on, where the template's own were made by a tenant.
    trusted_root: Path | None = None
    # Where source code finds its interpreter in files that came from an image; empty: nowhere. None: it may be a fork
    # of the agent's own, whose library is in there.
    python: str | None = None


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a sandbox has used so far, counted by the kernel from outside."""

    cpu_seconds: float = 0.0
    memory_now_bytes: int = 0
    memory_peak_bytes: int = 0
    processes: int = 0
    oom_kills: int = 0


class Started(Protocol):
    """A sandbox whose agent said ready. Nothing of a tenant's has run in it."""

    id: str
    channel: socket.socket
    layers: tuple[str, ...]
    pid: int
    pidfd: int
    # A lone run's two outputs, and the page with its exit code. None: everything comes through the channel.
    beside: tuple[int, int, int] | None


class Runtime(Protocol):
    """A way to isolate."""

    name: str

    def capabilities(self) -> Capabilities:
        """What this host lets it enforce."""
        ...

    def layers(self) -> list[Layer]:
        """Every fence of this runtime, in force or not, for `doctor` and the API."""
        ...

    async def start(self, spec: StartSpec) -> Started:
        """A ready sandbox. Raises SandboxRefused naming the layer that could not be put in force."""
        ...

    def claimed(self, sandbox_id: str, limits: Limits) -> None:
        """Told when a warm sandbox gets its owner: begin what only a used one needs. Must not wait."""
        ...

    async def stop(self, sandbox_id: str) -> None:
        """Return when nothing of it runs and nothing of it is left; succeeds if it is already gone."""
        ...

    def usage(self, sandbox_id: str) -> GroupUsage:
        """What it used so far; zeros where the host cannot tell."""
        ...

    def evidence(self, sandbox_id: str) -> GroupUsage:
        """CPU time, peak memory and OOM kills alone: what an answer needs, as cheaply as can be."""
        ...

    async def found(self) -> set[str]:
        """Ids of every sandbox of which the kernel still shows anything, whoever made it."""
        ...

    async def close(self) -> None:
        """Stop everything this runtime started."""
        ...


@runtime_checkable
class Networked(Protocol):
    """A runtime whose sandboxes can have a network."""

    async def entrust(self, sandbox_id: str, tenant: str, trust: Trust) -> None:
        """Have a sandbox's secrets ready, in the place of former ones; the next allow() opens the way to their hosts.

        Raises SandboxRefused and PlatformFault.
        """
        ...

    async def allow(self, sandbox_id: str, policy: Policy) -> None:
        """Let a networked sandbox reach what a policy allows, and cut what it does not. Raises PlatformFault."""
        ...

    def on_flow(self, heard: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell of every connection and question of a sandbox: its id, and what came of it."""
        ...
