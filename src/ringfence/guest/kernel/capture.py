"""What a cell writes, by whichever way, as messages in the order it was written.

Descriptors 1 and 2 are pipes that we read ourselves, so that what a child process prints is told while it runs.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
import time
import warnings

from ringfence.guest.annotations import Any, Final
from ringfence.guest.kernel.speech import LOST, Interrupts, Speech, hidden

PIECE: Final = 65536
DRAIN: Final = 4  # pieces taken from each pipe at once: more than a pipe holds
FULL: Final = 16 * 1024  # characters that are sent without waiting for more
REST: Final = 0.04  # seconds that fewer may wait for company
NAMES: Final = {1: "stdout", 2: "stderr"}


class Capture:
    """The outputs of whatever runs in this kernel."""

    def __init__(self, speech: Speech, interrupts: Interrupts) -> None:
        self._speech = speech
        self._interrupts = interrupts
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._held: list[tuple[str, str]] = []
        self._size = 0
        self._since = 0.0
        self._forked = dict.fromkeys(NAMES, "")
        self._null = _hide(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self._ends: dict[int, int] = {}  # 1 and 2: where a program's bytes go in
        self._from: dict[int, str] = {}  # where they come out, and as what
        self._decoders: dict[int, Any] = {}
        for number, name in NAMES.items():
            reader, writer = (_hide(fd) for fd in os.pipe())
            os.set_blocking(reader, False)
            self._ends[number], self._from[reader] = writer, name
            self._decoders[reader] = codecs.getincrementaldecoder("utf-8")("replace")
        waker = os.pipe()
        self._woken, self._wake = _hide(waker[0]), _hide(waker[1])
        os.set_blocking(self._wake, False)

    def begin(self) -> None:
        """Take the standard descriptors, and keep moving what arrives."""
        # First: where no thread can be had, that is told on the descriptors we were started with.
        threading.Thread(target=self._pump, name="output", daemon=True).start()
        self.place()
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - a program's, for good
        sys.stdout, sys.stderr = Output(self, 1), Output(self, 2)
        # Our own thread is the other one, and holds nothing that a fork could miss.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)

    def place(self) -> None:
        """Put the standard descriptors where they belong: a cell may have closed them, or put others there."""
        try:
            os.dup2(self._null, 0)
            for number, writer in self._ends.items():
                os.dup2(writer, number)
        except OSError:  # a cell closed what is ours
            os._exit(LOST)

    def write(self, number: int, text: str) -> None:
        """Text that Python itself prints."""
        if os.getpid() != self._process:
            self._write_as_fork(number, text)
            return
        with self._interrupts, self._lock:
            self._drain()
            first = not self._held
            self._add(NAMES[number], text)
            if first and self._held:
                self._ring()

    def _write_as_fork(self, number: int, text: str) -> None:
        """In a fork of the kernel: through the pipe like any other program, line by line."""
        self._forked[number] += text
        if "\n" in text or len(self._forked[number]) > FULL:
            self.flush(number)

    def flush(self, number: int) -> None:
        """Let go of what a fork has kept."""
        if os.getpid() != self._process and self._forked[number]:
            text, self._forked[number] = self._forked[number], ""
            _write_all(number, text.encode("utf-8", "replace"))

    def settle(self) -> None:
        """Send all that was written until now."""
        with self._interrupts, self._lock:
            self._drain()
            self._flush()

    def _ring(self) -> None:
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            return  # it is awake
        except OSError:  # a cell closed what is ours
            os._exit(LOST)

    def _add(self, name: str, text: str) -> None:
        if text:
            self._since = self._since if self._held else time.monotonic()
            self._held.append((name, text))
            self._size += len(text)
        if self._size >= FULL:
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        at = 0
        while at < len(held):
            name, until = held[at][0], at
            while until < len(held) and held[until][0] == name:
                until += 1
            self._say(name, "".join(text for _, text in held[at:until]))
            at = until

    def _say(self, name: str, text: str) -> None:
        for at in range(0, len(text), PIECE):
            self._speech.say({"kind": "output", "name": name, "text": text[at : at + PIECE]})

    def _drain(self) -> None:
        for reader, name in self._from.items():
            for _ in range(DRAIN):
                try:
                    data = os.read(reader, PIECE)
                except BlockingIOError:
                    break
                except OSError:  # a cell closed what is ours
                    os._exit(LOST)
                self._add(name, self._decoders[reader].decode(data))

    def _pump(self) -> None:
        """Move on what programs print while the main thread is busy, and what Python printed a while ago."""
        waiting = select.poll()
        for fd in (*self._from, self._woken):
            waiting.register(fd, select.POLLIN)
        try:
            while True:
                events = waiting.poll(REST * 1000 if self._held else None)
                if any(kind & select.POLLNVAL for _, kind in events):
                    os._exit(LOST)
                if any(fd == self._woken for fd, _ in events):
                    os.read(self._woken, PIECE)
                with self._lock:
                    self._drain()
                    if time.monotonic() - self._since >= REST:
                        self._flush()
        except OSError:  # a cell closed what is ours
            os._exit(LOST)


class Output(io.TextIOBase):
    """sys.stdout or sys.stderr."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, capture: Capture, number: int) -> None:
        super().__init__()
        self._capture = capture
        self._number = number
        self.name = f"<{NAMES[number]}>"
        self.mode = "w"

    @property
    def buffer(self) -> Any:
        """For programs that write bytes."""
        return io.FileIO(self._number, "w", closefd=False)

    def fileno(self) -> int:
        """See io.IOBase."""
        return self._number

    def writable(self) -> bool:
        """See io.IOBase."""
        return True

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._capture.write(self._number, text)
        return len(text)

    def flush(self) -> None:
        """See io.IOBase; outside a fork, what is written is on its way already."""
        self._capture.flush(self._number)

    def close(self) -> None:
        """There is no output without it."""


def _hide(fd: int) -> int:
    copy = hidden(fd)
    os.close(fd)
    return copy


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
