"""TLS for a connection that one thread reads while another writes, as the synchronous WebSocket client does.

OpenSSL's connections are not for two threads at once, and the ssl of Python 3.11 lets both in. A session ticket that
arrives while the first request is written then ends the connection: 13 of 4,870 to a plain server on a busy machine.
Here the two directions take turns, and neither holds the turn while it waits.

What reading makes TLS say (new keys, never more) leaves with what is written next, as TLS allows. Were it sent by the
reader, he would wait for an end that does not read, and that may itself be waiting for him.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Any, Final, cast

PIECE: Final = 64 * 1024


class TurnsContext(ssl.SSLContext):
    """A client's context whose sockets may be read and written at once."""

    @classmethod
    def usual(cls) -> TurnsContext:
        """One that wants a certificate of the host's name, by an authority the system trusts."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.load_default_certs()
        return context

    def wrap_socket(self, sock: socket.socket, *args: Any, **options: Any) -> ssl.SSLSocket:
        """See SSLContext. What is returned has the part of a socket's methods that a WebSocket needs."""
        return cast("ssl.SSLSocket", Turns(self, sock, *args, **options))


class Turns:
    """A socket behind TLS. Every other method is the socket's own."""

    def __init__(self, context: ssl.SSLContext, raw: socket.socket, *, server_hostname: str) -> None:
        self._raw = raw
        self._turn = threading.Lock()  # for all that follows but the socket
        self._came, self._leaves = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._leaves, server_hostname=server_hostname)
        self._agree()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def _agree(self) -> None:
        """The handshake, for as long as the socket's own deadline lets each wait. Raises OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._take()
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return

    def recv(self, _: int) -> bytes:
        """Wait for bytes; nothing at the end.

        All that came is returned, whatever was asked for: who waits on the socket would not hear of the rest.
        """
        while True:
            with self._turn:
                data, ended = self._opened()
            if ended:  # and whoever waits on the socket for what follows these bytes must see it too
                with contextlib.suppress(OSError):
                    self._raw.shutdown(socket.SHUT_RD)
            if data or ended:
                return data
            self._take()

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of it. One call at a time: records leave in the order in which they are made."""
        with memoryview(data).cast("B") as view:
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                with self._turn:
                    while piece:
                        piece = piece[self._tls.write(piece) :]
                self._flush()

    def _opened(self) -> tuple[bytes, bool]:
        """What is there in clear, and whether nothing follows."""
        pieces: list[bytes] = []
        while True:
            try:
                piece = self._tls.read(PIECE)
            except ssl.SSLWantReadError:
                return b"".join(pieces), False
            except ssl.SSLEOFError:  # many a server hangs up without a word of TLS; a WebSocket has its own goodbye
                piece = b""
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)

    def _take(self) -> None:
        data = self._raw.recv(PIECE)
        with self._turn:
            if data:
                self._came.write(data)
            else:
                self._came.write_eof()

    def _flush(self) -> None:
        with self._turn:
            data = self._leaves.read()
        if data:
            self._raw.sendall(data)
