"""The seven routes of port 49999. Who asks, and for which sandbox, was decided before."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec

from ringfence.api.compat.e2b.interpreter import sources
from ringfence.api.compat.e2b.interpreter.answers import END, KEEPALIVE, error
from ringfence.api.compat.e2b.interpreter.contexts import HOME, Context, Contexts, Place
from ringfence.api.compat.e2b.interpreter.kernel import Cell
from ringfence.api.errors import ours, status_of
from ringfence.domain.errors import BadRequest, NotFound, RingfenceError, SandboxLost, TooLarge
from ringfence.engine.engine import Engine

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_log: Final = logging.getLogger(__name__)
MOST_BODY: Final = 16 * 1024 * 1024
MOST_SANDBOXES: Final = 10_000
KEEPALIVE_SECONDS: Final = 5.0
NDJSON: Final = "application/x-ndjson"
Variable = Annotated[str, msgspec.Meta(min_length=1, max_length=1024, pattern="^[^=\\x00]+$")]
Value = Annotated[str, msgspec.Meta(max_length=128 * 1024, pattern="^[^\\x00]*$")]
T = TypeVar("T")


class Execute(msgspec.Struct, frozen=True):
    """A cell to run. What later clients may add is not looked at, as E2B's own server does it."""

    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[Variable, Value] | None = None


class NewContext(msgspec.Struct, frozen=True):
    """A context to make."""

    language: str | None = None
    cwd: str | None = None


class Interpreter:
    """The application for requests to port 49999 whose sandbox was found and whose tokens were checked.

    `scope["state"]` has the `tenant`, the `sandbox` (whatever has its id) and `env`, the variables of its programs; it
    may have `lost`, the kernels that ran cells here before this process knew of it, and `ran`, to be told of the next.
    One for a process: it holds the contexts.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sandboxes: dict[str, Contexts] = {}
        self._preparing: set[asyncio.Task[None]] = set()
        engine.ledger.on_gone.append(self.forget)

    def forget(self, sandbox_id: str) -> None:
        """A sandbox ended: its contexts, too."""
        contexts = self._sandboxes.pop(sandbox_id, None)
        if contexts is not None:
            contexts.end()

    def waiting(self, sandbox_id: str) -> int:
        """How many cells of a sandbox run or wait for their turn."""
        contexts = self._sandboxes.get(sandbox_id)
        return contexts.waiting if contexts is not None else 0

    def prepare(self, tenant: str, sandbox_id: str, env: dict[str, str]) -> None:
        """Begin to start the usual kernel of a new sandbox. Should that fail, the first cell tries again, and says."""
        context = self._contexts(Place(self._engine, tenant, sandbox_id, env), new=True).default("python")
        task = asyncio.create_task(_warmed(context))
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        answer = _Answer(send)
        try:
            await self._route(scope, receive, answer)
        except OSError:  # the server's word for a client that is gone
            return
        except Exception as fault:  # noqa: BLE001 - every failure has an answer, and what it was is logged there
            await answer.refuse(ours(fault))

    async def _route(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        parts = scope["path"].strip("/").split("/")
        match scope["method"], parts:
            case "GET", ["health"]:
                await answer.json("OK")
            case "POST", ["execute"]:
                await self._execute(scope, receive, answer)
            case "GET", ["contexts"]:
                await answer.json([_described(context) for context in (await self._asked(scope)).all()])
            case "POST", ["contexts"]:
                wanted = await _body(receive, NewContext)
                language = sources.language_named(wanted.language)
                created = await (await self._asked(scope)).create(language, wanted.cwd or HOME)
                await answer.json(_described(created))
            case "DELETE", ["contexts", context_id]:
                (await self._asked(scope)).remove(context_id)
                await answer.text(200, "")
            case "POST", ["contexts", context_id, "restart"]:
                context = (await self._asked(scope)).get(context_id)
                context.restart()
                await context.warm()
                await answer.text(200, "")
            case _:
                raise NotFound("no such route")

    async def _asked(self, scope: Scope) -> Contexts:
        state = scope["state"]
        env, lost = dict(state.get("env") or {}), frozenset(state.get("lost") or ())
        contexts = self._contexts(Place(self._engine, state["tenant"], state["sandbox"].id, env, lost))
        await contexts.find()
        return contexts

    def _contexts(self, place: Place, *, new: bool = False) -> Contexts:
        found = self._sandboxes.get(place.sandbox)
        if found is None:
            while len(self._sandboxes) >= MOST_SANDBOXES:
                self.forget(next(iter(self._sandboxes)))
            found = self._sandboxes[place.sandbox] = Contexts(place, new=new)
        return found

    async def _execute(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        wanted = await _body(receive, Execute)
        contexts = await self._asked(scope)
        if wanted.context_id is not None and wanted.language is not None:
            raise BadRequest("Only one of context_id or language can be provided")
        if wanted.context_id is not None:
            context = contexts.get(wanted.context_id)
            language = context.language
        else:
            language = sources.language_named(wanted.language)
            context = contexts.default(language)
            if "ran" in scope["state"]:
                scope["state"]["ran"](context.language)
        cell = context.execute(wanted.code, wanted.env_vars or {}, language)
        watching = asyncio.create_task(_leave_when_gone(receive, cell))
        try:
            await _copy(cell, answer)
        finally:
            cell.leave()
            watching.cancel()


async def _warmed(context: Context) -> None:
    try:
        await context.warm()
    except Exception as fault:  # noqa: BLE001 - nobody waits for it yet
        _log.debug("no kernel beforehand for context %s: %s", context.id, fault)


async def _leave_when_gone(receive: Receive, cell: Cell) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    cell.leave()


async def _copy(cell: Cell, answer: _Answer) -> None:
    """A cell's lines as they come; a line of ours while none does. Raises what kept the cell from running."""
    while (lines := await cell.lines(KEEPALIVE_SECONDS)) is not None:
        await answer.piece(b"".join(lines) or KEEPALIVE, NDJSON)
    if cell.fault is None:
        await answer.end()
    elif isinstance(cell.fault, SandboxLost) or not answer.started:
        raise cell.fault
    else:
        await answer.piece(error("PlatformFault", cell.fault.cause) + END, NDJSON)
        await answer.end()


