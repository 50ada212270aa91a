"""The least transport: one connected socket, served from the loop's own callbacks.

asyncio's own takes a coroutine, two futures and three turns of the loop before the first byte moves. A sandbox that
lives for milliseconds notices.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

READ: Final = 256 * 1024


class Direct(asyncio.Transport):
    """Reads and writes `sock` for `protocol` until one side hangs up. Closes the socket then."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock})
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()  # the loop's own bookkeeping is dearer for objects
        self._protocol = protocol
        self._unsent = bytearray()
        self._closing = False
        sock.setblocking(False)
        protocol.connection_made(self)
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._lose(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send now if nothing waits, else queue; order is kept."""
        if self._closing:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._loop.call_soon(self._lose, error)
                return
            if sent < len(data):
                self._loop.add_writer(self._fd, self._writable)
        self._unsent += memoryview(data)[sent:]

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._fd)

    def get_write_buffer_size(self) -> int:
        """Bytes the other side has not taken yet."""
        return len(self._unsent)

    def is_closing(self) -> bool:
        """Whether it has ended."""
        return self._closing

    def pause_reading(self) -> None:
        """Read no more until told."""
        if not self._closing:
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again."""
        if not self._closing:
            self._loop.add_reader(self._fd, self._readable)

    def abort(self) -> None:
        """Hang up now; what was not sent is dropped."""
        self._lose(None)

    def _lose(self, error: OSError | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._sock.close()
        self._protocol.connection_lost(error)
