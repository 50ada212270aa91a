"""The server that is measured: a private one on a fresh state directory, with the tenant's counts out of the way."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ringfence import wire
from ringfence.bench.exchange import Connection, Target
from ringfence.bench.groups import Groups
from ringfence.bench.processes import command_line, cpu_seconds, tree
from ringfence.config import E2bSettings, EgressSettings, ServerSettings, TenantSettings
from ringfence.domain.errors import PlatformFault
from ringfence.serve import embedded
from ringfence.store.sqlite import KeyRing

MOST: Final = 10_000
TENANT: Final = "bench"
SETTLE_SECONDS: Final = 20.0
BEYOND: Final = "10.213.77.2"  # where bench/beyond.py puts a server, for sandboxes that may reach it
PARTS: Final = ("node", "api", "serve")


@dataclass(slots=True)
class Measured:
    """A running server, how it is reached, and its processes."""

    target: Target
    state: Path
    pids: dict[str, int] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)

    def look(self) -> None:
        """Find its processes and, once a zygote lives, its groups. Raises PlatformFault when a part is missing."""
        below = tree(os.getpid())
        for part in PARTS:
            named = [pid for pid in below if f"-m ringfence.{part}" in command_line(pid)]
            if not named:
                raise PlatformFault(f"the server's {part} process is not there", code="server_lost")
            self.pids[part] = named[0]
        self.groups = Groups.of(tree(self.pids["node"]))

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, by part."""
        parts = {part: cpu_seconds(self.pids[part]) for part in ("api", "node")}
        grouped = self.groups.cpu_seconds()
        if grouped is not None:
            parts["zygotes"], parts["sandboxes"] = grouped
        return parts

    def inside(self) -> list[int]:
        """Zygotes, sandboxes and all they run."""
        return self.groups.pids() or tree(self.pids["node"])

    def run(self, template: str, **program: Any) -> bytes:
        """A prepared POST /v1/runs."""
        return self.target.request("POST", "/v1/runs", {"template": template, **program})


@contextlib.contextmanager
def another_key(server: Measured, tenant: str = "stranger") -> Iterator[str]:
    """A key of a tenant who has nothing on this server."""
    ring = KeyRing(ServerSettings(state=str(server.state)).database)
    try:
        yield ring.add(tenant, "for one bench")[0]
    finally:
        ring.close()


@contextlib.contextmanager
def measured(state: Path, templates: Path, e2b: E2bSettings | None = None) -> Iterator[Measured]:
    """A server of one's own; it ends, with everything it started, when this is left."""
    settings = ServerSettings(
        state=str(state),
        templates=str(templates),
        tenant=TenantSettings(max_sandboxes=MOST, max_runs=MOST),
        egress=EgressSettings(permit=[f"{BEYOND}/32"]),
        e2b=e2b or E2bSettings(),
    )
    with embedded(settings, TENANT, publishes=True) as private:
        yield Measured(Target.of(private.url, private.key), state)


def settled(connection: Connection, runtime: str) -> None:
    """Wait until a runtime's pools hold what they want: what follows then measures taking, not making."""
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        pools = connection.ask("GET", "/v1/status")["pools"]
        ours = [pool for pool in pools if pool["runtime"] == runtime and pool["least"]]
        if all(pool["idle"] >= min(pool["target"], pool["least"]) and not pool["starting"] for pool in ours):
            return
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Walls:
    """The layers that should stand around a program, and what a sandbox said stands."""

    runtime: str
    limits_by: str
    in_force: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def all(self) -> bool:
        """True when nothing was left out to be quicker."""
        return bool(self.in_force) and not self.missing


def walls(connection: Connection, template: str) -> Walls:
    """Create a sandbox, compare its layers with all its runtime has, stop it."""
    offered = msgspec.convert(connection.ask("GET", "/v1/runtimes"), wire.RuntimeList).runtimes
    sandbox = msgspec.convert(connection.ask("POST", "/v1/sandboxes", {"template": template}), wire.Sandbox)
    connection.ask("DELETE", f"/v1/sandboxes/{sandbox.id}")
    named = [layer.name for runtime in offered if runtime.name == sandbox.runtime for layer in runtime.layers]
    missing = tuple(name for name in named if name not in sandbox.layers)
    return Walls(sandbox.runtime, sandbox.limits_by, tuple(sandbox.layers), missing)
