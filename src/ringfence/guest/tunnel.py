"""A byte pipe from a stream to a TCP port inside: it needs no network between the sandbox and anybody."""

from __future__ import annotations

import contextlib
import errno
import socket

from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import Context, Op, Refused, guarded, refuse, whole
from ringfence.guest.stream import Handler, Stream

PATIENCE: Final = 10.0  # seconds for a listener whose queue is full
_ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def _refused(connection: socket.socket) -> bool:
    try:
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return True
        # A port nobody listens on can be given to our own end: TCP then connects the socket to itself.
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:  # reset since
        return True


class _Tunnel(Handler):
    """Connects, then copies both ways; each way ends on its own, and the stream with the second."""

    def __init__(self, context: Context, stream: Stream, port: int) -> None:
        self._loop = context.loop
        self._stream = stream
        self._port = port
        self._untried = list(_ADDRESSES)
        self._socket: socket.socket | None = None  # none: every address was tried, or the tunnel is closed
        self._connected = False
        self._pending = bytearray()  # bounded: the opener gets credit for what was sent on
        self._no_more_in = False  # the opener said EOF, or the listener takes nothing any more
        self._no_more_out = False  # the listener said EOF
        self._paused = False  # not reading until the stream has room
        self._timer = context.loop.call_later(PATIENCE, lambda: self._give_up("nothing accepted in time"))
        stream.handler = self
        self._connect()

    # -- connecting ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Begin with the next address, or give up."""
        while self._untried:
            family, address = self._untried.pop(0)
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # this kernel was built without it
                    continue
                self._close()
                refuse(self._stream, error)
                return
            if self._socket.connect_ex((address, self._port)) in {0, errno.EINPROGRESS}:
                self._loop.add_writer(self._socket.fileno(), self._settled)
                return
            self._close_socket()
        self._give_up("nothing listens on that port")

    def _settled(self) -> None:
        """The connection stands or was refused."""
        if self._socket is None:
            return
        self._loop.remove_writer(self._socket.fileno())
        if _refused(self._socket):
            self._close_socket()
            self._connect()
            return
        self._timer.cancel()
        self._connected = True
        self._stream.control({"started": {}})
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._flush()

    def _give_up(self, cause: str) -> None:
        self._close()
        self._stream.fail("not_listening", cause)

    # -- toward the listener ------------------------------------------------------------------------------------

    def on_stdin(self, data: bytes) -> None:
        """Bytes for the listener; those that come before it accepted wait."""
        if self._no_more_in:
            self._stream.consumed(len(data))
            return
        waiting = bool(self._pending)
        self._pending += data
        if self._connected and not waiting:
            self._flush()

    def on_eof(self) -> None:
        """Pass the end on, after what still waits."""
        if not self._no_more_in:
            self._no_more_in = True
            if self._connected and not self._pending:
                self._flush()

    def _flush(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._pending, socket.MSG_NOSIGNAL) if self._pending else 0
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:  # the listener closed its end: what it still sends is worth reading
            sent = len(self._pending)
            self._no_more_in = True
        except OSError as error:
            self._close()
            refuse(self._stream, error)
            return
        del self._pending[:sent]
        self._stream.consumed(sent)
        if self._pending:
            self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        self._loop.remove_writer(self._socket.fileno())
        if self._no_more_in:
            self._end_in(self._socket)

    def _end_in(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener is gone already
            connection.shutdown(socket.SHUT_WR)
        self._finish_if_done()

    # -- from the listener --------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._socket is None:
            return
        room = self._stream.room
        if not room:
            self._paused = True
            self._loop.remove_reader(self._socket.fileno())
            return
        try:
            data = self._socket.recv(room)
        except BlockingIOError:
            return
        except OSError as error:  # a reset
            self._close()
            refuse(self._stream, error)
            return
        if data:
            self._stream.out(data)
            return
        self._loop.remove_reader(self._socket.fileno())
        self._no_more_out = True
        self._stream.eof()
        self._finish_if_done()

    def on_room(self) -> None:
        """The opener caught up."""
        if self._paused and self._socket is not None:
            self._paused = False
            self._loop.add_reader(self._socket.fileno(), self._readable)

    # -- the end ------------------------------------------------------------------------------------------------

    def on_cancel(self) -> None:
        """The opener left: so do we."""
        self._close()
        self._stream.end({})

    def _finish_if_done(self) -> None:
        if self._no_more_out and self._no_more_in and not self._pending:
            self._close()
            self._stream.end({})

    def _close(self) -> None:
        self._timer.cancel()
        self._untried.clear()
        self._pending.clear()
        self._close_socket()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None


def op_tunnel(context: Context, stream: Stream, request: dict[str, Any]) -> None:
    """A connection to `port` on loopback: bytes and half-closes both ways, until both ends or CANCEL."""
    port = whole(request, "port", 1, 65535)
    if port is None:
        raise Refused("bad_request", "port is required")
    _Tunnel(context, stream, port)


OPS: Final[dict[str, Op]] = {"tunnel": guarded(op_tunnel)}
