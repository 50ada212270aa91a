"""The load generator: as many kept-alive connections as asked for, each sending its next request after its answer.

One thread and one epoll, requests prepared beforehand and answers checked by a substring: it costs some ten
microseconds a request, so that what it takes from the server it shares the cores with can be neglected, and is told.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ringfence.bench.exchange import Answer, Target, parse
from ringfence.bench.stats import Summary, summary

READ_BYTES: Final = 256 * 1024
DRAIN_SECONDS: Final = 20.0  # how long answers still owed are waited for
REASONS: Final = 5  # failures are counted all and told in words a few times

Right = Callable[[Answer], bool]
Order = tuple[bytes, Right]  # a request as it goes over the wire, and which answers to it are right


def always(request: bytes, right: Right) -> Callable[[], Order]:
    """The same request each time."""
    return lambda: (request, right)


@dataclass(slots=True)
class Load:
    """What came of it. `runs` and `per_second` count right answers within the time; latencies are milliseconds."""

    connections: int
    seconds: float = 0.0
    runs: int = 0
    late: int = 0  # right, but after the time
    failures: int = 0
    reasons: list[str] = field(default_factory=list)
    per_second: float = 0.0
    latency: Summary | None = None
    client_cpu_seconds: float = 0.0


def _never(_: Answer) -> bool:
    return False


@dataclass(slots=True)
class _Line:
    socket: socket.socket
    right: Right
    buffer: bytearray = field(default_factory=bytearray)
    asked: float = 0.0  # 0: no answer is owed


class Generator:
    """One load on one target."""

    def __init__(self, target: Target, orders: Callable[[], Order]) -> None:
        self._target = target
        self._orders = orders
        self._lines: dict[int, _Line] = {}
        self._epoll = select.epoll()
        self._taken: list[float] = []
        self._load = Load(0)
        self._until = 0.0

    def drive(self, connections: int, seconds: float) -> Load:
        """Keep every connection busy that long, then wait for the answers still owed."""
        self._load = Load(connections)
        try:
            for _ in range(connections):
                self._open()
            cpu, began = time.process_time(), time.perf_counter()
            self._until = began + seconds
            for line in list(self._lines.values()):
                self._ask(line)
            self._loop()
            self._load.client_cpu_seconds = time.process_time() - cpu
        finally:
            for line in self._lines.values():
                line.socket.close()
            self._lines.clear()
            self._epoll.close()
        self._load.seconds = seconds
        self._load.per_second = round(self._load.runs / seconds, 1)
        self._load.latency = summary(self._taken)
        return self._load

    def _open(self) -> _Line:
        made = self._target.connect()
        made.setblocking(False)
        line = self._lines[made.fileno()] = _Line(made, _never)
        self._epoll.register(made, select.EPOLLIN)
        return line

    def _loop(self) -> None:
        deadline = self._until + DRAIN_SECONDS
        while any(line.asked for line in self._lines.values()):
            ready = self._epoll.poll(1.0)
            for fd, _ in ready:
                self._read(self._lines[fd])
            if time.perf_counter() > deadline:
                owed = sum(bool(line.asked) for line in self._lines.values())
                self._fail(f"{owed} answers never came", owed)
                return

    def _ask(self, line: _Line) -> None:
        now = time.perf_counter()
        line.asked = 0.0
        if now >= self._until:
            return
        request, line.right = self._orders()
        try:
            sent = line.socket.send(request)
        except OSError as error:
            self._again(line, f"sending: {error}")
            return
        if sent == len(request):
            line.asked = now
        else:
            self._again(line, "a request did not fit the socket")

    def _read(self, line: _Line) -> None:
        try:
            piece = line.socket.recv(READ_BYTES)
        except OSError as error:
            self._again(line, f"receiving: {error}")
            return
        line.buffer += piece
        found = parse(line.buffer)
        if found is not None:
            del line.buffer[: found[1]]
            self._count(line, found[0])
            self._ask(line)
        elif not piece:
            self._again(line, "the server hung up")

    def _count(self, line: _Line, answer: Answer) -> None:
        now = time.perf_counter()
        if not line.right(answer):
            self._fail(f"{answer.status}: {answer.body[:200].decode('utf-8', 'replace')}")
        elif now > self._until:
            self._load.late += 1
        else:
            self._load.runs += 1
            self._taken.append((now - line.asked) * 1e3)

    def _fail(self, reason: str, count: int = 1) -> None:
        self._load.failures += count
        if len(self._load.reasons) < REASONS:
            self._load.reasons.append(reason)

    def _again(self, line: _Line, reason: str) -> None:
        """A broken connection is a failure and is replaced by a new one."""
        self._fail(reason)
        self._epoll.unregister(line.socket)
        del self._lines[line.socket.fileno()]
        line.socket.close()
        if time.perf_counter() < self._until:
            self._ask(self._open())
