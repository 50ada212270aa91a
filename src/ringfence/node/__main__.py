"""The node process: `python -m ringfence.node`. Root (or an ordinary user, rootless), no network."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ringfence.domain.egress import DEFAULT_FLOOR, Floor, floor_from
from ringfence.domain.errors import RingfenceError
from ringfence.domain.gateways import Gateway, gateway_from
from ringfence.guest import syscalls as sc
from ringfence.node.isolation import Isolation
from ringfence.node.server import listen
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.here import runtimes
from ringfence.templates.catalog import Both, Owned


def instance_of(state: Path) -> str:
    """A short name for this state directory's kernel objects: two servers on one host never mix theirs."""
    return hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Egress:
    """What the operator says of sandboxes' networks."""

    floor: Floor = DEFAULT_FLOOR
    resolvers: tuple[str, ...] = ()
    learn: bool = False
    gateways: Mapping[str, Gateway] = field(default_factory=dict)
    authorities: str = ""  # a file; empty: the system's


def egress_from(descriptor: int) -> Egress:
    """Read it from a nameless file that the server's parent made: it holds gateways' passwords. Raises BadRequest."""
    with os.fdopen(descriptor, "rb") as file:
        table = json.load(file)
    return Egress(
        floor_from(table["deny"], table["permit"]),
        tuple(table["resolvers"]),
        table["learn"] is True,
        {name: gateway_from(name, each) for name, each in table["gateways"].items()},
        str(table["authorities"]),
    )


async def serve(state: Path, templates: Path, api_uid: int, egress: Egress) -> None:
    """Run until told to stop; leave nothing behind."""
    here = runtimes(
        instance_of(state),
        templates,
        floor=egress.floor,
        resolvers=egress.resolvers,
        gateways=egress.gateways,
        roots=egress.authorities,
    )
    catalog = Both(templates, Owned(state / "node" / "built", templates))
    settings = Settings(floor=egress.floor, learn=egress.learn, gateways=frozenset(egress.gateways))
    supervisor = Supervisor(Isolation(*here.present, absent=here.absent), catalog, settings)
    await supervisor.begin()
    path = state / "node" / "node.sock"
    server = await listen(supervisor, path, api_uid)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    os.write(1, b"node ready\n")
    await stop.wait()
    server.close()
    await supervisor.close()
    path.unlink(missing_ok=True)


def main() -> int:
    """Parse, serve; 0 after a clean stop."""
    parser = argparse.ArgumentParser(prog="ringfence-node")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--api-uid", type=int, default=os.geteuid())
    parser.add_argument("--egress-fd", type=int, metavar="FD", help="[egress] of the settings, as JSON")
    options = parser.parse_args()
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # secrets pass through here: a crash must not write them down
    try:
        egress = Egress() if options.egress_fd is None else egress_from(options.egress_fd)
        asyncio.run(serve(options.state, options.templates, options.api_uid, egress))
    except RingfenceError as error:
        sys.stderr.write(f"error[{error.code}]: {error.cause}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
