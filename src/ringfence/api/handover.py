"""Connections that the edge gives to the api: each is bound to the Host it came with, without a second socket.

What one connection was let in for says nothing for another host on it, so a request for another is misdirected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import uvicorn

from ringfence.api.errors import MisdirectedRequest
from ringfence.api.front import App, Message, Receive, Scope, Send, refuse
from ringfence.api.protocol import TimedHttp

BOUND: Final = "edge_host"  # in a request's state: the Host its connection is bound to
ONCE: Final = "edge_once"  # the connection ends with this request: a proxy's next one may be for anybody


class OneHost:
    """An ASGI application behind the edge: connections of the api's own socket are not bound."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        state = scope.get("state", {})
        bound = state.get(BOUND)
        if bound is None or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        send = _ending(send) if state.get(ONCE) else send
        if [value for name, value in scope["headers"] if name == b"host"] == [bound]:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
        await refuse(
            _ending(send),
            MisdirectedRequest("this connection was made for another Host", remediation="ask on one of its own"),
            websocket=scope["type"] == "websocket",
        )


def _ending(send: Send) -> Send:
    """Each answer is the connection's last."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return last


def given_to(server: uvicorn.Server) -> Callable[[bytes, bool], asyncio.Protocol | None]:
    """Makes the protocol for a connection bound to a Host; None while the server does not serve."""

    def protocol(host: bytes, once: bool) -> asyncio.Protocol | None:
        if not server.started or server.should_exit:
            return None
        state = {**server.lifespan.state, BOUND: host, ONCE: once}
        kind = cast("type[TimedHttp]", server.config.http_protocol_class)
        return kind(config=server.config, server_state=server.server_state, app_state=state)

    return protocol
