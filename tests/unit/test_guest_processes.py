"""What a program wrote before it ended is its output, whoever still holds the other end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ringfence.guest import frames
from ringfence.guest.loop import Loop
from ringfence.guest.processes import Ends, Process, was_killed

TERMINAL = {"rows": 24, "cols": 80}


@contextlib.contextmanager
def program(size: dict[str, Any] | None) -> Iterator[Process]:
    """A program whose fate we decide; this process holds its ends, as a program it left behind would."""
    ends = Ends(size, stdin=False)
    process = Process(Loop(), os.getpid(), ends, {}, held=0)
    process.begin(None)
    yield process
    ends.close_child()


@pytest.mark.parametrize("size", [None, TERMINAL], ids=["pipes", "terminal"])
def test_the_last_words_of_a_program_that_ends_are_kept(size: dict[str, Any] | None) -> None:
    """A terminal passes bytes on a little later than it takes them: none are lost when the end comes first."""
    for _ in range(50):
        with program(size) as process:
            os.write(process._ends.child[1], b"last words\n")
            process.ended(0, None, None)
            assert process.finished
            assert process.tails[frames.STDOUT].split() == [b"last", b"words"]


@pytest.mark.parametrize("size", [None, TERMINAL], ids=["pipes", "terminal"])
def test_an_end_without_words_is_an_end(size: dict[str, Any] | None) -> None:
    """Somebody who still holds the other end and says nothing keeps nobody waiting."""
    with program(size) as process:
        process.ended(0, None, None)
        assert process.finished
        assert process.tails == {}


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_a_waiting_interpreter_that_failed_is_told_from_one_that_was_killed(number: int) -> None:
    """The first is a layer that is not in force; the second is nobody's fault inside, and is started again."""
    child = os.fork()
    if child == 0:
        if number:
            os.kill(os.getpid(), number)
        os._exit(1)
    assert was_killed(child) is bool(number)
    assert os.waitpid(child, 0)[0] == child
