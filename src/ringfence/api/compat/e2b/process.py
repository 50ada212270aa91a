"""process.Process: programs started, followed, fed, signalled. Who leaves does not end what runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, Literal

import msgspec

from ringfence import wire
from ringfence.api.compat.e2b.call import Call
from ringfence.api.compat.e2b.connect import ConnectError, Cut, Envelopes, Outgoing, decoded, timeout_of
from ringfence.api.compat.e2b.records import SHELL, Begun
from ringfence.domain.errors import NotFound
from ringfence.domain.process import How
from ringfence.engine.processes import NOWHERE, LiveProcess
from ringfence.engine.programs import Fate
from ringfence.guest import frames

Into = Literal["stdin", "pty"]
BASE: Final = "/process.Process/"
KEEPALIVE_SECONDS: Final = 90.0  # where the client does not say
MOST_KEEPALIVE: Final = 3600
SIGNALS: Final = {"SIGNAL_SIGKILL": 9, "SIGNAL_SIGTERM": 15}


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what is sent to us."""


class Config(Message, frozen=True):
    """What to run."""

    cmd: str = ""
    args: list[str] | None = None
    envs: dict[str, str] | None = None
    cwd: str | None = None


class Size(Message, frozen=True):
    """Of a terminal."""

    cols: int = 80
    rows: int = 24


class Pty(Message, frozen=True):
    """A terminal."""

    size: Size | None = None


class Selector(Message, frozen=True):
    """Which program."""

    pid: int | None = None
    tag: str | None = None


class Start(Message, frozen=True):
    """Start a program."""

    process: Config
    pty: Pty | None = None
    tag: str | None = None
    stdin: bool | None = None


class Join(Message, frozen=True):
    """Follow a program."""

    process: Selector


class Nothing(Message, frozen=True):
    """No fields."""


class Input(Message, frozen=True):
    """Bytes for a program, by the one way or the other."""

    stdin: bytes | None = None
    pty: bytes | None = None


class SendInput(Message, frozen=True):
    """Bytes for a program."""

    process: Selector
    input: Input


class Data(Message, frozen=True):
    """Bytes, in a stream of them."""

    input: Input


class StreamInput(Message, frozen=True):
    """One message of a stream of input."""

    start: Join | None = None
    data: Data | None = None
    keepalive: Nothing | None = None


class SendSignal(Message, frozen=True):
    """A signal by E2B's name."""

    process: Selector
    signal: str = ""


class Update(Message, frozen=True):
    """A terminal's new size."""

    process: Selector
    pty: Pty | None = None


# --- starting and following ---------------------------------------------------------------------------------------


def keepalive_of(call: Call) -> float:
    """Seconds of silence after which the client wants to hear that we are there."""
    text = call.exchange.header(b"keepalive-ping-interval") or ""
    return float(min(max(int(text), 1), MOST_KEEPALIVE)) if text.isdecimal() and len(text) < 9 else KEEPALIVE_SECONDS


def _size(size: Size | None) -> wire.PtySize:
    size = size or Size()
    return wire.PtySize(cols=min(max(size.cols, 1), 4096), rows=min(max(size.rows, 1), 4096))


def _request(call: Call, asked: Start) -> wire.ProcessRequest:
    config = asked.process
    if not config.cmd:
        raise ConnectError("invalid_argument", "cmd is empty")
    home = {"HOME": call.account.home, "USER": call.account.name, "LOGNAME": call.account.name}
    program = call.face.record.shell if config.cmd == SHELL else config.cmd
    return wire.ProcessRequest(
        argv=[program, *(config.args or [])],
        env={**home, **call.face.environment(), **(config.envs or {})},
        cwd=call.path(config.cwd) if config.cwd else call.face.record.workdir,
        user=call.account.name,
        stdin_open=asked.stdin is not False and asked.pty is None,
        timeout=timeout_of(call.exchange),
        tag=asked.tag or None,
        pty=_size(asked.pty.size) if asked.pty is not None else None,
        detach=True,
    )


async def start(call: Call) -> None:
    """Start and follow a program. The deadline is the program's own; without it, it runs on when the client leaves."""
    asked = await Envelopes(call.exchange).only(Start)
    request = _request(call, asked)

    async def work() -> None:
        try:
            # The client counts, too, and does not wait for the program to be gone: its agent sees to that.
            async with (
                call.within(request.timeout),
                call.engine.processes.following(*call.where, request) as live,
            ):
                call.face.remember(live.pid, Begun(_told(asked.process), terminal=asked.pty is not None))
                await follow(call, live, terminal=asked.pty is not None)
        except NotFound as error:
            if error.code == "guest_not_found":
                raise ConnectError("invalid_argument", f"cwd {request.cwd!r} does not exist") from None
            raise

    await call.exchange.until_left(call.engine.stopping, work())


async def connect(call: Call) -> None:
    """Follow a program from now on."""
    asked = await Envelopes(call.exchange).only(Join)

    async def work() -> None:
        async with call.within(timeout_of(call.exchange)):
            pid = await _pid(call, asked.process)
            async with call.engine.processes.attached(*call.where, pid, replay=False) as live:
                begun = call.face.begun.get(pid)
                await follow(call, live, terminal=begun is not None and begun.terminal)

    await call.exchange.until_left(call.engine.stopping, work())


