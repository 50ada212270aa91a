"""A node in the test's own event loop, and the api's end of its socket: verbs out, frames back, lies possible."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ringfence.domain.limits import Limits
from ringfence.domain.template import PoolPolicy, Template
from ringfence.guest import frames
from ringfence.node.isolation import Isolation
from ringfence.node.server import join, listen
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.base import Runtime
from ringfence.runtimes.fake import Fake
from ringfence.templates.catalog import Built, Catalog

PATIENCE = 60.0  # seconds until a test gives up; nothing is timed with it


def fields_of(limits: Limits) -> dict[str, Any]:
    """Limits as a verb carries them: every field."""
    return dataclasses.asdict(limits)


async def until(true: Callable[[], object], what: str = "it") -> None:
    """Let the loop turn until `true()`."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for has no event to wait for
            await asyncio.sleep(0.002)


class Call:
    """One stream of ours."""

    def __init__(self, wire: Wire, stream: int, *, automatic: bool) -> None:
        self.id = stream
        self.out = bytearray()
        self.err = bytearray()
        self.controls: list[dict[str, Any]] = []
        self.header: dict[str, Any] | None = None
        self.guest: dict[str, Any] = {}
        self.ends = 0
        self._wire = wire
        self._automatic = automatic

    def received(self, frame: frames.Frame) -> None:
        """One frame from the node."""
        if frame.type in {frames.STDOUT, frames.STDERR}:
            (self.out if frame.type == frames.STDOUT else self.err).extend(frame.payload)
            if self._automatic:
                self.grant(len(frame.payload))
        elif frame.type == frames.CONTROL:
            self.controls.append(json.loads(frame.payload))
        elif frame.type == frames.END:
            size = int.from_bytes(frame.payload[:4], "big")
            self.header = json.loads(frame.payload[4 : 4 + size])
            self.guest = json.loads(frame.payload[4 + size :] or b"{}")
            self.ends += 1

    def grant(self, count: int) -> None:
        """Let that much more come."""
        self._wire.send(frames.CREDIT, self.id, count.to_bytes(4, "big"))

    def stdin(self, data: bytes) -> None:
        """Bytes toward the program; the caller minds the credit."""
        for at in range(0, len(data), frames.MAX_DATA):
            self._wire.send(frames.STDIN, self.id, data[at : at + frames.MAX_DATA])

    def eof(self) -> None:
        """No more of them."""
        self._wire.send(frames.EOF, self.id)

    def cancel(self) -> None:
        """Lose interest."""
        self._wire.send(frames.CANCEL, self.id)

    async def started(self) -> int:
        """The program's pid."""
        await until(lambda: self.controls or self.header is not None)
        return int(self.controls[0]["started"]["pid"])

    async def answer(self) -> dict[str, Any]:
        """The node's part of END."""
        await until(lambda: self.header is not None or self._wire.closed)
        if self.header is None:
            raise ConnectionError("the node hung up")
        return self.header

    async def error(self) -> str:
        """The code of the node's refusal."""
        answer = await self.answer()
        return str(answer.get("error", {}).get("code", answer))


class Wire(asyncio.Protocol):
    """One api process's connection."""

    def __init__(self) -> None:
        self.closed = False
        self._parser = frames.Parser()
        self._calls: dict[int, Call] = {}
        self._transport: asyncio.Transport
        self._last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """The node hung up."""
        self.closed = True

    def data_received(self, data: bytes) -> None:
        """Sort what came."""
        for frame in self._parser.feed(data):
            self._calls[frame.stream].received(frame)

    def raw(self, data: bytes) -> None:
        """Any bytes."""
        self._transport.write(data)

    def send(self, type_: int, stream: int, payload: bytes = b"") -> None:
        """One frame, right or wrong."""
        self.raw(frames.encode(type_, stream, payload))

    def pause(self) -> None:
        """Read no more: an api that is stuck."""
        self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def open_raw(self, payload: bytes, *, automatic: bool = True) -> Call:
        """A stream with any bytes in its OPEN."""
        self._last += 1
        call = self._calls[self._last] = Call(self, self._last, automatic=automatic)
        self.send(frames.OPEN, self._last, payload)
        return call

    def open(self, verb: str, guest: dict[str, Any] | None = None, *, automatic: bool = True, **fields: Any) -> Call:
        """A verb."""
        payload = join({"verb": verb, **fields}, json.dumps(guest).encode() if guest is not None else b"")
        return self.open_raw(payload, automatic=automatic)

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """A verb, to its answer."""
        return await self.open(verb, **fields).answer()

    def run(self, guest: dict[str, Any], *, tenant: str = "a", limits: Limits | None = None, **fields: Any) -> Call:
        """A one-shot run."""
        automatic = bool(fields.pop("automatic", True))
        ask = {"template": "base", "limits": fields_of(limits or Limits()), "labels": {}, "isolation": "auto", **fields}
        return self.open("run", guest, automatic=automatic, tenant=tenant, run_id="r", **ask)

    async def create(self, *, tenant: str = "a", limits: Limits | None = None, **fields: Any) -> dict[str, Any]:
        """A sandbox that stays."""
        ask = {"template": "base", "limits": fields_of(limits or Limits()), "ttl_seconds": 300, **fields}
        answer = await self.ask("create", tenant=tenant, labels={}, isolation="auto", **ask)
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return dict(answer["sandbox"])

    def exec(self, sandbox: str, line: str, *, tenant: str = "a", automatic: bool = True, **fields: Any) -> Call:
        """A shell line in a sandbox."""
        guest = {"op": "exec", "shell": line, **fields}
        return self.open("open", guest, automatic=automatic, tenant=tenant, sandbox=sandbox, kind="program")

    def close(self) -> None:
        """Vanish, as a killed api does."""
        self._transport.abort()


@dataclasses.dataclass
class Node:
    """A node and what a test may look at."""

    runtime: Any
    supervisor: Supervisor
    path: Path

    async def connect(self) -> Wire:
        """A new api connection."""
        _, wire = await asyncio.get_running_loop().create_unix_connection(Wire, str(self.path))
        return wire

    @property
    def idle(self) -> int:
        """Warm sandboxes that wait."""
        return sum(int(pool["idle"]) for pool in self.supervisor.status()["pools"])

    async def settled(self) -> None:
        """Wait until nothing is being started, waited for or ended."""

        def quiet() -> bool:
            status = self.supervisor.status()
            return not status["ending"] and not any(p["starting"] or p["waiting"] for p in status["pools"])

        await until(quiet)


def catalog(place: Path, pool: PoolPolicy | None = None) -> Catalog:
    """A catalogue with one template, `base`, whose root is an empty directory."""
    found = Catalog(place)
    digest = "d" * 64
    (place / digest / "root").mkdir(parents=True)
    template = Template(name="base", pool=pool or PoolPolicy())
    found.record(Built(template, digest, place / digest / "root", 0, 0.0, "r"))
    return found


@asynccontextmanager
async def node(
    place: Path, runtime: Runtime | None = None, *, pool: PoolPolicy | None = None, **settings: Any
) -> AsyncIterator[Node]:
    """A node over a fake runtime, closed afterwards."""
    chosen = runtime or Fake()
    supervisor = Supervisor(Isolation(chosen), catalog(place / "templates", pool), Settings(**settings))
    await supervisor.begin()
    path = place / "node" / "node.sock"
    server = await listen(supervisor, path, os.geteuid())
    try:
        yield Node(chosen, supervisor, path)
    finally:
        server.close()
        await supervisor.close()
