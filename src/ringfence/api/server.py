"""uvicorn around the application: everything imported and tried once, then served until told to stop."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
from types import FrameType
from typing import Any, Final

import uvicorn
from litestar import Litestar

from ringfence.api.front import Front
from ringfence.api.handover import OneHost
from ringfence.api.protocol import Clocks, http_protocol, websocket_protocol
from ringfence.domain.errors import RingfenceError
from ringfence.engine.engine import Engine

LARGEST_MESSAGE: Final = 1024 * 1024
KEEP_ALIVE_SECONDS: Final = 15
NODE_SECONDS: Final = 30.0
# Imported by name at first use, somewhere below us; after privileges are dropped their files may be out of reach.
LAZY: Final = (
    "encodings.idna",
    "encodings.latin_1",
    "encodings.ascii",
    "encodings.utf_8",
    "stringprep",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "httptools",
    "email.utils",
    "traceback",
    "linecache",
    "tracemalloc",
    "unicodedata",
    "cryptography.hazmat.backends.openssl.backend",  # at the first signature: an authority for a tenant's secrets
)
_log: Final = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server that tells the application when it drains, so that endless streams end."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._stopping.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on the first signal; the signal is not raised again, so a clean stop ends with code 0."""
        self.should_exit = True


def make_server(app: Front, stopping: asyncio.Event, clocks: Clocks, drain_seconds: float) -> Server:
    """A server for the application; nothing listens yet."""
    config = uvicorn.Config(
        OneHost(app),
        loop="uvloop",
        http=http_protocol(clocks),
        ws=websocket_protocol(clocks),
        ws_max_size=LARGEST_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
        backlog=4096,
    )
    config.load()
    return Server(config, stopping)


def import_lazy() -> None:
    """Import now what would be imported later."""
    for name in LAZY:
        importlib.import_module(name)


async def warm_up(app: Front) -> None:
    """Pass each kind of request once through the application, without a socket: what is lazy is loaded by that."""
    tries: list[tuple[str, str, bytes]] = [
        ("GET", "/health", b""),
        ("GET", "/", b""),
        ("GET", "/nowhere", b""),
        ("DELETE", "/health", b""),
        ("OPTIONS", "/health", b""),
        ("GET", "/v1/runs?limit=x", b""),
        ("POST", "/v1/runs", b"{"),
        ("PUT", "/v1/sandboxes/x/files/content", b"x"),
    ]
    for method, path, body in tries:
        await _try(app, method, path, body)
    async with Litestar(logging_config=None, openapi_config=None).lifespan():
        return  # one without routes: starting it loads what starting ours will need


async def _try(app: Front, method: str, path: str, body: bytes) -> None:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        return

    where, _, query = path.partition("?")
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": where,
            "raw_path": where.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 1),
            "state": {},
        },
        receive,
        send,
    )


async def announce(engine: Engine, ready_fd: int | None, url: str) -> None:
    """Tell whoever started us that the server answers and its node is there."""
    try:
        await engine.node.wait_up(NODE_SECONDS)
    except RingfenceError as error:
        _log.warning("%s", error.cause)
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w") as pipe:
            pipe.write(url + "\n")


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
