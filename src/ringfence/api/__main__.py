"""The api process: `python -m ringfence.api`. Opens what it needs, drops what it does not, then serves."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ringfence.api import privileges
from ringfence.api.app import make_app
from ringfence.api.compat.e2b.app import E2b
from ringfence.api.compat.e2b.interpreter.app import application
from ringfence.api.front import Front
from ringfence.api.handover import given_to
from ringfence.api.protocol import Clocks
from ringfence.api.server import announce, import_lazy, make_server, url_of, warm_up
from ringfence.config import ServerSettings, TenantSettings, read_server
from ringfence.domain.errors import RingfenceError
from ringfence.domain.secrets import Authority
from ringfence.edge.certificates import Alone, Received
from ringfence.edge.connection import Api
from ringfence.edge.listening import listen
from ringfence.edge.ports import Ports
from ringfence.edge.server import Edge, Pairs
from ringfence.edge.tls import quiet, read_pair
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Ceiling, Policy
from ringfence.engine.shelf import Shelf
from ringfence.network.opener.authority import make_authority
from ringfence.store.sqlite import SqliteStore
from ringfence.store.vault import Vault

# An answer of unknown length whose sandbox ended is left unfinished, so that its client can tell: no fault of ours, and
# anybody who ends sandboxes would fill the log with it.
BROKEN_OFF: Final = "ASGI callable returned without completing response."


class Sealer(Vault):
    """The vault, and the maker of authorities whose keys it keeps."""

    def new_authority(self) -> Authority:
        """A certificate authority that nobody else has."""
        return make_authority()


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    settings: ServerSettings
    listen_fd: int | None
    edge_fd: int | None
    tls_fd: int | None
    ready_fd: int | None
    parent: int | None


def _options(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="ringfence-api")
    parser.add_argument("--config")
    parser.add_argument("--state")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--settings-fd", type=int, help="all settings as JSON, from the server's parent process")
    parser.add_argument("--listen-fd", type=int)
    parser.add_argument("--edge-fd", type=int, help="where published ports are served")
    parser.add_argument("--tls-fd", type=int, help="where the edge's certificates come from")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--parent", type=int)
    given = parser.parse_args(arguments)
    if given.settings_fd is None:
        settings = read_server(given.config, state=given.state, host=given.host, port=given.port)
    else:
        with os.fdopen(given.settings_fd, "rb") as pipe:
            settings = msgspec.json.decode(pipe.read(), type=ServerSettings)
    return Options(settings, given.listen_fd, given.edge_fd, given.tls_fd, given.ready_fd, given.parent)


def _version() -> str:
    try:
        return metadata.version("ringfence")
    except metadata.PackageNotFoundError:
        return "unreleased"


def _ceiling(tenant: TenantSettings) -> Ceiling:
    return Ceiling(
        max_sandboxes=tenant.max_sandboxes,
        max_runs=tenant.max_runs,
        max_requests=tenant.max_requests,
        max_ttl_seconds=tenant.max_ttl_seconds,
        max_paused_bytes=tenant.max_paused_bytes,
        most=tenant.most(),
        egress_gateway=tenant.egress_gateway,
    )


def policy_of(settings: ServerSettings) -> Policy:
    """The operator's settings as the engine's policy."""
    default = _ceiling(settings.tenant)
    known = {name: _ceiling(tenant) for name, tenant in settings.tenants.items()}
    return Policy(
        ceiling=lambda tenant: known.get(tenant, default),
        runtimes=frozenset(settings.runtimes),
        wait_seconds=settings.wait_seconds,
        collected_bytes=settings.collected_bytes,
        keep_seconds=settings.keep_days * 86_400,
        keep_paused_seconds=settings.keep_paused_days * 86_400,
        keep_runs=settings.keep_runs,
        keep_events=settings.keep_events,
        floor=settings.egress.floor(),
        learn=settings.egress.learn,
        gateways=settings.egress.ways(),
    )


def _listener(options: Options) -> socket.socket:
    """The socket we were given, or our own; listening begins with serving."""
    if options.listen_fd is not None:
        return socket.socket(fileno=options.listen_fd)
    settings = options.settings
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=4096)


def _edge_listener(options: Options) -> socket.socket | None:
    """The socket for published ports; None where there is none."""
    if options.edge_fd is not None:
        return socket.socket(fileno=options.edge_fd)
    settings, ours = options.settings, options.listen_fd is None
    return listen(settings.edge, settings.port) if settings.edge.enabled and ours else None


def _certificates(options: Options) -> Pairs | None:
    """What the edge shows; None where it speaks no TLS. Without a parent it is read here, once."""
    if options.tls_fd is not None:
        return Received(options.tls_fd)
    edge = options.settings.edge
    return Alone(read_pair(edge.certificate, edge.certificate_key)) if edge.certificate and edge.enabled else None


def _hosts(settings: ServerSettings) -> list[str]:
    specific = settings.host not in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    known = (
        [*settings.allowed_hosts, f"api.{settings.edge.domain}"]
        if settings.edge.serve_api or settings.e2b.enabled
        else settings.allowed_hosts
    )
    return [*known, host] if specific else known


async def _serve(
    app: Front,
    engine: Engine,
    options: Options,
    listener: socket.socket,
    edge: Callable[[Api], AbstractAsyncContextManager[None]],
) -> None:
    settings = options.settings
    clocks = Clocks(settings.header_seconds, settings.stall_seconds, settings.max_connections)
    server = make_server(app, engine.stopping, clocks, settings.drain_seconds)
    announcing = asyncio.create_task(announce(engine, options.ready_fd, url_of(listener)))
    try:
        async with edge(given_to(server)):
            await server.serve(sockets=[listener])
    finally:
        announcing.cancel()


def _opened(place: Path) -> int:
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _e2b(engine: Engine, store: SqliteStore, ports: Ports, settings: ServerSettings, kept: Shelf) -> E2b | None:
    """E2B's face and its code interpreter, where the operator wants it."""
    return E2b(engine, store, settings.e2b, settings.edge, ports, application, kept) if settings.e2b.enabled else None


