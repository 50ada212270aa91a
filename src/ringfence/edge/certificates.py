"""How a certificate reaches the edge: its files are read with the rights of whoever started the server.

The process that serves strangers has given those up. It gets the pair through a socket, and each newer one after it.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

import msgspec

from ringfence.config import EdgeSettings
from ringfence.domain.errors import PlatformFault, RingfenceError
from ringfence.edge.tls import LONGEST_FILE, Pair, read_pair

LOOK_SECONDS: Final = 2.0  # between two looks at the files
FIRST_SECONDS: Final = 10.0
_LARGEST: Final = 4 * LONGEST_FILE
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Pair).decode
_Stamp = tuple[tuple[int, int, int], ...]


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns


class Watched:
    """The operator's files, looked at again and again. Made where they can be read. Raises BadCertificate."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._files = (settings.certificate, settings.certificate_key)
        self._seen = self._stamp()
        self._due = 0.0
        self.trouble: RingfenceError | None = None
        self.pair = read_pair(*self._files)

    def _stamp(self) -> _Stamp:
        return tuple(_stamp(file) for file in self._files)

    def changed(self) -> bool:
        """Whether there is another pair than at the last look. Files that do not fit together yet are read again."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + LOOK_SECONDS
        seen = self._stamp()
        if seen == self._seen:
            return False
        try:
            pair = read_pair(*self._files)
        except RingfenceError as error:
            self.trouble = error
            return False
        self.trouble, self._seen = None, seen
        changed, self.pair = pair != self.pair, pair
        return changed


class Channel:
    """The end of the one who reads the files. Datagrams: one pair each."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        self._ours.setblocking(False)
        self.theirs = theirs

    def send(self, pair: Pair) -> None:
        """Hand it over. A reader that is gone, or has not read the last ones, is started again by who watches it."""
        try:
            self._ours.send(_encode(pair))
        except OSError:
            return

    def close(self) -> None:
        """Both ends, as far as they are open here."""
        self._ours.close()
        self.theirs.close()


class Alone:
    """One pair, for as long as the process lives."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def pair(self) -> Pair | None:
        """It."""
        return self._pair

    def fileno(self) -> int | None:
        """There is no other."""
        return None


class Received:
    """The end of the one who serves."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(FIRST_SECONDS)

    def fileno(self) -> int:
        """To wait for the next one."""
        return self._socket.fileno()

    def pair(self) -> Pair | None:
        """The next one; None when there will be none. Raises PlatformFault when it is not one."""
        try:
            data = self._socket.recv(_LARGEST)
            return _decode(data) if data else None
        except (OSError, msgspec.DecodeError) as error:
            raise PlatformFault(f"no certificate was handed over: {error}", code="no_certificate") from None

    def close(self) -> None:
        """Hear no more of it."""
        self._socket.close()
