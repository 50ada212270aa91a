"""The thread that governs: first in line for the processor, and for little of it.

A limit that is moved late is met by a program that did nothing wrong (cgroup v1 has nothing that slows a writer down).
On a crowded machine an ordinary thread comes late; this one is of a real-time class, at its least priority. The class
is not inherited by what it starts, and it starts nothing. It rests four times as long as it worked, so it can take a
fifth of one core and no more, whatever hostile programs make it look at. With cgroup v2 it stays an ordinary thread:
who writes too fast waits for it there, and a limit that is lowered reclaims memory on its time.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Final, Protocol

#: How long it rests, as a multiple of the processor time a turn took.
REST: Final = 4.0
CLASS: Final = os.SCHED_RR | os.SCHED_RESET_ON_FORK
PRIORITY: Final = 1  # the least of the class: whatever else is real-time on this machine goes before


class Governs(Protocol):
    """What it drives; see Governor."""

    @property
    def fd(self) -> int:
        """Readable when there is something to do."""

    def govern(self) -> float | None:
        """Do it; seconds until the next turn, None: when `fd` is readable."""


def go_ahead() -> str:
    """Put the calling thread before all ordinary ones. Returns why the kernel refused; empty when it did not."""
    try:
        os.sched_setscheduler(0, CLASS, os.sched_param(PRIORITY))
    except OSError as error:
        return f"the kernel refuses a real-time class: {error.strerror}"
    return ""


def tried() -> str:
    """Whether a thread of ours may go ahead, tried in one that then ends; why not, else empty."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(go_ahead()))
    thread.start()
    thread.join()
    return said[0] if said else "no thread could be started"


class Watchman:
    """One such thread, from `begin` to `close`. Refused the class, it governs as an ordinary thread: never an error."""

    def __init__(self, governor: Governs, *, ahead: bool = True) -> None:
        """`ahead`: whether it goes before ordinary threads."""
        self._governor = governor
        self._ahead = ahead
        self._wake = -1
        self._lock = threading.Lock()  # nobody writes to a descriptor that is another's by now
        self._closing = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, if it has not."""
        if self._thread is None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """There may be something to do that rings no bell. From any thread."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        if self._ahead:
            go_ahead()
        poll = select.poll()
        poll.register(self._governor.fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            began = time.thread_time()
            pause = self._governor.govern()
            time.sleep(REST * (time.thread_time() - began))
            for fd, _ in poll.poll(None if pause is None else max(0.0, pause) * 1000):
                if fd == self._wake:
                    os.eventfd_read(self._wake)

    def close(self) -> None:
        """End the thread. The governor itself is its owner's to close."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._closing = True
            self.look()
            thread.join()
            with self._lock:
                os.close(self._wake)
                self._wake = -1
