"""A small event loop over epoll: readers, writers, timers. One thread, no dependency, few pages."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

from ringfence.guest.annotations import Final

Callback = Callable[[], None]
_READ: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
_WRITE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


def _nothing() -> None:
    """What a cancelled timer calls."""


class Timer:
    """A call that will be made once, unless cancelled first."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Forget the call and all it holds, though its moment is far away; harmless when it was made already."""
        self.cancelled = True
        self.callback = _nothing


class Loop:
    """Calls back when a descriptor is ready or a moment has come."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False

    def _update(self, fd: int, was: bool) -> None:
        mask = (_READ if fd in self._readers else 0) | (_WRITE if fd in self._writers else 0)
        if not mask:
            self._epoll.unregister(fd)
        elif was:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def _known(self, fd: int) -> bool:
        return fd in self._readers or fd in self._writers

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call back whenever `fd` can be read or has hung up."""
        was = self._known(fd)
        self._readers[fd] = callback
        self._update(fd, was)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call back whenever `fd` can be written or has hung up."""
        was = self._known(fd)
        self._writers[fd] = callback
        self._update(fd, was)

    def remove_reader(self, fd: int) -> None:
        """Stop reading events; harmless when there were none."""
        if self._readers.pop(fd, None) is not None:
            self._update(fd, was=True)

    def remove_writer(self, fd: int) -> None:
        """Stop writing events; harmless when there were none."""
        if self._writers.pop(fd, None) is not None:
            self._update(fd, was=True)

    def forget(self, fd: int) -> None:
        """Remove both; call before closing `fd`."""
        self.remove_reader(fd)
        self.remove_writer(fd)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, `seconds` from now on the monotonic clock."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def _due(self) -> float:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0

    def _ring(self) -> None:
        now, due = time.monotonic(), []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:  # a call made later from here waits for the next turn: descriptors come first
            timer.callback()

    def stop(self) -> None:
        """Return from run() after the current callbacks."""
        self._running = False

    def run(self) -> None:
        """Serve until stop()."""
        self._running = True
        while self._running:
            self.turn(self._due())

    def turn(self, seconds: float) -> None:
        """Wait at most so long (-1: for ever), then make every call that is due."""
        for fd, mask in self._epoll.poll(seconds, 64):
            if mask & _READ and (reader := self._readers.get(fd)):
                reader()
            if mask & _WRITE and (writer := self._writers.get(fd)):
                writer()
        self._ring()

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()
