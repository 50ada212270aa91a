"""A node that speaks the real protocol and runs nothing: programs are a word that says how they behave.

    say TEXT | warn TEXT | exit CODE | raw HEX | flood BYTES | echo | sleep SECONDS | hang | crash SIGNAL | oom | full
    lose (the sandbox vanishes) | lie (a guest END that is not JSON) | liar (a bad CONTROL) | chatter | oversend

Words are separated by "; ". Files live in a dict per sandbox. Used by tests and by the api's own benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ringfence.domain.limits import Limits
from ringfence.domain.sandbox import new_id
from ringfence.guest import frames

DEFAULTS = {name: getattr(Limits(), name) for name in Limits.__slots__}


class Refusal(Exception):
    """A node error."""

    def __init__(self, code: str, cause: str, status: int) -> None:
        super().__init__(cause)
        self.code, self.status = code, status


class GuestRefusal(Exception):
    """An agent error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class FakeSandbox:
    """Names, files, processes."""

    def __init__(self, ask: dict[str, Any], ttl: float) -> None:
        self.id = new_id("s")
        self.tenant = ask["tenant"]
        self.ask = ask
        self.expires_at = time.time() + ttl
        self.created_at = time.time()
        self.files: dict[str, bytes] = {}
        self.processes: dict[int, dict[str, Any]] = {}
        self.watchers: list[Stream] = []

    def describe(self, state: str = "running") -> dict[str, Any]:
        """As the node shows it."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "template": self.ask["template"],
            "template_digest": "d" * 64,
            "runtime": "fake",
            "state": state,
            "labels": self.ask["labels"],
            "limits": self.ask["limits"],
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "layers": ["none"],
            "limits_by": "nobody",
        }


class Stream:
    """One stream of one connection."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.credit = frames.WINDOW
        self.room = asyncio.Event()
        self.stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.controls: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def send(self, type_: int, payload: bytes = b"") -> None:
        """One frame up."""
        self.connection.write(frames.encode(type_, self.id, payload))

    def control(self, message: dict[str, Any]) -> None:
        """One message up."""
        self.send(frames.CONTROL, json.dumps(message).encode())

    async def out(self, data: bytes, type_: int = frames.STDOUT) -> None:
        """Output, as credit allows."""
        while data:
            while self.credit <= 0:
                self.room.clear()
                await self.room.wait()
            piece = data[: min(self.credit, frames.MAX_DATA)]
            self.credit -= len(piece)
            data = data[len(piece) :]
            self.send(type_, piece)

    def end(self, header: dict[str, Any], guest: bytes = b"") -> None:
        """The last frame."""
        head = json.dumps(header).encode()
        self.send(frames.END, len(head).to_bytes(4, "big") + head + guest)
        self.connection.streams.pop(self.id, None)

    def heard(self, frame: frames.Frame) -> None:
        """One frame from above."""
        if frame.type == frames.STDIN:
            self.stdin.put_nowait(frame.payload)
            self.connection.write(frames.credit(self.id, len(frame.payload)))
        elif frame.type == frames.EOF:
            self.stdin.put_nowait(None)
        elif frame.type == frames.CREDIT:
            self.credit += frames.credit_of(frame.payload)
            self.room.set()
        elif frame.type == frames.CONTROL:
            self.controls.append(json.loads(frame.payload))
        elif frame.type == frames.CANCEL:
            self.cancelled.set()
            self.connection.node.cancelled += 1
            if self.task is not None:
                self.task.cancel()

    async def all_stdin(self) -> bytes:
        """Everything until EOF."""
        pieces = []
        while (piece := await self.stdin.get()) is not None:
            pieces.append(piece)
        return b"".join(pieces)


