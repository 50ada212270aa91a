"""The real api over a fake node, on a loop of its own in a thread: everything but the sandboxes is the product."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import uvloop

from ringfence.api.app import make_app
from ringfence.api.protocol import Clocks
from ringfence.api.server import make_server
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Policy
from ringfence.store.sqlite import KeyRing, SqliteStore
from tests.support.fakenode import FakeNode

T = TypeVar("T")


class FakeApi:
    """An api with two tenants, ada and bob, and a node that runs nothing."""

    def __init__(self, policy: Policy | None = None, clocks: Clocks | None = None, body_seconds: float = 60.0) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="rf-"))
        self.database = self.place / "ringfence.db"
        self.ring = KeyRing(self.database)
        self.ada = self.ring.add("ada")[0]
        self.bob = self.ring.add("bob")[0]
        self.node = FakeNode()
        self._policy = policy or Policy(wait_seconds=30)
        self._clocks = clocks or Clocks(header_seconds=60, stall_seconds=60)  # tests of these clocks set their own
        self._body_seconds = body_seconds
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.do(self.node.start(self.place / "node.sock"))
        self.start_api()

    def start_api(self) -> None:
        """A new api process, as far as it can tell, on the same store."""
        self.store = SqliteStore(self.database)
        self.store.start()
        self.engine = Engine(self.place / "node.sock", self.store, self._policy)
        app = make_app(self.engine, self.store, version="test", hosts=["good.example"], body_seconds=self._body_seconds)
        self._server = make_server(app, self.engine.stopping, self._clocks, drain_seconds=2)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(sockets=[self.listener]), self.loop)
        self.do(self.engine.node.wait_up(60))
        while not self._server.started:
            time.sleep(0.005)

    def stop_api(self) -> None:
        """A clean stop."""
        self._server.should_exit = True
        self._serving.result(60)
        self.store.close()

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 90) -> T:
        """Carry out on the server's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(seconds)

    def client(self, key: str | None = "", **more: Any) -> httpx.Client:
        """An HTTP client; as ada unless told otherwise."""
        headers = {} if key is None else {"Authorization": f"Bearer {key or self.ada}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **more)

    def raw(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def flush(self) -> None:
        """Return when everything written so far can be read."""
        self.do(self.store.flush())

    def close(self) -> None:
        """Stop everything."""
        self.stop_api()
        self.do(self.node.stop())
        self.ring.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
