"""The door of this face: what a request is for, and who sent it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ringfence.api.auth import key_caller
from ringfence.api.compat.e2b import refusals
from ringfence.api.compat.e2b.asks import Ask
from ringfence.api.compat.e2b.control import Control
from ringfence.api.compat.e2b.http import Exchange, Interprets, Receive, Scope, Send
from ringfence.api.compat.e2b.insight import Insight
from ringfence.api.compat.e2b.plane import DAEMON_PORT, INTERPRETER_PORT, Plane
from ringfence.api.compat.e2b.records import Face, Registry
from ringfence.api.compat.e2b.routes import FIRST, Routes, table_of
from ringfence.api.compat.e2b.templates.built import BuiltTemplates
from ringfence.api.errors import ClientGone, MisdirectedRequest
from ringfence.api.front import host_name
from ringfence.config import E2bSettings, EdgeSettings
from ringfence.domain.errors import BadRequest
from ringfence.edge.ports import Ports
from ringfence.engine.engine import Engine
from ringfence.engine.shelf import Shelf
from ringfence.store.base import Store

SANDBOX_HEADER: Final = b"e2b-sandbox-id"
PORT_HEADER: Final = b"e2b-sandbox-port"
TOKEN_HEADER: Final = b"x-access-token"
INTERPRETED: Final = frozenset({"execute", "contexts"})
SERVICES: Final = INTERPRETED | {"process.Process", "filesystem.Filesystem", "files", "health", "envs", "metrics"}
_LABEL: Final = re.compile(r"([1-9][0-9]{0,4})-([a-z0-9]{1,48})(?:-[a-z0-9-]*)?")


@dataclass(frozen=True, slots=True)
class Target:
    """Which sandbox, by which port."""

    sandbox: str
    port: int


class E2b:
    """The whole face, as an ASGI application that the front hands requests to."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        settings: E2bSettings,
        edge: EdgeSettings,
        ports: Ports,
        interpreter: Callable[[E2b], Interprets] | None = None,
        kept: Shelf | None = None,
    ) -> None:
        """`kept` is where builds keep what they use again; without it there are none."""
        self.engine = engine
        self._store = store
        self._suffix = "." + edge.domain
        self._ports = ports
        self.registry = Registry(engine, store)
        self._interpreter = interpreter(self) if interpreter is not None else None
        self._templates = BuiltTemplates(engine, store, settings, kept) if kept and settings.builds.enabled else None
        control = Control(engine, self.registry, settings, ports, self.domain_for, self._warm, self._templates)
        built = self._templates.routes if self._templates is not None else None
        self._routes = Routes(table_of(control, Insight(engine, store, self.registry), built))
        self._plane = Plane(engine, self.registry, self._interpreter)

    def begin(self) -> None:
        """The engine runs: know the sandboxes that outlived an earlier process."""
        self.registry.begin()
        if self._templates is not None:
            self._templates.begin()

    def _warm(self, face: Face) -> None:
        """A sandbox for cells was made: have its kernel ready when the first one comes."""
        if self._interpreter is not None:
            self._interpreter.prepare(face.tenant, face.id, face.environment())

    def domain_for(self, exchange: Exchange) -> str | None:
        """Where a sandbox's ports are reached; nothing where the client knows already."""
        host = host_name((exchange.header(b"host") or "").encode("latin-1"))
        return None if host.endswith(self._suffix) else self._ports.authority

    def named(self, host: str) -> bool:
        """Whether a host is a sandbox's. `api.<domain>` is the server's own: both faces answer there, by path."""
        return self._labelled(host) is not None

    def _labelled(self, host: str) -> Target | None:
        if not host.endswith(self._suffix):
            return None
        found = _LABEL.fullmatch(host.removesuffix(self._suffix))
        return Target(found[2], int(found[1])) if found is not None else None

    def wants(self, scope: Scope) -> bool:
        """Whether a request to one of the server's own names is for this face."""
        names = {name for name, _ in scope["headers"]}
        path: str = scope["path"]
        first = _first(path)
        if names & {SANDBOX_HEADER, PORT_HEADER} or first in FIRST or (TOKEN_HEADER in names and first in SERVICES):
            return True
        signed = path == "/files" and b"signature=" in scope["query_string"]
        return signed or (scope["method"] == "OPTIONS" and _preflight(scope))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        exchange = Exchange(scope, receive, send)
        try:
            target = self._target(exchange)
            if target is None and exchange.raw_path != "/files" and exchange.method != "OPTIONS":
                await self._rest(exchange)
            else:
                await self._plane(exchange, target.sandbox if target else None, target.port if target else None)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001 - the outermost: nothing of ours may reach the server as it is
            if not exchange.started:
                await refusals.answer(exchange, error)

    def _target(self, exchange: Exchange) -> Target | None:
        """The sandbox asked for. A host that names one is believed, and no header beside it."""
        host = host_name((exchange.header(b"host") or "").encode("latin-1"))
        if host.endswith(self._suffix):
            target = self._labelled(host)
            if target is None and host != "api" + self._suffix:
                raise MisdirectedRequest("this server does not answer to that Host")
            return target
        # Some releases send a sandbox's headers to the control plane too; their paths have nothing in common.
        return None if _first(exchange.raw_path) in FIRST else self._routed(exchange)

    def _routed(self, exchange: Exchange) -> Target | None:
        """The sandbox that headers name; those of some releases name none after connect, and show its token alone."""
        name, port = exchange.header(SANDBOX_HEADER), exchange.header(PORT_HEADER)
        if name is None and port is None:
            token = exchange.header(TOKEN_HEADER)
            if token is None:
                return None
            theirs = INTERPRETER_PORT if _first(exchange.raw_path) in INTERPRETED else DAEMON_PORT
            return Target(self.registry.holder(token) or "", theirs)
        if not name or not port or not port.isdecimal() or len(port) > 5:
            raise BadRequest("E2b-Sandbox-Id and E2b-Sandbox-Port go together", code="bad_routing")
        return Target(name.partition("-")[0], int(port))

    async def _rest(self, exchange: Exchange) -> None:
        """The control plane: a key of any tenant."""
        if exchange.method == "PUT" and self._templates is not None and _first(exchange.raw_path) == "templates":
            await self._templates.routes.upload(exchange)  # by a URL that was given out to a key
            return
        caller = key_caller(self._store, exchange.header(b"x-api-key"))
        exchange.scope["user"] = caller
        with self.engine.admission.request(caller.tenant):
            handler, parts = self._routes.find(exchange.method, exchange.raw_path)
            reply = await handler(Ask(exchange, caller.tenant, parts))
        if reply.encoded is not None:
            await exchange.say(reply.status, reply.encoded, {"content-type": "application/json", **reply.headers})
        elif reply.value is None:
            await exchange.say(reply.status, headers=reply.headers)
        else:
            await exchange.tell(reply.status, reply.value, reply.headers)


def _preflight(scope: Scope) -> bool:
    asked = b"".join(value for name, value in scope["headers"] if name == b"access-control-request-headers")
    return SANDBOX_HEADER in asked.lower()


def _first(path: str) -> str:
    """The first part of a path."""
    return path.removeprefix("/").partition("/")[0]