async def follow(call: Call, live: LiveProcess, *, terminal: bool) -> None:
    """The program's events to its end."""
    out, idle = Outgoing(call.exchange), keepalive_of(call)
    await out.send({"event": {"start": {"pid": live.pid}}})
    names = {frames.STDOUT: "pty" if terminal else "stdout", frames.STDERR: "stderr"}
    reader = live.reader
    while True:
        await reader.first(idle)
        if reader.empty and not reader.ended.done():
            await out.send({"event": {"keepalive": {}}})
            continue
        item = await reader.next()
        if item is None:
            break
        if item[0] in names:
            await out.send({"event": {"data": {names[item[0]]: item[1]}}})
    await out.send({"event": {"end": _end(await live.fate())}})
    await out.end()


def _end(fate: Fate) -> dict[str, Any]:
    """The last event. Raises Cut when it was the sandbox that ended, ConnectError for an end of ours."""
    exit_ = fate.exit
    if exit_.code is None and exit_.signal is None:
        if exit_.how is How.OUTPUT_CAPPED:
            raise ConnectError("resource_exhausted", exit_.reason)
        raise Cut
    if exit_.how is How.TIMED_OUT:
        raise ConnectError("deadline_exceeded", "the command ran longer than its timeout")
    if exit_.signal is not None:
        words = f"signal: {_SIGNAL_WORDS.get(exit_.signal, exit_.signal)}"
        return {"exitCode": -1, "exited": False, "status": words, "error": words}
    status = f"exit status {exit_.code}"
    return {"exitCode": exit_.code, "exited": True, "status": status, **({"error": status} if exit_.code else {})}


_SIGNAL_WORDS: Final = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    6: "aborted",
    9: "killed",
    11: "segmentation fault",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}


# --- asking of one ---------------------------------------------------------------------------------------------------


def _told(config: Config) -> dict[str, Any]:
    told: dict[str, Any] = {"cmd": config.cmd, "args": config.args or [], "envs": config.envs or {}}
    return {**told, "cwd": config.cwd} if config.cwd else told


async def _pid(call: Call, selector: Selector) -> int:
    """The program's pid. Raises ConnectError."""
    if selector.pid is not None:
        if not 0 < selector.pid < 2**31:
            raise ConnectError("not_found", f"process with pid {selector.pid} not found")
        return selector.pid
    if selector.tag:
        for process in await call.engine.processes.list(*call.where):
            if process.tag == selector.tag and process.running:
                return process.pid
    raise ConnectError("not_found", f"process with tag {selector.tag or ''!r:.80} not found")


async def listed(call: Call, _: Nothing) -> dict[str, Any]:
    """Every program that runs. How one was started that an earlier api started is told as far as is known."""
    rows = []
    for process in await call.engine.processes.list(*call.where):
        if process.running and process.argv[:1] != [NOWHERE]:  # a kernel is no command of its user's
            begun = call.face.begun.get(process.pid)
            config = begun.config if begun is not None else _told(Config(process.argv[0], process.argv[1:]))
            rows.append({"config": config, "pid": process.pid, **({"tag": process.tag} if process.tag else {})})
    return {"processes": rows}


def _way(given: Input) -> tuple[bytes, Into]:
    """The bytes, and which way they go in. Raises ConnectError."""
    if (given.stdin is None) == (given.pty is None):
        raise ConnectError("invalid_argument", "give either stdin or pty")
    return (given.stdin, "stdin") if given.stdin is not None else (given.pty or b"", "pty")


async def _feed(call: Call, selector: Selector, chunks: AsyncIterator[bytes], into: Into, *, close: bool) -> None:
    pid = await _pid(call, selector)
    await call.engine.processes.input(*call.where, pid, chunks, close=close, into=into)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def send_input(call: Call, asked: SendInput) -> dict[str, Any]:
    """Bytes for a program."""
    data, into = _way(asked.input)
    await _feed(call, asked.process, _once(data), into, close=False)
    return {}


async def close_stdin(call: Call, asked: Join) -> dict[str, Any]:
    """The end of a program's input."""
    await _feed(call, asked.process, _once(b""), "stdin", close=True)
    return {}


async def stream_input(call: Call) -> None:
    """Bytes for a program, as they come."""
    envelopes = Envelopes(call.exchange)
    first = await envelopes.next()
    begun = decoded(first or b"{}", StreamInput)
    if begun.start is None:
        raise ConnectError("invalid_argument", "the first message names the program")
    selector = Selector(pid=await _pid(call, begun.start.process))
    async for message in envelopes.rest():
        data = decoded(message, StreamInput).data
        if data is None:
            continue
        given, into = _way(data.input)
        await _feed(call, selector, _once(given), into, close=False)
    out = Outgoing(call.exchange)
    await out.send({})
    await out.end()


async def send_signal(call: Call, asked: SendSignal) -> dict[str, Any]:
    """Signal a program and what it started. Raises ConnectError."""
    number = SIGNALS.get(asked.signal)
    if number is None:
        raise ConnectError("invalid_argument", f"unknown signal {asked.signal!r:.40}")
    await call.engine.processes.signal(*call.where, await _pid(call, asked.process), number)
    return {}


async def update(call: Call, asked: Update) -> dict[str, Any]:
    """Resize a terminal."""
    if asked.pty is not None and asked.pty.size is not None:
        await call.engine.processes.resize(*call.where, await _pid(call, asked.process), _size(asked.pty.size))
    return {}


UNARY: Final[dict[str, tuple[Any, Any]]] = {
    BASE + "List": (Nothing, listed),
    BASE + "SendInput": (SendInput, send_input),
    BASE + "CloseStdin": (Join, close_stdin),
    BASE + "SendSignal": (SendSignal, send_signal),
    BASE + "Update": (Update, update),
}
STREAMING: Final[dict[str, Any]] = {
    BASE + "Start": start,
    BASE + "Connect": connect,
    BASE + "StreamInput": stream_input,
}
