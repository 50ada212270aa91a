"""The route table and the error table put together; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from ringfence.api import egress, files, machine, pages, ports, processes, runs, sandboxes, secrets, sockets
from ringfence.api.auth import Authenticated, check_declared
from ringfence.api.compat.e2b.app import E2b
from ringfence.api.errors import answer
from ringfence.api.front import Front
from ringfence.api.schema import describer
from ringfence.api.strict import JSON_BYTES, StrictRequest
from ringfence.config import EdgeSettings
from ringfence.domain.errors import RingfenceError
from ringfence.edge.ports import Ports
from ringfence.engine.engine import Engine
from ringfence.store.base import Store

ROUTES: Final = [
    *runs.ROUTES,
    *sandboxes.ROUTES,
    *processes.ROUTES,
    *files.ROUTES,
    *ports.ROUTES,
    *egress.ROUTES,
    *secrets.ROUTES,
    *machine.ROUTES,
    *sockets.ROUTES,
    *pages.ROUTES,
]


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    async with app.state.engine.running():
        if app.state.e2b is not None:
            app.state.e2b.begin()
        yield


def make_litestar(engine: Engine, store: Store, version: str, routes: list[Any] | None = None) -> Litestar:
    """The routes. Raises PlatformFault when one declares no authentication."""
    app = Litestar(
        routes if routes is not None else ROUTES,
        middleware=[Authenticated],
        request_class=StrictRequest,
        request_max_body_size=JSON_BYTES,
        exception_handlers={RingfenceError: answer, HTTPException: answer, Exception: answer},
        lifespan=[_lifespan],
        openapi_config=None,
        logging_config=None,  # the process configures logging once; no thread of its own
        debug=False,
        pdb_on_exception=False,
        state=State({"engine": engine, "store": store, "version": version, "e2b": None}),
    )
    check_declared(app)
    return app


def make_app(
    engine: Engine,
    store: Store,
    *,
    version: str,
    hosts: list[str],
    body_seconds: float,
    published: Ports | None = None,
    e2b: E2b | None = None,
) -> Front:
    """The whole application, ready to be served. Without an edge's table of ports, none can be published."""
    app = make_litestar(engine, store, version)
    app.state.ports = published if published is not None else Ports(engine, store, EdgeSettings())
    app.state.described = pages.Described(describer(ROUTES, version), sockets.DESCRIBED)
    app.state.e2b = e2b
    return Front(app, hosts, body_seconds, e2b)
