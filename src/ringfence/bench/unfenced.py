"""The yardstick: our own server with the sandbox taken out. `python -m ringfence.bench.unfenced`, for the bench alone.

Routes, authentication, decoding, admission, records and answers are the product's very own; only the execution is
replaced, by starting the interpreter as a plain child process. It isolates nothing, so it is not part of the product:
it listens only on a loopback socket inherited from the bench, dies with it, and runs the bench's own programs only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ringfence import wire
from ringfence.api import privileges
from ringfence.api.__main__ import policy_of
from ringfence.api.app import make_app
from ringfence.api.front import Front
from ringfence.api.protocol import Clocks
from ringfence.api.server import import_lazy, make_server, url_of, warm_up
from ringfence.bench.programs import PROGRAMS, Command
from ringfence.config import ServerSettings
from ringfence.domain.errors import Forbidden, PlatformFault, RingfenceError
from ringfence.domain.limits import Limits
from ringfence.domain.process import How
from ringfence.engine import output
from ringfence.engine.catalog import Catalog
from ringfence.engine.engine import Engine
from ringfence.engine.runs import Prepared, Runs
from ringfence.store.sqlite import SqliteStore

LOOPBACK: Final = "127.0.0.1"
STARTERS: Final = 16


class Orders(msgspec.Struct, frozen=True):
    """What the bench tells it: the server's settings, and how each program is started."""

    settings: ServerSettings
    commands: dict[str, Command]


class KnownCatalog(Catalog):
    """No node is asked: every template has the default limits, which nobody enforces here."""

    async def resolve(self, tenant: str, template: str, isolation: str, wanted: dict[str, object]) -> Limits:
        """See Catalog."""
        return Limits()


def started(command: Command) -> subprocess.CompletedProcess[bytes]:
    """Run one program as a plain child process, to its end."""
    return subprocess.run(command.words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=command.env)


class UnfencedRuns(Runs):
    """Runs whose program is a plain child process.

    It is started from a thread, which is the fastest way there is: `asyncio.create_subprocess_exec` on this event loop
    forks the whole server, 4 ms dearer than vfork, and a yardstick should not be slow.
    """

    commands: Mapping[str, Command] = {}
    starters = ThreadPoolExecutor(STARTERS, thread_name_prefix="start")

    async def _fused(self, prepared: Prepared) -> wire.Run:
        known = {program.code: name for name, program in PROGRAMS.items()}
        name = known.get(prepared.request.code or "")
        if name is None:
            raise Forbidden("only the bench's own programs run here", code="not_a_measured_program")
        done = await asyncio.get_running_loop().run_in_executor(self.starters, started, self.commands[name])
        return msgspec.structs.replace(
            prepared.run,
            state="finished",
            finished_at=time.time(),
            exit=wire.Exit(how=How.EXITED, code=done.returncode),
            **output.fields(bytearray(done.stdout), bytearray(done.stderr), truncated=False),
        )


class UnfencedEngine(Engine):
    """The engine without a node."""

    def __init__(self, store: SqliteStore, orders: Orders) -> None:
        super().__init__(Path("no-node"), store, policy_of(orders.settings))
        self.sandboxes.catalog = KnownCatalog(self.node, self.policy)
        self.runs = UnfencedRuns(self.sandboxes, self.files, store, self.ledger, self.admission)
        self.runs.commands = orders.commands

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """See Engine; nothing to connect to."""
        self.feed.start()
        try:
            yield self
        finally:
            self.feed.stop()


def inherited(fd: int) -> socket.socket:
    """The listening socket. Raises PlatformFault unless it is on loopback."""
    listener = socket.socket(fileno=fd)
    if listener.family != socket.AF_INET or listener.getsockname()[0] != LOOPBACK:
        raise PlatformFault("the unfenced server listens on loopback only", code="not_loopback")
    return listener


async def _serve(app: Front, engine: Engine, listener: socket.socket, ready_fd: int) -> None:
    server = make_server(app, engine.stopping, Clocks(), drain_seconds=1)
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(url_of(listener) + "\n")
    await server.serve(sockets=[listener])


def run(orders: Orders, listener: socket.socket, ready_fd: int, parent: int) -> None:
    """Prepare as the api does, give up the same privileges, serve."""
    settings = orders.settings
    uid, gid = privileges.api_ids(settings.user)
    privileges.own(settings.database.parent, uid, gid)
    privileges.widen_files()
    import_lazy()
    store = SqliteStore(settings.database)
    privileges.own(settings.database.parent, uid, gid)
    engine = UnfencedEngine(store, orders)
    app = make_app(engine, store, version="bench", hosts=[], body_seconds=settings.body_seconds)
    uvloop.run(warm_up(app))
    privileges.drop(uid, gid)
    privileges.die_with(parent)
    store.start()
    try:
        uvloop.run(_serve(app, engine, listener, ready_fd))
    finally:
        store.close()


def main() -> int:
    """Started by bench/comparison.py, and of use to nobody else."""
    parser = argparse.ArgumentParser(prog="ringfence-bench-unfenced", description=__doc__)
    for name in ("--orders-fd", "--listen-fd", "--ready-fd", "--parent"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    try:
        with os.fdopen(given.orders_fd, "rb") as pipe:
            orders = msgspec.json.decode(pipe.read(), type=Orders)
        run(orders, inherited(given.listen_fd), given.ready_fd, given.parent)
    except RingfenceError as error:
        sys.stderr.write(f"error[{error.code}]: {error.cause}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
