"""Process 1 of a lone run: it tells how the interpreter ended, whatever way that was, by machine or by plain loop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from ringfence.guest import frames
from ringfence.guest import syscalls as sc
from ringfence.guest.init import STREAM, Init, answer
from ringfence.guest.plan import CHANNEL_FD

both = pytest.mark.parametrize("machine", [True, False], ids=["machine", "plain loop"])
PATIENCE = 60.0


def told(machine: bool, interpreter: Callable[[], None]) -> dict[str, Any]:
    """What process 1 says after `interpreter` ran as its child; it must go once it is hung up on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    init = Init(sc.thread_id_address(), machine=machine)
    first = os.fork()
    if first == 0:
        os.dup2(theirs.fileno(), CHANNEL_FD)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as the zygote has it
        try:
            init.fork()
            interpreter()
        finally:
            os._exit(99)
    theirs.close()
    data = ours.recv(4096)
    ours.close()
    assert os.waitpid(first, 0)[1] == 0
    (frame,) = frames.Parser().feed(data)
    assert (frame.type, frame.stream) == (frames.WAITED, STREAM)
    return answer(frame.payload)


@both
@pytest.mark.parametrize("code", [0, 1, 255])
def test_an_exit_code_arrives(machine: bool, code: int) -> None:
    """A program that leaves by itself is told as exited, with its code."""
    found = told(machine, lambda: os._exit(code))
    assert (found["how"], found["code"], found["signal"]) == ("exited", code, None)


@both
def test_a_signal_arrives(machine: bool) -> None:
    """A program that was killed is told as signalled, with the number."""
    found = told(machine, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert (found["how"], found["code"], found["signal"]) == ("signalled", None, 9)


@both
def test_orphans_are_reaped_and_not_taken_for_the_program(machine: bool) -> None:
    """Children the program leaves behind end before it does, and what is told is still the program's own end."""

    def interpreter() -> None:
        for _ in range(3):
            if os.fork() == 0:
                os._exit(7)
        time.sleep(0.2)
        os._exit(5)

    assert told(machine, interpreter)["code"] == 5


@both
def test_signals_do_not_end_the_waiting(machine: bool) -> None:
    """A program that sends its process 1 every signal it handles gets its own fate told all the same."""

    def interpreter() -> None:
        for _ in range(20):
            os.kill(os.getppid(), signal.SIGCHLD)
        os._exit(6)

    assert told(machine, interpreter)["code"] == 6


@pytest.mark.parametrize(
    "payload", [b"", b"\0" * 123, b"\0" * 125, b"\xff" * 124], ids=["empty", "short", "long", "lie"]
)
def test_what_is_no_wait_status_is_refused(payload: bytes) -> None:
    """A forged word is a broken protocol, not a fate."""
    with pytest.raises(frames.FrameError):
        answer(payload)
