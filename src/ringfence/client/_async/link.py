"""Where waiting differs: a WebSocket connection and a pause. Written by hand, once here and once in _sync."""

from __future__ import annotations

import asyncio

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus, WebSocketException

from ringfence.client.errors import error_from_body, lost
from ringfence.client.links import MOST, LinkSpec, closed

pause = asyncio.sleep


class AsyncLink:
    """A WebSocket connection: messages both ways, our errors instead of the library's."""

    def __init__(self, spec: LinkSpec, connection: ClientConnection) -> None:
        self._spec = spec
        self._connection = connection

    @classmethod
    async def open(cls, spec: LinkSpec, timeout: float | None) -> AsyncLink:
        """Connect. Raises the server's refusal, Unreachable or DeadlineExceeded."""
        try:
            connection = await connect(
                spec.url, additional_headers=spec.headers, proxy=spec.proxy, open_timeout=timeout,
                compression=None, max_size=MOST, ping_timeout=None,
            )  # fmt: skip
        except InvalidStatus as error:
            raise error_from_body(error.response.status_code, bytes(error.response.body or b"")) from None
        except (OSError, WebSocketException, TimeoutError) as error:
            raise lost(error, spec.url) from error
        return cls(spec, connection)

    async def send(self, data: bytes | str) -> None:
        """Send one message; bytes are data, text is a control message."""
        try:
            await self._connection.send(data)
        except ConnectionClosedOK:
            return  # the other end had finished: nobody is left to read this
        except ConnectionClosedError as error:
            raise closed(error.rcvd, self._spec) from error

    async def receive(self, timeout: float | None = None) -> bytes | str | None:
        """The next message, or None after an orderly end. Raises DeadlineExceeded when none comes in time."""
        try:
            async with asyncio.timeout(timeout):
                return await self._connection.recv()
        except ConnectionClosedOK:
            return None
        except ConnectionClosedError as error:
            raise closed(error.rcvd, self._spec) from error
        except TimeoutError as error:
            raise lost(error, self._spec.url) from error

    async def aclose(self) -> None:
        """Close in order; closing twice does nothing."""
        await self._connection.close()