class Connection(asyncio.Protocol):
    """One api."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.parser = frames.Parser()
        self.streams: dict[int, Stream] = {}
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.node.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.node.connections.discard(self)
        for stream in self.streams.values():
            if stream.task is not None:
                stream.task.cancel()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        for frame in self.parser.feed(data):
            if frame.type == frames.OPEN:
                stream = self.streams[frame.stream] = Stream(self, frame.stream)
                size = int.from_bytes(frame.payload[:4], "big")
                ask = json.loads(frame.payload[4 : 4 + size])
                guest = frame.payload[4 + size :]
                stream.task = asyncio.get_running_loop().create_task(self.node.serve(stream, ask, guest))
            elif frame.stream in self.streams:
                self.streams[frame.stream].heard(frame)


class FakeNode:
    """Verbs over a dict of sandboxes. `started` counts programs and sandboxes: a refusal must not move it."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.connections: set[Connection] = set()
        self.listeners: set[Stream] = set()
        self.asks: list[dict[str, Any]] = []
        self.started = 0
        self.cancelled = 0
        self.keep_asks = True
        self.overloaded = False
        self.next_pid = 2
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Listen at a place where nothing is yet."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self), str(path))

    async def stop(self) -> None:
        """Die, as a killed node does: every connection drops, nothing is said."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        self.sandboxes.clear()

    def emit(self, kind: str, sandbox: FakeSandbox, **data: Any) -> None:
        """Tell every listener."""
        event = {"type": kind, "tenant": sandbox.tenant, "sandbox": sandbox.id, "time": time.time(), "data": data}
        for stream in self.listeners:
            stream.control({"event": event})

    def fail(self, sandbox_id: str, **data: Any) -> None:
        """A sandbox dies by itself."""
        sandbox = self.sandboxes.pop(sandbox_id)
        self.emit("sandbox.failed", sandbox, **data)

    async def serve(self, stream: Stream, ask: dict[str, Any], guest: bytes) -> None:
        """One verb."""
        if self.keep_asks:
            self.asks.append({**ask, "guest": guest})
        try:
            await getattr(self, f"verb_{ask['verb']}")(stream, ask, guest)
        except Refusal as error:
            body = {"code": error.code, "cause": str(error), "remediation": "", "status": error.status}
            stream.end({"error": body})

    # --- verbs ---

    def _claim(self, ask: dict[str, Any], ttl: float) -> FakeSandbox:
        if self.overloaded:
            raise Refusal("overloaded", "no sandbox became free", 503)
        if ask["template"] not in {"base", "other"}:
            raise Refusal("unknown_template", "no such template", 404)
        self.started += 1
        sandbox = FakeSandbox(ask, ttl)
        self.sandboxes[sandbox.id] = sandbox
        self.emit("sandbox.created", sandbox)
        return sandbox

    def _find(self, ask: dict[str, Any]) -> FakeSandbox:
        sandbox = self.sandboxes.get(ask["sandbox"])
        if sandbox is None or sandbox.tenant != ask["tenant"]:
            raise Refusal("sandbox_not_found", "no such sandbox", 404)
        return sandbox

    async def verb_run(self, stream: Stream, ask: dict[str, Any], guest: bytes) -> None:
        sandbox = self._claim(ask, 60)
        if "timeout" in ask:  # a node times a lone run itself; this one has its programs do it
            guest = json.dumps({**json.loads(guest), "timeout": ask["timeout"]}).encode()
        try:
            await self._guest(stream, sandbox, guest)
        finally:
            self.sandboxes.pop(sandbox.id, None)

    async def verb_create(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        sandbox = self._claim(ask, ask["ttl_seconds"])
        stream.end({"sandbox": sandbox.describe(), "timings": {"queue": 0.1, "claim": 0.2}})

    async def verb_open(self, stream: Stream, ask: dict[str, Any], guest: bytes) -> None:
        await self._guest(stream, self._find(ask), guest)

    async def verb_get(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        usage = {"cpu_seconds": 0.5, "peak_memory_bytes": 1000, "memory_bytes": 5}
        stream.end({"sandbox": {**self._find(ask).describe(), "usage": usage}})

    async def verb_list(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        tenant = ask["tenant"]
        stream.end({"sandboxes": [s.describe() for s in self.sandboxes.values() if tenant in {None, s.tenant}]})

    async def verb_extend(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        sandbox = self._find(ask)
        sandbox.expires_at = time.time() + ask["ttl_seconds"]
        stream.end({"sandbox": sandbox.describe()})

    async def verb_reset(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        sandbox = self._find(ask)
        sandbox.files.clear()
        sandbox.processes.clear()
        self.emit("sandbox.reset", sandbox)
        stream.end({"sandbox": sandbox.describe()})

    async def verb_secret(self, stream: Stream, _: dict[str, Any], __: bytes) -> None:
        stream.end({})

    async def verb_stop(self, stream: Stream, ask: dict[str, Any], _: bytes) -> None:
        sandbox = self._find(ask)
        del self.sandboxes[sandbox.id]
        self.emit("sandbox.stopped", sandbox, how="stopped", reason=ask["reason"])
        fate = {"how": "stopped", "reason": ask["reason"]}
        stream.end({"sandbox": {**sandbox.describe("stopped"), "exit": fate}})

    async def verb_templates(self, stream: Stream, _: dict[str, Any], __: bytes) -> None:
        rows = [{"name": name, "limits": DEFAULTS, "zygote": "fork", "runtime": "auto"} for name in ("base", "other")]
        stream.end({"templates": rows})

    async def verb_runtimes(self, stream: Stream, _: dict[str, Any], __: bytes) -> None:
        layer = {"name": "seccomp", "in_force": False, "reason": "this runs nothing"}
        stream.end({"runtimes": [{"name": "jail", "available": True, "layers": [layer], "limits_by": "nobody"}]})

    async def verb_status(self, stream: Stream, _: dict[str, Any], __: bytes) -> None:
        pools = [{"tenant": "ada", "template": "base", "idle": 1}, {"tenant": "bob", "template": "base", "idle": 2}]
        stream.end({"sandboxes": len(self.sandboxes), "pools": pools, "uptime_seconds": 5.0, "counters": {}})

    async def verb_events(self, stream: Stream, _: dict[str, Any], __: bytes) -> None:
        self.listeners.add(stream)
        try:
            await stream.cancelled.wait()
        finally:
            self.listeners.discard(stream)

    # --- the guest ---

    async def _guest(self, stream: Stream, sandbox: FakeSandbox, payload: bytes) -> None:
        words = json.loads(payload)
        try:
            op = "mute" if words.get("path") == "mute" else words["op"]
            await getattr(self, f"op_{op}")(stream, sandbox, words)
        except GuestRefusal as error:
            stream.end({"sandbox": sandbox.id}, json.dumps({"error": {"code": error.code, "cause": "so"}}).encode())

    async def op_run(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        await self._program(stream, sandbox, words, words["code"])

    async def op_exec(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        script = words["shell"] if "shell" in words else " ".join(words["argv"])
        await self._program(stream, sandbox, words, script)

    async def _program(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any], script: str) -> None:
        self.next_pid += 1
        pid = self.next_pid
        self.started += 1
        row: dict[str, Any] = {
            "pid": pid,
            "argv": [script],
            "kind": "exec",
            "running": True,
            "exit": None,
            "words": words,
        }
        row["tag"] = words.get("tag")
        sandbox.processes[pid] = row
        stream.control({"started": {"pid": pid}})
        header: dict[str, Any] = {
            "sandbox": sandbox.id,
            "oom_kills": 0,
            "usage": {"cpu_seconds": 0.01, "peak_memory_bytes": 1_000_000, "output_bytes": 3, "source": "fake"},
            "timings": {"queue": 0.1, "claim": 0.1, "start": 0.2, "run": 5.0, "collect": 0.1},
        }
        fate: dict[str, Any] = {"how": "exited", "code": 0, "signal": None, "cpu_seconds": 0.01}
        try:
            if words.get("timeout") is not None:
                async with asyncio.timeout(words["timeout"]):
                    answer = await self._script(stream, sandbox, script, fate, header)
            else:
                answer = await self._script(stream, sandbox, script, fate, header)
        except TimeoutError:
            fate.update(how="timed_out", code=None, signal=9)
            answer = None
        row.update(running=False, exit={k: fate[k] for k in ("how", "code", "signal")})
        stream.end(header, json.dumps({"exit": fate}).encode() if answer is None else answer)

    async def _script(
        self, stream: Stream, sandbox: FakeSandbox, script: str, fate: dict[str, Any], header: dict[str, Any]
    ) -> bytes | None:
        for step in script.split("; "):
            word, _, rest = step.partition(" ")
            act = getattr(self, f"do_{word}", None)
            if act is None:
                continue
            answer = await act(stream, rest, fate, header)
            if answer is not None:
                return bytes(answer)
        return None

    async def do_say(self, stream: Stream, rest: str, *__: Any) -> None:
        await stream.out(rest.encode() + b"\n")

    async def do_warn(self, stream: Stream, rest: str, *_: Any) -> None:
        await stream.out(rest.encode() + b"\n", frames.STDERR)

    async def do_raw(self, stream: Stream, rest: str, *_: Any) -> None:
        await stream.out(bytes.fromhex(rest))

    async def do_flood(self, stream: Stream, rest: str, *__: Any) -> None:
        piece = b"x" * 65536
        for _ in range(int(rest) // len(piece)):
            await stream.out(piece)

    async def do_echo(self, stream: Stream, *_: Any) -> None:
        while (piece := await stream.stdin.get()) is not None:
            await stream.out(piece)

    async def do_sleep(self, _: Stream, rest: str, *__: Any) -> None:
        await asyncio.sleep(float(rest))

    async def do_hang(self, *_: Any) -> None:
        await asyncio.Event().wait()

    async def do_exit(self, _: Stream, rest: str, fate: dict[str, Any], __: Any) -> None:
        fate["code"] = int(rest)

    async def do_crash(self, _: Stream, rest: str, fate: dict[str, Any], __: Any) -> None:
        fate.update(how="signalled", code=None, signal=int(rest))

    async def do_oom(self, _: Stream, __: str, fate: dict[str, Any], header: dict[str, Any]) -> None:
        fate.update(how="signalled", code=None, signal=9)
        header["oom_kills"] = 1

    async def do_full(self, _: Stream, __: str, fate: dict[str, Any], ___: Any) -> None:
        fate.update(code=1, scratch_full=True)

    async def do_capped(self, _: Stream, __: str, ___: Any, header: dict[str, Any]) -> bytes:
        header["override"] = {"how": "output_capped", "reason": "wrote more than the limit"}
        return b""

    async def do_lose(self, _: Stream, __: str, ___: Any, header: dict[str, Any]) -> bytes:
        header["error"] = {"code": "sandbox_lost", "cause": "the sandbox vanished", "remediation": "", "status": 502}
        return b""

    async def do_lie(self, *_: Any) -> bytes:
        return b"\xff not json" + b"[" * 100_000

    async def do_liar(self, stream: Stream, *_: Any) -> None:
        stream.send(frames.CONTROL, b'{"started": {"pid": "rm -rf"}}')

    async def do_chatter(self, stream: Stream, *__: Any) -> None:
        for _ in range(10):
            stream.send(frames.CONTROL, b'{"event": null, "pad": "' + b"x" * 300_000 + b'"}')

    async def do_oversend(self, stream: Stream, *__: Any) -> None:
        for _ in range(20):
            stream.send(frames.STDOUT, b"x" * frames.MAX_DATA)

    # --- other ops ---

    def _process(self, sandbox: FakeSandbox, words: dict[str, Any]) -> dict[str, Any]:
        if words["pid"] not in sandbox.processes:
            raise GuestRefusal("not_found")
        return sandbox.processes[words["pid"]]

    @staticmethod
    def _done(stream: Stream, **answer: Any) -> None:
        stream.end({}, json.dumps(answer).encode())

    async def op_attach(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        row = self._process(sandbox, words)
        stream.control({"started": {"pid": row["pid"]}})
        await stream.out(b"the tail\n")
        self._done(stream, exit=row["exit"] or {"how": "exited", "code": 0})

    async def op_list(self, stream: Stream, sandbox: FakeSandbox, _: dict[str, Any]) -> None:
        rows = [{k: v for k, v in row.items() if k != "words"} for row in sandbox.processes.values()]
        self._done(stream, processes=rows)

    async def op_signal(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        self._process(sandbox, words)["signalled"] = words["signal"]
        self._done(stream)

    async def op_resize(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        self._process(sandbox, words)
        self._done(stream)

    async def op_input(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        self._process(sandbox, words)["input"] = await stream.all_stdin()
        self._done(stream)

    async def op_write(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if words["path"].startswith("/etc"):
            raise GuestRefusal("permission")
        data = await stream.all_stdin()
        sandbox.files[words["path"]] = data
        for watcher in sandbox.watchers:
            watcher.control({"event": {"type": "create", "path": words["path"]}})
        self._done(stream, size=len(data))

    async def op_read(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if words["path"] not in sandbox.files:
            raise GuestRefusal("not_found")
        data = sandbox.files[words["path"]]
        await stream.out(data)
        self._done(stream, size=len(data))

    def _entry(self, sandbox: FakeSandbox, path: str) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        return {"name": name, "path": path, "type": "file", "size": len(sandbox.files[path]), "mode": 420}

    async def op_mute(self, *_: Any) -> None:
        await asyncio.Event().wait()

    async def op_stat(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if words["path"] not in sandbox.files:
            raise GuestRefusal("not_found")
        self._done(stream, entry=self._entry(sandbox, words["path"]))

    async def op_ls(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if words["path"] == "strange":
            entry = {"name": "a\udcffb", "path": "a\udcffb", "type": "file"}
            self._done(stream, entries=[entry])
            return
        self._done(stream, entries=[self._entry(sandbox, path) for path in sandbox.files], truncated=False)

    async def op_mkdir(self, stream: Stream, _: FakeSandbox, __: dict[str, Any]) -> None:
        self._done(stream)

    async def op_move(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if words["source"] not in sandbox.files:
            raise GuestRefusal("not_found")
        sandbox.files[words["target"]] = sandbox.files.pop(words["source"])
        self._done(stream)

    async def op_remove(self, stream: Stream, sandbox: FakeSandbox, words: dict[str, Any]) -> None:
        if sandbox.files.pop(words["path"], None) is None:
            raise GuestRefusal("not_found")
        self._done(stream)

    async def op_watch(self, stream: Stream, sandbox: FakeSandbox, _: dict[str, Any]) -> None:
        stream.control({"started": {}})
        sandbox.watchers.append(stream)
        try:
            await stream.cancelled.wait()
        finally:
            sandbox.watchers.remove(stream)

    async def op_tunnel(self, stream: Stream, _: FakeSandbox, words: dict[str, Any]) -> None:
        if words["port"] == 1:
            raise GuestRefusal("io")
        stream.control({"started": {}})
        while (piece := await stream.stdin.get()) is not None:
            await stream.out(piece.upper())
        stream.send(frames.EOF)
        self._done(stream)


async def _main(path: Path) -> None:
    node = FakeNode()
    node.keep_asks = False
    await node.start(path)
    os.write(1, b"node ready\n")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await node.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args().socket)))
