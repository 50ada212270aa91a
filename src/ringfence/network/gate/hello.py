"""A TLS ClientHello, read for the one thing the gate needs: the name it is for. Bounded, strict, no interception.

What is not exactly as the standard says is refused, never guessed: a server might read it differently than we did.
"""

from __future__ import annotations

from typing import Final

from ringfence.domain.names import BadName, heard_name

MOST: Final = 16 * 1024  # a hello with post-quantum shares is about 2 KiB
MOST_PIECES: Final = 8  # records it may be cut into
_RECORD: Final = 16_384
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ENCRYPTED: Final = {0xFE0D: "an encrypted hello (ECH)", 0xFFCE: "an encrypted name (ESNI)"}
# A fatal alert, so that the program inside reads "access denied" instead of a lost connection.
ACCESS_DENIED: Final = bytes([21, 3, 3, 0, 2, 2, 49])


class BadHello(ValueError):
    """Not a hello that may pass; its text says why."""


class _Reader:
    """Takes vectors off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise BadHello("the TLS hello is shorter than it says")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


def _message(data: bytes) -> bytes | None:
    """The first handshake message out of its records, or None while some of it is still to come."""
    message, at = b"", 0
    for _ in range(MOST_PIECES + 1):
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if message[0] != _CLIENT_HELLO or size > MOST:
                raise BadHello("the first TLS message is no client's hello")
            if len(message) >= 4 + size:
                return message[4 : 4 + size]
        if len(data) - at < 5:
            return None
        kind, major, size = data[at], data[at + 1], int.from_bytes(data[at + 3 : at + 5], "big")
        if kind != _HANDSHAKE or major != 3 or not 1 <= size <= _RECORD:
            raise BadHello("these bytes are no TLS handshake")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
        if len(data) < at:
            return None
    raise BadHello("the TLS hello is cut into too many pieces")


def _extensions(message: bytes) -> dict[int, bytes]:
    reader = _Reader(message)
    if reader.number(1) != 3:
        raise BadHello("the TLS hello has an unknown version")
    reader.take(1 + 32)
    if len(reader.vector(1)) > 32:
        raise BadHello("the TLS hello has too long a session id")
    ciphers = reader.vector(2)
    if not ciphers or len(ciphers) % 2 or not reader.vector(1):
        raise BadHello("the TLS hello has no list of ciphers")
    if not reader.left:
        return {}
    inner = _Reader(reader.vector(2))
    if reader.left:
        raise BadHello("the TLS hello has bytes behind its end")
    found: dict[int, bytes] = {}
    while inner.left:
        kind, value = inner.number(2), inner.vector(2)
        if kind in found:
            raise BadHello("the TLS hello has an extension twice")
        found[kind] = value
    return found


def _server_name(value: bytes) -> str:
    reader = _Reader(value)
    names = _Reader(reader.vector(2))
    if names.number(1) != 0:
        raise BadHello("the TLS hello names something other than a host")
    raw = names.vector(2)
    if names.left or reader.left:
        raise BadHello("the TLS hello names more than one host")
    try:
        return heard_name(raw)
    except BadName as error:
        raise BadHello(f"the name in the TLS hello {error}") from None


def server_name(data: bytes) -> str | None:
    """The name a connection is for, from its first bytes; None while more of them are needed.

    Raises BadHello with the reason. `data` is all that was received so far; it need not end with the hello.
    """
    message = _message(data)
    if message is None:
        if len(data) > MOST:
            raise BadHello("the TLS hello does not end")
        return None
    extensions = _extensions(message)
    for kind, what in _ENCRYPTED.items():
        if kind in extensions:
            raise BadHello(f"the TLS hello brings {what}, whose real destination cannot be seen")
    if _SERVER_NAME not in extensions:
        raise BadHello("the TLS hello names no host")
    return _server_name(extensions[_SERVER_NAME])
