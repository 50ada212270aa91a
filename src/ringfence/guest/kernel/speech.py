"""How a kernel hears and speaks: a JSON object a line, on descriptors that no program of the tenant's is told of."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import resource
import signal
import threading
from collections.abc import Iterator
from types import TracebackType

from ringfence.guest.annotations import Any, Final

PIECE: Final = 65536
RESERVE: Final = 24  # descriptors at the top of what a process may have; ours are among them
LOST: Final = 70  # exit code of a kernel that cannot be heard any more (sysexits.h EX_SOFTWARE)
MOST_TEXT: Final = 64 * 1024  # characters of an error's name and value
MOST_TRACE: Final = 512 * 1024
GREETING: Final = {"hello": True}
MOST_SHOWN: Final = 8 * 1024 * 1024  # bytes of one result, all of its representations together


def hidden(fd: int) -> int:
    """A copy of a descriptor among the highest numbers, closed in whatever is executed."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(10, most - RESERVE))


class Interrupts:
    """SIGINT as KeyboardInterrupt: while a cell runs, and never between two halves of a line."""

    def __init__(self) -> None:
        self.running = False
        self.seen = False  # whether one came since somebody last looked
        self._held = 0
        self._came = False
        self._main = threading.get_ident()

    def listen(self) -> None:
        """Take the signal (again: a cell may have taken it for itself)."""
        signal.signal(signal.SIGINT, self.arrived)

    def arrived(self, *_: Any) -> None:
        """Called by the interpreter, always in the main thread."""
        self.seen = True
        if self._held:
            self._came = self.running
        elif self.running:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._held += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if threading.get_ident() != self._main:
            return
        self._held -= 1
        if not self._held and self._came:
            self._came = False
            raise KeyboardInterrupt


class Speech:
    """What the kernel says. A line is whole, or the kernel ends."""

    def __init__(self, fd: int, interrupts: Interrupts) -> None:
        self._fd = hidden(fd)
        self._interrupts = interrupts
        self._lock = threading.RLock()
        self._process = os.getpid()

    def say(self, message: dict[str, Any], *, afresh: bool = False) -> None:
        """Send one message; waits while nobody reads. In a fork of the kernel this says nothing.

        `afresh` ends whatever line whoever listens now has not heard from its beginning.
        """
        if os.getpid() != self._process:
            return
        line = json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._interrupts, self._lock:
            view = memoryview(b"\n" + line if afresh else line)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:  # a cell closed the descriptor, or there is nobody left: then no one must wait for more
                os._exit(LOST)

    def show(self, data: dict[str, Any], *, main: bool) -> None:
        """A result: its representations by media type. What is too large is left out, the largest first."""
        data = {kind: _text(value) for kind, value in data.items()}
        sizes = {kind: _size(value) for kind, value in data.items()}
        kept = {kind: data[kind] for kind, size in sizes.items() if size >= 0}
        left_out = [kind for kind, size in sizes.items() if size < 0]
        while sum(sizes[kind] for kind in kept) > MOST_SHOWN:
            largest = max(kept, key=lambda kind: sizes[kind])
            left_out.append(largest)
            del kept[largest]
        if left_out:
            words = f"left out of a result, as not JSON or too large: {', '.join(map(str, left_out))}\n"
            self.say({"kind": "output", "name": "stderr", "text": words[:MOST_TEXT]})
        if kept:
            self.say({"kind": "shown", "main": main, "data": kept})

    def error(self, name: str, value: str, traceback: str) -> None:
        """The cell failed."""
        message = {"name": name[:MOST_TEXT], "value": value[:MOST_TEXT], "traceback": traceback[-MOST_TRACE:]}
        self.say({"kind": "error", **message})


def _understood(line: bytearray) -> dict[str, Any] | None:
    """What a line asks; nothing where it is not whole."""
    try:
        request = json.loads(line)
    except ValueError:
        return None
    return (GREETING if request == GREETING else request) if isinstance(request, dict) else None


def _text(value: Any) -> Any:
    """Pictures in base 64, as everybody expects them."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _size(value: Any) -> int:
    """How many bytes a representation takes; negative for one that is not JSON."""
    try:
        return len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
    except (ValueError, TypeError, RecursionError):
        return -1


def requests(fd: int, rest: bytes, speech: Speech) -> Iterator[dict[str, Any]]:
    """What is asked, one by one, until the input ends. The descriptor is hidden at once.

    Whoever asks may be another than before, who left in the middle of a line: that line is nobody's. Then it greets
    us, and is told when all that the other asked for is over.
    """
    return _requests(hidden(fd), bytearray(rest), speech)


def _requests(fd: int, buffer: bytearray, speech: Speech) -> Iterator[dict[str, Any]]:
    while True:
        line, found, behind = buffer.partition(b"\n")
        if found:
            buffer = behind
            request = _understood(line)
            if request is GREETING:
                speech.say({"kind": "ready"}, afresh=True)
            elif request is not None:
                yield request
            continue
        try:
            piece = os.read(fd, PIECE)
        except OSError:  # a cell closed it
            os._exit(LOST)
        if not piece:
            return
        buffer += piece
