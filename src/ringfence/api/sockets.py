"""WebSockets: terminals, attached processes, tunnels. Binary messages are raw bytes, text messages are JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, cast

import msgspec
from litestar import WebSocket, websocket
from litestar.params import PathParameter, QueryParameter

from ringfence import wire
from ringfence.api.auth import KEY, REFUSAL
from ringfence.api.context import Id, Pid, engine_of, tenant_of
from ringfence.api.errors import ours
from ringfence.api.strict import decode
from ringfence.domain.errors import BadRequest
from ringfence.engine.engine import Engine
from ringfence.engine.link import Reader
from ringfence.engine.processes import LiveProcess
from ringfence.guest import frames

Socket = WebSocket[Any, Any, Any]
Size = Annotated[int, QueryParameter(ge=1, le=10_000)]
Word = Annotated[str, QueryParameter()]
Shell = Annotated[str | None, QueryParameter()]
Port = Annotated[int, PathParameter(ge=1, le=65_535)]
SHELL: Final = "command -v bash >/dev/null && exec bash -i; exec sh -i"
_encode: Final = msgspec.json.Encoder().encode
BASE: Final = "/v1/sandboxes/{sandbox_id:str}"


class Conversation:
    """One accepted or yet to be accepted WebSocket."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.accepted = False
        self.gone = False

    async def accept(self) -> None:
        """What it asked for exists."""
        await self._socket.accept()
        self.accepted = True

    async def say(self, message: wire.TerminalOutput) -> None:
        """A text message."""
        await self._raw({"type": "websocket.send", "text": _encode(message).decode()})

    async def data(self, data: bytes) -> None:
        """A binary message; waits while the client reads slowly."""
        await self._raw({"type": "websocket.send", "bytes": data})

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye."""
        await self._raw({"type": "websocket.close", "code": code, "reason": reason[:100]})

    async def _raw(self, message: dict[str, Any]) -> None:
        send: Callable[[Any], Awaitable[None]] = self._socket.send
        if not self.gone:
            await send(message)

    async def heard(self) -> AsyncIterator[bytes | wire.TerminalInput]:
        """What the client sends, until it leaves."""
        receive: Callable[[], Awaitable[Any]] = self._socket.receive
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.gone = True
                return
            text = message.get("text")
            if text is None:
                yield message.get("bytes") or b""
            else:
                yield cast("wire.TerminalInput", decode(text.encode("utf-8", "replace"), wire.TerminalInput))


@asynccontextmanager
async def conversing(socket: Socket) -> AsyncIterator[Conversation]:
    """Errors before acceptance become an HTTP answer, errors after it a last message and close 1011."""
    talk = Conversation(socket)
    try:
        yield talk
    except OSError:  # the server's word for a client that is gone
        return
    except Exception as error:
        known = ours(error)
        if not talk.accepted:
            socket.scope["state"][REFUSAL] = known
            raise
        body = wire.ErrorBody(code=known.code, cause=known.cause, remediation=known.remediation)
        await talk.say(wire.TerminalOutput(error=body))
        await talk.close(1008 if isinstance(known, BadRequest) else 1011, known.code)


async def _rise(talk: Conversation, reader: Reader, on_text: Callable[[wire.TerminalInput], None]) -> None:
    """Client to sandbox."""
    async for message in talk.heard():
        if isinstance(message, bytes):
            if not await reader.send(message):
                return
        elif message.eof:
            reader.eof()
        else:
            on_text(message)


async def _fall(talk: Conversation, reader: Reader) -> None:
    """Sandbox to client."""
    while (item := await reader.next()) is not None:
        if item[0] in {frames.STDOUT, frames.STDERR}:
            await talk.data(item[1])
        elif item[0] == frames.EOF:
            return


async def _both(talk: Conversation, reader: Reader, on_text: Callable[[wire.TerminalInput], None]) -> None:
    """Until the sandbox's side has ended or the client has left; whichever raised is heard."""
    rising = asyncio.create_task(_rise(talk, reader, on_text))
    falling = asyncio.create_task(_fall(talk, reader))
    try:
        while not falling.done() and not talk.gone:
            await asyncio.wait({task for task in (rising, falling) if not task.done()}, return_when="FIRST_COMPLETED")
            if rising.done() and rising.exception() is not None:
                break
    finally:
        rising.cancel()
        falling.cancel()
        await asyncio.gather(rising, falling, return_exceptions=True)
    for task in (rising, falling):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _terminal(talk: Conversation, live: LiveProcess) -> None:
    await talk.accept()
    await talk.say(wire.TerminalOutput(started=wire.Started(pid=live.pid)))

    def on_text(message: wire.TerminalInput) -> None:
        if message.resize is not None:
            live.resize(message.resize)
        if message.signal is not None:
            live.signal(message.signal)

    await _both(talk, live.reader, on_text)
    if not talk.gone:
        await talk.say(wire.TerminalOutput(exit=(await live.fate()).exit))
        await talk.close(1000)


@websocket(BASE + "/terminal", opt=KEY)
async def terminal(
    socket: Socket, sandbox_id: Id, cols: Size = 80, rows: Size = 24, shell: Shell = None, user: Word = "user"
) -> None:
    """A shell on a terminal. It ends when the client leaves."""
    async with conversing(socket) as talk:
        if user not in {"user", "root"}:
            raise BadRequest('user is "user" or "root"')
        request = wire.ProcessRequest(
            argv=[shell] if shell else None,
            shell=None if shell else SHELL,
            pty=wire.PtySize(cols=cols, rows=rows),
            user=cast("wire.User", user),
            tag="terminal",
        )
        async with _engine(socket).processes.following(tenant_of(socket), sandbox_id, request) as live:
            await _terminal(talk, live)


@websocket(BASE + "/processes/{pid:int}/attach", opt=KEY)
async def attach(socket: Socket, sandbox_id: Id, pid: Pid) -> None:
    """A running process's output so far, then both ways. It goes on when the client leaves."""
    async with (
        conversing(socket) as talk,
        _engine(socket).processes.attached(tenant_of(socket), sandbox_id, pid) as live,
    ):
        await _terminal(talk, live)


@websocket(BASE + "/tunnel/{port:int}", opt=KEY)
async def tunnel(socket: Socket, sandbox_id: Id, port: Port) -> None:
    """A TCP connection to a port inside, both ways."""
    async with conversing(socket) as talk, _engine(socket).files.tunnel(tenant_of(socket), sandbox_id, port) as live:
        await talk.accept()
        await _both(talk, live.reader, lambda _: None)
        await talk.close(1000)


def _engine(socket: Socket) -> Engine:
    return engine_of(socket)


ROUTES: Final[list[Any]] = [terminal, attach, tunnel]
DESCRIBED: Final = [
    (min(handler.paths), " ".join((handler.fn.__doc__ or "").split())) for handler in (terminal, attach, tunnel)
]
