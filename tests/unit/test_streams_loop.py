"""The loop under the streams: descriptors, timers, and neither starving the other."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Callable, Iterator

import pytest

from ringfence.guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that does not block."""
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for fd in ends:
        os.close(fd)


def _both(*calls: Callable[[], object]) -> Callable[[], None]:
    """One call that makes several."""

    def call() -> None:
        for each in calls:
            each()

    return call


def test_timers_ring_in_order(loop: Loop) -> None:
    """The earliest first; those of one moment as they were made; a cancelled one never."""
    rung: list[str] = []
    loop.call_later(0.02, _both(lambda: rung.append("last"), loop.stop))
    loop.call_later(0.0, lambda: rung.append("first"))
    loop.call_later(0.0, lambda: rung.append("second"))
    loop.call_later(0.01, lambda: rung.append("never")).cancel()
    loop.run()
    assert rung == ["first", "second", "last"]


def test_a_timer_may_cancel_another_of_the_same_moment(loop: Loop) -> None:
    """Cancelled is cancelled, even when both are due."""
    rung: list[str] = []
    loop.call_later(0, _both(lambda: other.cancel(), loop.stop))  # noqa: PLW0108 - made below
    other = loop.call_later(0, lambda: rung.append("never"))
    loop.run()
    assert rung == []


def test_work_done_in_turns_lets_descriptors_speak(loop: Loop, pipe: tuple[int, int]) -> None:
    """A call that asks for its next turn at once, for ever, does not keep the loop from its descriptors."""
    reader, writer = pipe
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        if turns > 100_000:
            raise TimeoutError("the descriptor was never served")
        if turns == 10:
            os.write(writer, b"x")
        loop.call_later(0, again)

    loop.add_reader(reader, loop.stop)
    again()
    loop.run()
    assert turns <= 12


def test_a_cancelled_timer_lets_go(loop: Loop) -> None:
    """What a far-away call holds is free the moment it is cancelled."""

    class Heavy:
        """Something large."""

        def call(self) -> None:
            """Never made."""

    heavy = Heavy()
    gone = weakref.ref(heavy)
    timer = loop.call_later(3600, heavy.call)
    del heavy
    timer.cancel()
    gc.collect()
    assert gone() is None


def test_readers_and_writers_of_one_descriptor_are_separate(loop: Loop, pipe: tuple[int, int]) -> None:
    """Each is called for its own readiness, and removing one leaves the other."""
    reader, writer = pipe
    called: list[str] = []
    loop.add_writer(
        writer,
        _both(lambda: called.append("write"), lambda: os.write(writer, b"x"), lambda: loop.remove_writer(writer)),
    )
    loop.add_reader(reader, _both(lambda: called.append("read"), loop.stop))
    loop.run()
    assert called == ["write", "read"]
    loop.remove_writer(writer)
    loop.forget(reader)
    loop.forget(reader)


def test_a_hang_up_wakes_either_side(loop: Loop) -> None:
    """When the other end is gone, a reader is called, and so is a writer that had no space to wait for."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        called: list[str] = []
        loop.add_reader(ours.fileno(), lambda: called.append("read"))
        loop.add_writer(ours.fileno(), _both(lambda: called.append("write"), loop.stop))
        theirs.close()
        loop.run()
        loop.forget(ours.fileno())
    assert called == ["read", "write"]
