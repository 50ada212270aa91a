"""One sandbox's own services, answered by the api: the door, the tokens, and what is said of a sandbox that is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from ringfence.api.auth import Caller
from ringfence.api.compat.e2b import connect, files, filesystem, process, refusals, watching
from ringfence.api.compat.e2b.call import Call
from ringfence.api.compat.e2b.http import App, Exchange, Stopping
from ringfence.api.compat.e2b.records import Face, Registry, same
from ringfence.api.compat.e2b.users import from_basic
from ringfence.api.errors import ClientGone
from ringfence.domain.errors import BadRequest, Conflict, NodeLost, RingfenceError
from ringfence.engine.engine import Engine

DAEMON_PORT: Final = 49983
INTERPRETER_PORT: Final = 49999
TRAFFIC_HEADER: Final = b"e2b-traffic-access-token"
NOT_FOUND: Final = "The sandbox was not found"
NOT_OPEN: Final = "The sandbox is running but port is not open"
UNAUTHORIZED: Final = "unauthorized access, please provide a valid access token or method signing if supported"
NO_TRAFFIC: Final = (
    "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing or invalid"
)
CORS: Final = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"*"),
]
PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-max-age": "7200",
    "vary": "Origin, Access-Control-Request-Headers",
}
Unary = Callable[[Call, Any], Awaitable[Any]]
Streaming = Callable[[Call], Awaitable[None]]
UNARY: Final[dict[str, tuple[type[Any], Unary]]] = {**process.UNARY, **filesystem.UNARY, **watching.UNARY}
STREAMING: Final[dict[str, Streaming]] = {**process.STREAMING, **watching.STREAMING}


class Plane:
    """Requests to a sandbox, whichever way they named it."""

    def __init__(self, engine: Engine, registry: Registry, interpreter: App | None) -> None:
        self._engine = engine
        self._registry = registry
        self._interpreter = interpreter

    async def __call__(self, exchange: Exchange, sandbox_id: str | None, port: int | None) -> None:
        """Answer one."""
        exchange.extra = list(CORS)
        if exchange.method == "OPTIONS":
            asked = exchange.header(b"access-control-request-headers") or "*"
            await exchange.say(204, headers={**PREFLIGHT, "access-control-allow-headers": asked})
            return
        face = self._registry.find(sandbox_id) if sandbox_id is not None else self._by_signature(exchange)
        if face is None:
            await self._not_there(exchange, sandbox_id)
            return
        try:
            if self._engine.turns.sleeps_on(face.tenant, face.id):
                raise connect.Cut(sure=False)
            await self._served(exchange, face, port)
        except connect.Cut as cut:
            if cut.sure and not self._registry.asleep(face):
                face.doubt()
            if not exchange.started:
                await self._not_there(exchange, face.id)

    async def _woken(self, face: Face) -> None:
        """A paused sandbox is resumed by being used where it was made so, by whoever may use it. Raises Cut."""
        if self._registry.asleep(face):
            try:
                await self._engine.turns.reach(face.tenant, face.id)
            except Conflict:
                raise connect.Cut(sure=False) from None

    def _by_signature(self, exchange: Exchange) -> Face | None:
        """A file URL on a host that all sandboxes share: its signature says whose it is."""
        words = files.signed_words(exchange)
        return self._registry.signer(words) if words is not None else None

    async def _not_there(self, exchange: Exchange, sandbox_id: str | None) -> None:
        if sandbox_id is None:
            await exchange.refuse(401, UNAUTHORIZED)
            return
        if not self._engine.node.connected:
            raise NodeLost("the node does not answer", remediation="try again shortly")
        await exchange.tell(502, {"sandboxId": sandbox_id, "message": NOT_FOUND, "code": 502})

    async def _served(self, exchange: Exchange, face: Face, port: int | None) -> None:
        exchange.scope["user"] = Caller(face.tenant, "")
        with self._engine.admission.request(face.tenant):
            if port == INTERPRETER_PORT:
                await self._interpreted(exchange, face)
            elif port in {DAEMON_PORT, None}:
                await self._daemon(exchange, face)
            else:
                raise BadRequest("only ports 49983 and 49999 are reached by this way", code="bad_routing")

    async def _interpreted(self, exchange: Exchange, face: Face) -> None:
        token = face.record.traffic
        if token is not None and not same(exchange.header(TRAFFIC_HEADER), token):
            await exchange.refuse(403, NO_TRAFFIC, sandboxId=face.id)
        elif not _may_run(exchange, face):
            await exchange.refuse(401, UNAUTHORIZED)
        elif self._interpreter is None:
            body = {"sandboxId": face.id, "message": NOT_OPEN, "port": INTERPRETER_PORT, "code": 502}
            await exchange.tell(502, body)
        else:
            await self._woken(face)
            known = {"sandbox": face, "tenant": face.tenant, "env": face.environment(), "lost": face.record.kernels}
            await exchange.hand_over(self._interpreter, **known, ran=partial(self._registry.ran, face))

    # --- the daemon's port ---

    async def _daemon(self, exchange: Exchange, face: Face) -> None:
        path = exchange.raw_path
        if path == "/health" and exchange.method in {"GET", "HEAD"}:
            await self._woken(face)
            await exchange.say(204, headers={"cache-control": "no-store"})
        elif await self._admitted(exchange, face):
            await self._woken(face)
            call = Call(self._engine, face, exchange)
            if path in UNARY:
                await self._unary(call, *UNARY[path])
            elif path in STREAMING:
                await self._streaming(call, STREAMING[path])
            else:
                await self._plain(call, path)

    async def _admitted(self, exchange: Exchange, face: Face) -> bool:
        """Whether the token, or in its absence a file URL's signature, lets it in; otherwise it was refused."""
        token = exchange.header(b"x-access-token")
        if token is not None:
            if same(token, face.record.token):
                return True
            await exchange.refuse(401, UNAUTHORIZED)
            return False
        words = files.signed_words(exchange) if exchange.raw_path == "/files" else None
        if words is None or not face.signed(words):
            await exchange.refuse(401, UNAUTHORIZED if words is None else "invalid signature")
            return False
        if words.expired():
            await exchange.refuse(401, "signature is already expired")
            return False
        return True

    async def _unary(self, call: Call, kind: type[Any], method: Unary) -> None:
        exchange = call.exchange
        try:
            _posted(exchange)
            connect.check_unary(exchange)
            call.account = from_basic(exchange.header(b"authorization"), call.face.record.user)
            asked = connect.decoded(await exchange.body(connect.MOST_MESSAGE), kind)
            async with call.within(connect.timeout_of(exchange)):
                answer = await method(call, asked)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - told in the protocol's words
            call.check_lost(error)
            told = connect.known(error)
            await exchange.tell(connect.STATUS.get(told.code, 500), told.body)
            return
        await exchange.tell(200, answer)

    async def _streaming(self, call: Call, method: Streaming) -> None:
        exchange = call.exchange
        if exchange.method != "POST" or not connect.is_stream(exchange):
            status = 415 if exchange.method == "POST" else 405
            await exchange.refuse(status, f"a stream is asked for by POST with {connect.STREAM}")
            return
        out = connect.Outgoing(exchange)
        try:
            call.account = from_basic(exchange.header(b"authorization"), call.face.record.user)
            await method(call)
        except (ClientGone, Stopping):
            raise ClientGone("the stream is cut") from None
        except Exception as error:  # noqa: BLE001 - told in the protocol's words
            call.check_lost(error)
            await out.end(connect.known(error))

    async def _plain(self, call: Call, path: str) -> None:
        exchange = call.exchange
        try:
            if path == "/files":
                await files.serve(call)
            elif path == "/envs" and exchange.method == "GET":
                await exchange.tell(200, call.face.environment())
            elif path == "/metrics" and exchange.method == "GET":
                await exchange.tell(200, await filesystem.metrics(call))
            else:
                await exchange.refuse(404, "no such route")
        except connect.ConnectError as error:
            await exchange.refuse(connect.STATUS.get(error.code, 500), error.message)
        except RingfenceError as error:
            call.check_lost(error)
            if exchange.started:
                return
            status, message = files.status_of(error), error.cause.removeprefix("in the sandbox: ")
            await exchange.refuse(status, message, refusals.headers_of(error))


def _may_run(exchange: Exchange, face: Face) -> bool:
    """Who runs a cell shows the sandbox's token, unless it was made by a client that has none to show.

    Its contexts are looked after without: the newest clients send no token there. What is shown must be right anywhere.
    """
    token = exchange.header(b"x-access-token")
    if token is not None:
        return same(token, face.record.token)
    path: str = exchange.scope["path"]  # as the interpreter reads it
    return not face.record.secure or path.strip("/") != "execute"


def _posted(exchange: Exchange) -> None:
    if exchange.method != "POST":
        raise connect.ConnectError("unimplemented", "methods are called by POST")
