"""The node process: `python -m ringfence.node`. Root (or an ordinary user, rootless), no network."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path

from ringfence.domain.egress import Floor, floor_from
from ringfence.domain.errors import RingfenceError
from ringfence.guest import syscalls as sc
from ringfence.node.isolation import Isolation
from ringfence.node.server import listen
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.here import runtimes
from ringfence.templates.catalog import Catalog


def instance_of(state: Path) -> str:
    """A short name for this state directory's kernel objects: two servers on one host never mix theirs."""
    return hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]


async def serve(state: Path, templates: Path, api_uid: int, floor: Floor, resolvers: list[str]) -> None:
    """Run until told to stop; leave nothing behind."""
    here = runtimes(instance_of(state), templates, floor=floor, resolvers=resolvers)
    supervisor = Supervisor(Isolation(*here.present, absent=here.absent), Catalog(templates), Settings(floor=floor))
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
    parser.add_argument("--egress-permit", action="append", default=[], metavar="NETWORK")
    parser.add_argument("--egress-deny", action="append", default=[], metavar="NETWORK")
    parser.add_argument("--resolver", action="append", default=[], metavar="ADDRESS")
    options = parser.parse_args()
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    try:
        floor = floor_from(options.egress_deny, options.egress_permit)
        asyncio.run(serve(options.state, options.templates, options.api_uid, floor, options.resolver))
    except RingfenceError as error:
        sys.stderr.write(f"error[{error.code}]: {error.cause}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