def run(options: Options) -> None:
    """Prepare with privilege, serve without."""
    sys.unraisablehook = quiet
    settings = options.settings
    uid, gid = privileges.api_ids(settings.user)
    privileges.own(settings.database.parent, uid, gid)
    privileges.widen_files()
    import_lazy()
    privileges.own(settings.paused, uid, gid)
    privileges.own(settings.builds, uid, gid)
    shelf, kept = Shelf(_opened(settings.paused)), Shelf(_opened(settings.builds))
    store, sealer = SqliteStore(settings.database), Sealer(settings.database.with_name("secrets.key"))
    roots = settings.egress.roots()
    privileges.own(settings.database.parent, uid, gid)  # the files that opening made
    # The node's socket is reached from here by its bare name: the way to it may be closed to an ordinary user.
    settings.node_socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.chdir(settings.node_socket.parent)
    engine = Engine(Path(settings.node_socket.name), store, policy_of(settings), shelf, sealer=sealer, roots=roots)
    edge = Edge(engine, store, settings.edge)
    app = make_app(
        engine, store, version=_version(), hosts=_hosts(settings), body_seconds=settings.body_seconds,
        published=edge.ports, e2b=_e2b(engine, store, edge.ports, settings, kept),
    )  # fmt: skip
    listener, edge_listener, certificates = _listener(options), _edge_listener(options), _certificates(options)
    uvloop.run(warm_up(app))
    privileges.drop(uid, gid)
    if options.parent is not None:
        privileges.die_with(options.parent)
    store.start()
    try:
        serving = partial(edge.serving, edge_listener, certificates=certificates)
        uvloop.run(_serve(app, engine, options, listener, lambda api: serving(api=api)))
    finally:
        store.close()


def main() -> int:
    """Parse, serve; 0 after a clean stop."""
    logging.basicConfig(level=logging.WARNING, format="ringfence api: %(levelname)s: %(message)s")
    served = logging.getLogger("uvicorn.error")
    served.setLevel(logging.ERROR)  # a warning for each bad request would fill the log
    served.addFilter(lambda record: record.getMessage() != BROKEN_OFF)
    try:
        run(_options())
    except RingfenceError as error:
        hint = f" ({error.remediation})" if error.remediation else ""
        sys.stderr.write(f"error[{error.code}]: {error.cause}{hint}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error[api_not_started]: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
