"""The smallest web server that can be measured: it says its own name, and keeps connections.

The same text runs in every published sandbox and, for comparison, as a plain process of this machine.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from ringfence.bench.exchange import Connection, Target
from ringfence.domain.errors import PlatformFault, RingfenceError

LOOPBACK: Final = "127.0.0.1"
READY_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0
_SERVER: Final = """
import select, socket
body = {name!r}.encode()
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\n" % len(body)
door, poll, lines = socket.create_server(("127.0.0.1", {port}), backlog=256), select.epoll(), {{}}
poll.register(door, select.EPOLLIN)
while True:
    for fd, _ in poll.poll():
        if fd == door.fileno():
            line, _ = door.accept()
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lines[line.fileno()] = line
            poll.register(line, select.EPOLLIN)
            continue
        try:
            data = lines[fd].recv(65536)
            closing = not data or b"connection: close" in data.lower()
            if data:
                lines[fd].sendall(head + (b"Connection: close\\r\\n\\r\\n" if closing else b"\\r\\n") + body)
        except OSError:
            closing = True
        if closing:
            lines.pop(fd).close()
"""


def source(name: str, port: int) -> str:
    """The server's Python, saying this name at this port of the loopback."""
    return _SERVER.format(name=name, port=port)


def free_port() -> int:
    """A port of the loopback nobody listens on just now."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def awaited(target: Target, request: bytes) -> None:
    """Return when a server there answers with success. Raises PlatformFault when none does in time."""
    until = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError, RingfenceError), Connection(target) as connection:
            if connection.exchange(request).status == 200:
                return
        if time.monotonic() > until:
            raise PlatformFault(f"no server answers at port {target.port}", code="not_started")
        time.sleep(0.05)


@contextlib.contextmanager
def running(words: list[str]) -> Iterator[None]:
    """A process of ours, ended with this."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def plain(name: str) -> Iterator[Target]:
    """The server as a plain process of this machine, with nothing around it."""
    target = Target(LOOPBACK, free_port(), "")
    with running([sys.executable, "-c", source(name, target.port)]):
        awaited(target, target.request("GET", "/"))
        yield target
