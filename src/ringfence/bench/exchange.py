"""Just enough HTTP/1.1 to measure with: requests prepared beforehand, answers parsed from a buffer, no library between.

A client library would cost more than what is measured. Only answers of our own server are understood.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

from ringfence.domain.errors import PlatformFault

ANSWER_SECONDS: Final = 30.0
READ_BYTES: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Its body, decoded. Raises PlatformFault when the server answered with anything but success."""
        if self.status >= 300:
            raise PlatformFault(f"the server answered {self.status}: {self.body[:300].decode('utf-8', 'replace')}")
        return msgspec.json.decode(self.body)


def parse(buffer: bytes | bytearray) -> tuple[Answer, int] | None:
    """The first whole answer in the buffer and its length there, or None while it is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, start = bytes(buffer[:end]).lower(), end + 4
    status = int(head[9:12])
    if b"\r\ntransfer-encoding: chunked" in head:
        return _chunked(buffer, start, status)
    at = head.find(b"\r\ncontent-length:")
    size = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    if len(buffer) < start + size:
        return None
    return Answer(status, bytes(buffer[start : start + size])), start + size


def _chunked(buffer: bytes | bytearray, at: int, status: int) -> tuple[Answer, int] | None:
    body = b""
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(bytes(buffer[at:line]), 16)
        at = line + 2 + size + 2
        if len(buffer) < at:
            return None
        if not size:
            return Answer(status, body), at
        body += buffer[line + 2 : line + 2 + size]


class Target(NamedTuple):
    """A server on this machine and a key of it."""

    host: str
    port: int
    key: str

    @classmethod
    def of(cls, url: str, key: str) -> Target:
        """From a URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, key)

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """A request as it goes over the wire; `body` is encoded as JSON."""
        data = b"" if body is None else _encode(body)
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}:{self.port}", f"authorization: Bearer {self.key}"]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(data)}"]
        return "\r\n".join([*lines, "", ""]).encode() + data

    def connect(self) -> socket.socket:
        """A connection that does not hold small packets back."""
        made = socket.create_connection((self.host, self.port), ANSWER_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


class Connection:
    """One kept-alive connection, one request at a time, blocking: nothing wakes later than the answer's last byte."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._socket = target.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def exchange(self, request: bytes) -> Answer:
        """Send a prepared request and return the whole answer. Raises PlatformFault when the server hangs up."""
        return self.timed(request)[0]

    def timed(self, request: bytes, marker: bytes = b"") -> tuple[Answer, float, float | None]:
        """The answer, the milliseconds until it was whole, and until `marker` was first seen in it."""
        self._renew()
        began = time.perf_counter()
        self._socket.sendall(request)
        buffer, first = bytearray(), None
        while True:
            piece = self._socket.recv(READ_BYTES)
            now = (time.perf_counter() - began) * 1e3
            buffer += piece
            if marker and first is None and marker in buffer:
                first = now
            found = parse(buffer)
            if found is not None:
                return found[0], now, first
            if not piece:
                raise PlatformFault("the server hung up in the middle of an answer", code="server_lost")

    def _renew(self) -> None:
        """Connect again where the server has let go of a connection on which nothing was asked for long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if poll.poll(0):
            self.close()
            self._socket = self.target.connect()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One call, its answer decoded. Raises PlatformFault for anything but success."""
        return self.exchange(self.target.request(method, path, body)).json()
