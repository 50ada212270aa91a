"""A kernel whose cells another program runs: it is fed, watched, and outlived only to say what it printed last."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable

from ringfence.guest.annotations import Any, Final
from ringfence.guest.kernel.capture import Capture
from ringfence.guest.kernel.speech import Interrupts, Speech, requests

PIECE: Final = 65536
LOOK: Final = 0.1  # seconds between looks whether the program is still there: others may hold its pipe open
MOST_LINE: Final = 16 * 1024 * 1024


class Child:
    """A program with two pipes of its own beside its standard ones."""

    def __init__(self, argv: Callable[[int, int], list[str]], stdin: int) -> None:
        inward, outward = os.pipe(), os.pipe()
        self._into, self._out_of = inward[1], outward[0]
        self._buffer = bytearray()
        ends = (inward[0], outward[1])
        self.program = subprocess.Popen(argv(*ends), stdin=stdin, pass_fds=ends)
        for fd in ends:
            os.close(fd)

    def tell(self, data: bytes) -> None:
        """Write to it; nothing when it is gone."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._into, view) :]
        except OSError:
            return  # how it ended is seen when its answer is awaited

    def answer(self, mark: bytes, seconds: float | None = None) -> bytes | None:
        """What it says up to a mark; None when it has ended, b"" (and no mark) when `seconds` have passed."""
        waited = 0.0
        while mark not in self._buffer and len(self._buffer) < MOST_LINE:
            if select.select([self._out_of], [], [], LOOK)[0]:
                piece = os.read(self._out_of, PIECE)
                if not piece:
                    return None
                self._buffer += piece
                continue
            waited += LOOK
            if self.program.poll() is not None:
                return None
            if seconds is not None and waited >= seconds:
                return b""
        said, found, self._buffer = self._buffer.partition(mark)
        return bytes(said + found) if found else None

    def end(self) -> int:
        """Its exit code, as a shell would give it. Whatever it does now, it goes."""
        self.program.kill() if self.program.poll() is None else None
        code = self.program.wait()
        return code if code >= 0 else 128 - code


Cell = Callable[[dict[str, Any], Speech, Capture], bool]


def serve(order: dict[str, Any], rest: bytes, start: Callable[[Interrupts], tuple[Cell, Child]]) -> None:
    """Serve cells with a program that `start` makes. It ends when a cell says so by False, as the program did."""
    interrupts = Interrupts()
    speech = Speech(1, interrupts)
    asked = requests(0, rest, speech)
    os.makedirs(order["cwd"], exist_ok=True)
    os.chdir(order["cwd"])
    capture = Capture(speech, interrupts)
    capture.begin()
    interrupts.listen()
    try:
        cell, child = start(interrupts)
    except OSError as error:
        speech.error(type(error).__name__, str(error), "")
        os._exit(1)
    capture.settle()
    speech.say({"kind": "ready"})
    for count, request in enumerate(asked, 1):
        speech.say({"kind": "started", "count": count})
        lives = cell(request, speech, capture)
        capture.settle()
        if not lives:
            os._exit(child.end())
        speech.say({"kind": "done", "id": request["id"]})
    os._exit(child.end() and 0)
