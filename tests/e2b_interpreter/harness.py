"""The code interpreter over a real node: everything but the door, which finds the sandbox by its header alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import uvicorn
import uvloop

from ringfence import wire
from ringfence.api.compat.e2b.interpreter.app import Interpreter
from ringfence.domain.errors import RingfenceError
from ringfence.engine.engine import Engine
from ringfence.engine.policy import Policy
from ringfence.store.sqlite import SqliteStore

T = TypeVar("T")
TEMPLATES = os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates")
TEMPLATE = "code-interpreter-v1"
TENANT = "interpreter"


@dataclass
class Execution:
    """What an /execute answered, line by line."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one type."""
        return [line for line in self.lines if line["type"] == kind]

    def printed(self, name: str = "stdout") -> str:
        """All text of one output."""
        return "".join(line["text"] for line in self.of(name))

    @property
    def error(self) -> dict[str, Any]:
        """The first error; empty when there was none."""
        return next(iter(self.of("error")), {})

    @property
    def main(self) -> dict[str, Any]:
        """The main result; empty when there was none."""
        return next((line for line in self.of("result") if line["is_main_result"]), {})

    @property
    def text(self) -> str:
        """The main result as text."""
        return str(self.main.get("text", ""))


class Door:
    """In place of E2B's own door: believes the header."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.interpreter = Interpreter(engine)
        self.env: dict[str, str] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """See ASGI."""
        wanted = next(value.decode() for name, value in scope["headers"] if name == b"e2b-sandbox-id")
        try:
            sandbox = await self.engine.sandboxes.get(TENANT, wanted)
        except RingfenceError:
            sandbox = None
        scope["state"] = {"sandbox": sandbox, "tenant": TENANT, "env": self.env}
        await self.interpreter(scope, receive, send)


class Server:
    """A node in a process of its own, the engine and the interpreter on a loop in a thread."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="rf-interpreter-"))
        argv = [sys.executable, "-m", "ringfence.node", "--state", str(self.place), "--templates", TEMPLATES]
        self._node = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._node.stdout is not None
        assert self._node.stdout.readline() == b"node ready\n"
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store = SqliteStore(self.place / "ringfence.db")
        self.store.start()
        self.do(self._start())
        self._stop = asyncio.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
        while not self._server.started:
            time.sleep(0.005)

    async def _start(self) -> None:
        self.engine = Engine(self.place / "node/node.sock", self.store, Policy(wait_seconds=30))
        self.door = Door(self.engine)
        config = uvicorn.Config(self.door, lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    async def _serve(self) -> None:
        async with self.engine.running():
            await self.engine.node.wait_up(30)
            await self._server.serve(sockets=[self._listener])

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
        """Carry out on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    @contextmanager
    def sandbox(self, isolation: str = "jail", **limits: float) -> Iterator[Sandbox]:
        """A sandbox that is stopped with the test."""
        request = wire.SandboxRequest(template=TEMPLATE, isolation=isolation, ttl_seconds=600, limits=limits)
        made = self.do(self.engine.sandboxes.create(TENANT, request))
        try:
            yield Sandbox(self, made.id)
        finally:
            self.stop(made.id)

    def stop(self, sandbox_id: str) -> None:
        """End a sandbox."""
        self.do(self.engine.sandboxes.stop(TENANT, sandbox_id))

    def close(self) -> None:
        """Stop everything."""
        self._server.should_exit = True
        self._serving.result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self.store.close()
        self._node.terminate()
        assert self._node.wait(60) == 0
        shutil.rmtree(self.place, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sandbox:
    """A sandbox as a client of the code interpreter has it."""

    def __init__(self, server: Server, sandbox_id: str) -> None:
        self.server = server
        self.id = sandbox_id
        headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49999"}
        self.http = httpx.Client(base_url=server.url, headers=headers, timeout=90, trust_env=False)

    def run(self, code: str, timeout: float = 90, **fields: Any) -> Execution:
        """POST /execute, with every line checked: JSON, ASCII, never empty, whole at its end."""
        done, patience = Execution(), httpx.Timeout(90, read=timeout)
        with self.http.stream("POST", "/execute", json={"code": code, **fields}, timeout=patience) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                assert line.isascii()
                assert line
                done.lines.append(json.loads(line))
        assert done.lines[-1] == {"type": "end_of_execution"}
        return done

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """The status and words of a request that is not served."""
        answer = self.http.request(method, path, json=body)
        return answer.status_code, answer.text

    def programs(self) -> set[int]:
        """The programs of the sandbox that are running."""
        listed = self.server.do(self.server.engine.processes.list(TENANT, self.id))
        return {process.pid for process in listed if process.running}
