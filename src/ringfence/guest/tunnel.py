"""A byte pipe from a stream to a TCP port inside: it needs no network between the sandbox and anybody."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from ringfence.guest.context import Context, Op, guarded, refuse, required
from ringfence.guest.loop import Timer
from ringfence.guest.stream import Handler, Stream

PATIENCE: Final = 10.0  # seconds for a listener that does not accept
_ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class _Connecting(Handler):
    """Tries one address after the other; the first that accepts becomes the tunnel."""

    def __init__(self, context: Context, stream: Stream, port: int) -> None:
        self._context = context
        self._stream = stream
        self._port = port
        self._left = list(_ADDRESSES)
        self._socket: socket.socket | None = None
        self._early: list[bytes] = []  # the opener need not wait for "started"
        self._eof = False
        self._timer: Timer = context.loop.call_later(PATIENCE, self._too_late)
        stream.handler = self
        self._next()

    def _next(self) -> None:
        """Begin with the next address, or give up."""
        while self._left:
            family, address = self._left.pop(0)
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                outcome = self._socket.connect_ex((address, self._port))
            except OSError:  # no such family in this kernel
                self._forget()
                continue
            if outcome in {0, errno.EINPROGRESS}:
                self._context.loop.add_writer(self._socket.fileno(), self._answered)
                return
            self._forget()
        self._fail("nothing listens on that port")
''')
