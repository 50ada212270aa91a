"""The fake's agent: the same requests and answers as guest/agent.py, over a dictionary instead of a kernel."""

from __future__ import annotations

import asyncio
import json
import posixpath
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ringfence.domain.limits import Limits
from ringfence.runtimes.fake.channel import Channel, Left, Stream
from ringfence.runtimes.fake.programs import Box, Program
from ringfence.runtimes.fake.script import Script
from ringfence.runtimes.fake.shell import run_argv, run_line
from ringfence.runtimes.fake.tree import HOME, TreeError

_FORBIDDEN: Final = ("/proc", "/dev", "/sys")
Op = Callable[[Stream, dict[str, Any]], Awaitable[None]]


class Agent:
    """Requests in, frames out, for one sandbox."""

    def __init__(self, limits: Limits) -> None:
        self.box = Box(limits)
        self.channel = Channel(self._opened, self.lost)
        self._tasks: set[asyncio.Task[None]] = set()
        self.ops: dict[str, Op] = {
            name.removeprefix("op_"): getattr(self, name) for name in dir(self) if name.startswith("op_")
        }

    def _opened(self, stream: Stream, payload: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(stream, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream, payload: bytes) -> None:
        try:
            if stream.closed:
                raise Left
            request = json.loads(payload)
            await self.ops[request["op"]](stream, request)
        except Left:
            return
        except TreeError as error:
            stream.fail(error.code, str(error))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            stream.fail("bad_request", f"{type(error).__name__}: {error}")

    def lost(self) -> None:
        """The node hung up: nothing of this sandbox goes on."""
        for program in self.box.programs.values():
            program.abandon()
        for task in self._tasks:
            task.cancel()

    def vanish(self) -> None:
        """Die without a word, as a killed agent does."""
        self.channel.close()

    # -- programs -------------------------------------------------------------------------------------------

    async def op_exec(self, stream: Stream, request: dict[str, Any]) -> None:
        """Start a command, or a shell line."""
        given = request.get("argv")
        argv = given or ["/bin/sh", "-c", str(request["shell"])]
        if not all(isinstance(part, str) and "\0" not in part for part in argv):
            raise TreeError("bad_request", "argv must be strings without NUL")
        program = self._program(argv, request, "exec")
        body = run_argv(program, argv) if given else run_line(program, argv[2])
        await self._live(stream, program, body, request)

    async def op_run(self, stream: Stream, request: dict[str, Any]) -> None:
        """Walk a Python text."""
        code, name = request["code"], str(request.get("filename") or "main.py")
        argv = [str(part) for part in request.get("argv") or []]
        if not isinstance(code, str):
            raise TreeError("bad_request", "code must be text")
        program = self._program([name, *argv], request, "run")
        await self._live(stream, program, Script(program, code, posixpath.join(HOME, name), argv).run(), request)

    def _program(self, argv: list[str], request: dict[str, Any], kind: str) -> Program:
        if request.get("pty") is not None:
            raise TreeError("bad_request", "this runtime has no terminals")
        if request.get("user") not in {None, "", "user"}:
            raise TreeError("permission", "this runtime has no other user")
        wanted = request.get("env") or {}
        if not all(isinstance(k, str) and isinstance(v, str) and k and "=" not in k for k, v in wanted.items()):
            raise TreeError("bad_request", "env must map names to text")
        cwd = self.box.tree.at(request.get("cwd") or HOME)
        if cwd.startswith(_FORBIDDEN):
            raise TreeError("bad_request", "cwd must be an ordinary directory")
        if not self.box.tree.is_dir(cwd):
            raise TreeError("not_found", "cwd does not exist")
        return Program(self.box, argv, request, kind)

    async def _live(self, stream: Stream, program: Program, body: Any, request: dict[str, Any]) -> None:
        timeout = request.get("timeout")
        program.attach(stream, replay=False, owner=True)
        program.begin(body, float(timeout) if timeout is not None else None)
        await program.follow(stream)

    def _known(self, request: dict[str, Any], *, running: bool = False) -> Program:
        program = self.box.programs.get(request["pid"])
        if program is None:
            raise TreeError("not_found", "no such program")
        if running and program.fate is not None:
            raise TreeError("not_running", "the program has ended")
        return program

    async def op_attach(self, stream: Stream, request: dict[str, Any]) -> None:
        """Join a program: its tail, then live."""
        program = self._known(request)
        program.attach(stream, replay=request.get("replay", True) is not False, owner=False)
        if not stream.closed:
            await program.follow(stream)

    async def op_list(self, stream: Stream, _: dict[str, Any]) -> None:
        """Every program, the ended included."""
        stream.end({"processes": [program.row() for program in self.box.programs.values()]})

    async def op_signal(self, stream: Stream, request: dict[str, Any]) -> None:
        """Signal a program."""
        number = request["signal"]
        if type(number) is not int or not 1 <= number <= 64:
            raise TreeError("bad_request", "signal must be a number from 1 to 64")
        self._known(request, running=True).signal(number)
        stream.end({})

    async def op_input(self, stream: Stream, request: dict[str, Any]) -> None:
        """Bytes for a running program's input."""
        program = self._known(request, running=True)
        await program.follow(stream, closing=bool(request.get("close")))
        stream.end({})

    async def op_resize(self, stream: Stream, request: dict[str, Any]) -> None:
        """There is no terminal to resize, which is no error of the asker's."""
        self._known(request)
        stream.end({})

    async def op_notice(self, stream: Stream, _: dict[str, Any]) -> None:
        """Nobody sits at a terminal."""
        stream.end({})

    async def op_settle(self, stream: Stream, _: dict[str, Any]) -> None:
        """Nothing is held that could be given back."""
        stream.end({})

    async def op_ping(self, stream: Stream, _: dict[str, Any]) -> None:
        """Still here."""
        stream.end({})

    # -- files ----------------------------------------------------------------------------------------------

    async def op_stat(self, stream: Stream, request: dict[str, Any]) -> None:
        """One entry."""
        stream.end({"entry": self.box.tree.entry(self.box.tree.at(request["path"]))})

    async def op_ls(self, stream: Stream, request: dict[str, Any]) -> None:
        """What is in a directory."""
        rows = self.box.tree.listing(self.box.tree.at(request["path"]), request.get("depth") or 1)
        stream.end({"entries": rows, "truncated": False})

    async def op_read(self, stream: Stream, request: dict[str, Any]) -> None:
        """A file's bytes, or a piece of them."""
        data = self.box.tree.read(self.box.tree.at(request["path"]))
        offset, length = request.get("offset") or 0, request.get("length")
        piece = data[offset:] if length is None else data[offset : offset + length]
        await stream.write(piece)
        stream.end({"size": len(piece), "total": len(data)})

    async def op_write(self, stream: Stream, request: dict[str, Any]) -> None:
        """Bytes into a file: all of them or none."""
        path, data = self.box.tree.at(request["path"]), bytearray()
        while (piece := await stream.take()) is not None:
            data += piece
            if len(data) > self.box.limits.scratch_bytes:
                raise TreeError("no_space", "No space left on device")
        append, parents = bool(request.get("append")), request.get("parents", True) is not False
        self.box.tree.write(path, bytes(data), append=append, parents=parents)
        if request.get("mode") is not None:
            self.box.tree.chmod(path, int(request["mode"]))
        stream.end({"size": len(data)})

    async def op_mkdir(self, stream: Stream, request: dict[str, Any]) -> None:
        """A new directory."""
        path = self.box.tree.at(request["path"])
        self.box.tree.mkdir(path, parents=bool(request.get("parents")))
        stream.end({"entry": self.box.tree.entry(path)})

    async def op_move(self, stream: Stream, request: dict[str, Any]) -> None:
        """Rename."""
        target = self.box.tree.at(request["target"])
        self.box.tree.move(self.box.tree.at(request["source"]), target)
        stream.end({"entry": self.box.tree.entry(target)})

    async def op_remove(self, stream: Stream, request: dict[str, Any]) -> None:
        """Remove."""
        self.box.tree.remove(self.box.tree.at(request["path"]), recursive=bool(request.get("recursive")))
        stream.end({})

    async def op_pack(self, stream: Stream, _: dict[str, Any]) -> None:
        """Everything a pause keeps, once no program runs."""
        await self._alone()
        data = self.box.tree.dump()
        await stream.write(data)
        stream.end({"count": len(json.loads(data)), "size": len(data)})

    async def op_measure(self, stream: Stream, _: dict[str, Any]) -> None:
        """How much that is, at most."""
        stream.end({"size": self.box.tree.used()})

    async def op_unpack(self, stream: Stream, _: dict[str, Any]) -> None:
        """And back."""
        await self._alone()
        data = bytearray()
        while (piece := await stream.take()) is not None:
            data += piece
        stream.end({"count": self.box.tree.load(bytes(data))})

    async def _alone(self) -> None:
        while running := [program for program in self.box.programs.values() if program.fate is None]:
            for program in running:
                program.signal(signal.SIGKILL)
            await asyncio.sleep(0.001)

    async def op_watch(self, stream: Stream, request: dict[str, Any]) -> None:
        """Tell every change below a directory until the asker leaves."""
        top, deep = self.box.tree.at(request["path"]), bool(request.get("recursive"))
        self.box.tree.entry(top)

        def tell(what: str, path: str) -> None:
            if posixpath.dirname(path) == top or (deep and path.startswith(top + "/")):
                stream.control({"event": {"type": what, "path": path}})

        def stop() -> None:
            self.box.tree.listeners.remove(tell)
            stream.end({})

        self.box.tree.listeners.append(tell)
        stream.on_cancel = stop
        stream.control({"started": {}})

    async def op_tunnel(self, stream: Stream, request: dict[str, Any]) -> None:
        """Whatever listens in here sends back what it hears."""
        if request["port"] not in self.box.ports:
            raise TreeError("not_listening", "nothing listens on that port")
        stream.control({"started": {}})
        while (data := await stream.take()) is not None:
            await stream.write(data)
        stream.eof()
        stream.end({})