def _described(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}


async def _body(receive: Receive, kind: type[T]) -> T:
    """The request's body as JSON, whatever it calls itself. Raises BadRequest, TooLarge."""
    data = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the body broke off")
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > MOST_BODY:
            raise TooLarge(f"the body is larger than {MOST_BODY >> 20} MiB")
    try:
        return msgspec.json.decode(bytes(data or b"{}"), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as fault:
        raise BadRequest(str(fault)[:300]) from None


class _Answer:
    """The answer to one request; errors are text, as E2B's are."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def _start(self, status: int, media: str, length: int | None = None) -> None:
        self.started = True
        headers = [(b"content-type", media.encode()), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        headers.append((b"x-content-type-options", b"nosniff"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def whole(self, status: int, media: str, body: bytes) -> None:
        """An answer in one piece."""
        await self._start(status, media, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, value: Any) -> None:
        """200 and a value."""
        await self.whole(200, "application/json", json.dumps(value).encode())

    async def text(self, status: int, words: str) -> None:
        """A few words."""
        await self.whole(status, "text/plain; charset=utf-8", words.encode("utf-8", "replace"))

    async def piece(self, data: bytes, media: str) -> None:
        """A part of a stream."""
        if not self.started:
            await self._start(200, media)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """The end of a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, fault: RingfenceError) -> None:
        """Say what was wrong; a stream that has begun is cut, which a client can tell from its end."""
        if not self.started:
            await self.text(status_of(fault), fault.cause)


class HasEngine(Protocol):
    """What the application is made from."""

    @property
    def engine(self) -> Engine:
        """The one of this process."""


def application(context: HasEngine) -> Interpreter:
    """The application for requests to port 49999; one for a process."""
    return Interpreter(context.engine)
