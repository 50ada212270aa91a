"""Where waiting differs: a WebSocket connection and a pause. Written by hand, once here and once in _async."""

from __future__ import annotations

import contextlib
import time

from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from ringfence.client._sync.tls import TurnsContext
from ringfence.client.errors import error_from_body, lost
from ringfence.client.links import MOST, LinkSpec, closed

pause = time.sleep


class Link:
    """A WebSocket connection: messages both ways, our errors instead of the library's."""

    def __init__(self, spec: LinkSpec, connection: ClientConnection, held: contextlib.ExitStack) -> None:
        self._spec = spec
        self._connection = connection
        self._held = held

    @classmethod
    def open(cls, spec: LinkSpec, timeout: float | None) -> Link:
        """Connect. Raises the server's refusal, Unreachable or DeadlineExceeded."""
        held = contextlib.ExitStack()
        try:
            connection = held.enter_context(
                connect(
                    spec.url, additional_headers=spec.headers, proxy=spec.proxy, open_timeout=timeout,
                    compression=None, max_size=MOST, ping_timeout=None,
                    ssl=TurnsContext.usual() if spec.url.startswith("wss:") else None,
                )
            )  # fmt: skip
        except InvalidStatus as error:
            raise error_from_body(error.response.status_code, bytes(error.response.body or b"")) from None
        except (OSError, WebSocketException, TimeoutError) as error:
            raise lost(error, spec.url) from error
        return cls(spec, connection, held)

    def send(self, data: bytes | str) -> None:
        """Send one message; bytes are data, text is a control message."""
        try:
            self._connection.send(data)
        except ConnectionClosedOK:
            return  # the other end had finished: nobody is left to read this
        except ConnectionClosedError as error:
            raise closed(error.rcvd, self._spec) from error

    def receive(self, timeout: float | None = None) -> bytes | str | None:
        """The next message, or None after an orderly end. Raises DeadlineExceeded when none comes in time."""
        try:
            return self._connection.recv(timeout)
        except ConnectionClosedOK:
            return None
        except ConnectionClosedError as error:
            raise closed(error.rcvd, self._spec) from error
        except TimeoutError as error:
            raise lost(error, self._spec.url) from error

    def close(self) -> None:
        """Close in order; closing twice does nothing."""
        self._held.close()
