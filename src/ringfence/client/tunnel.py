"""A loopback port on this machine that leads to a port inside a sandbox, served by threads."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec

from ringfence import wire
from ringfence.client import calls
from ringfence.client._sync.link import Link
from ringfence.client.links import LinkSpec
from ringfence.client.settings import Target
from ringfence.domain.errors import RingfenceError

PIECE: Final = 64 * 1024
OPEN_SECONDS: Final = 30.0
END: Final = msgspec.json.encode(wire.TerminalInput(eof=True)).decode()


class Tunnel:
    """Listens on 127.0.0.1 from its making until it is closed; each connection there becomes one into the sandbox."""

    def __init__(self, target: Target, sandbox: str, port: int, local_port: int = 0) -> None:
        self._spec = LinkSpec.at(target, calls.sandbox_path(sandbox, f"/tunnel/{int(port)}"))
        self._listener = socket.create_server(("127.0.0.1", local_port))
        self._open: set[socket.socket] = set()
        self.host: str
        self.port: int
        self.host, self.port = self._listener.getsockname()[:2]
        self._accepting = _thread(self._accept)

    @property
    def url(self) -> str:
        """Where a web server inside the sandbox is reached."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut what is open; closing twice does nothing."""
        _shut(self._listener)  # wakes accept(), which close() alone would not
        self._listener.close()
        for connection in tuple(self._open):
            _shut(connection)
        self._accepting.join(OPEN_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            _thread(functools.partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        # A connection whose far end cannot be reached is simply closed: that is all a TCP client can be told.
        with connection, contextlib.suppress(OSError, RingfenceError):
            link = Link.open(self._spec, OPEN_SECONDS)
            rising = _thread(functools.partial(_rise, connection, link))
            try:
                while (data := link.receive()) is not None:
                    connection.sendall(data if isinstance(data, bytes) else b"")
            finally:
                _shut(connection)
                link.close()
                rising.join(OPEN_SECONDS)
        self._open.discard(connection)


def _rise(connection: socket.socket, link: Link) -> None:
    with contextlib.suppress(OSError, RingfenceError):
        while data := connection.recv(PIECE):
            link.send(data)
        link.send(END)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
