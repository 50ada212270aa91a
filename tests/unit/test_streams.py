"""Streams over one channel: order, credit, back-pressure, and what ends a channel that lies."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringfence.guest import frames, stream
from ringfence.guest.context import Context
from tests.support.guestharness import Guest, Host


class Recorder(stream.Handler):
    """Keeps what it is told."""

    def __init__(self, served: stream.Stream) -> None:
        self.stream = served
        self.heard: list[tuple[str, Any]] = []
        self.rooms: list[int] = []
        served.handler = self

    def on_stdin(self, data: bytes) -> None:
        """Bytes toward the program."""
        self.heard.append(("stdin", data))

    def on_eof(self) -> None:
        """No more of them."""
        self.heard.append(("eof", None))

    def on_control(self, message: dict[str, Any]) -> None:
        """A message."""
        self.heard.append(("control", message))

    def on_cancel(self) -> None:
        """The opener left."""
        self.heard.append(("cancel", None))

    def on_room(self) -> None:
        """There is room again."""
        self.rooms.append(self.stream.room)


class Pair:
    """Both ends in one thread: the agent's end runs when it is given a turn."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.recorders: list[Recorder] = []
        self.guest = Guest(theirs, "/", {"record": self._record})
        self.host = Host(ours)

    def _record(self, _: Context, served: stream.Stream, __: dict[str, Any]) -> None:
        self.recorders.append(Recorder(served))

    def open(self, **options: bool) -> tuple[Any, Recorder]:
        """A reply and the recorder that serves it."""
        reply = self.host.open("record", **options)
        self.guest.turn()
        return reply, self.recorders[-1]

    def say(self, data: bytes) -> None:
        """Send raw bytes, a piece at a time: both ends are this thread."""
        for at in range(0, len(data), 32 * 1024):
            self.host.connection.sendall(data[at : at + 32 * 1024])
            self.guest.turn()

    def until(self, true: Callable[[], object]) -> None:
        """Turn and pump until it is true."""
        for _ in range(10_000):
            if true():
                return
            self.guest.turn()
            self.host.pump(0)
        raise TimeoutError

    def close(self) -> None:
        """Give everything back."""
        self.host.connection.close()
        self.guest.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a channel."""
    made = Pair()
    yield made
    made.close()


def test_frames_reach_the_handler_in_order(pair: Pair) -> None:
    """Input, messages, EOF and CANCEL come as they were sent; what is for no stream is dropped."""
    reply, recorder = pair.open()
    reply.send(b"one")
    pair.host.send(frames.STDIN, 999, b"for nobody")
    reply.control({"resize": {"cols": 80}})
    reply.send(b"two")
    reply.close_input()
    reply.cancel()
    pair.until(lambda: len(recorder.heard) == 5)
    assert recorder.heard == [
        ("stdin", b"one"),
        ("control", {"resize": {"cols": 80}}),
        ("stdin", b"two"),
        ("eof", None),
        ("cancel", None),
    ]


def test_answers_come_back_in_order(pair: Pair) -> None:
    """Output of both kinds, a message, EOF and the answer; nothing follows the answer."""
    reply, recorder = pair.open()
    served = recorder.stream
    served.control({"started": {"pid": 1}})
    served.out(b"out")
    served.err(b"err")
    served.out(b"")
    served.eof()
    served.end({"exit": None})
    for late in (served.out, served.err):
        late(b"late")
    served.control({})
    served.eof()
    served.consumed(5)
    served.end({})
    served.fail("io", "late")
    pair.until(lambda: reply.end is not None)
    pair.host.settle(0.01)
    assert (reply.out, reply.err, reply.eof, reply.end) == (b"out", b"err", True, {"exit": None})
    assert served.room == 0


def test_a_refusal_has_a_code_and_a_cause(pair: Pair) -> None:
    """fail() answers with an error; an unknown op is answered too."""
    reply, recorder = pair.open()
    recorder.stream.fail("not_found", "no such thing")
    pair.until(lambda: reply.end is not None)
    assert reply.end == {"error": {"code": "not_found", "cause": "no such thing"}}
    for payload in (b"", b"[]", b"{}", b"\xff", b'{"op": 5}', b'{"op": ["record"]}', b"[" * 100_000, b"NaN"):
        reply = pair.host.open_raw(payload)
        pair.until(lambda reply=reply: reply.end is not None)  # type: ignore[misc]
        assert reply.error == "bad_request"


def test_credit_bounds_what_is_sent(pair: Pair) -> None:
    """Room shrinks with what is sent, both kinds together, and grows with what is granted."""
    reply, recorder = pair.open(automatic=False)
    served = recorder.stream
    sent = 0
    while served.room:
        piece = min(served.room, 60_000)
        (served.out if sent % 2 else served.err)(b"x" * piece)
        sent += piece
        assert served.room == min(frames.WINDOW - sent, frames.MAX_DATA)
    assert sent == frames.WINDOW
    pair.until(lambda: reply.allowed == 0)
    reply.grant(10)
    reply.grant(20)
    pair.until(lambda: recorder.rooms)
    assert (recorder.rooms, served.room) == ([10], 30)


def test_input_is_credited_as_it_is_consumed(pair: Pair) -> None:
    """The opener gets its credit back exactly."""
    reply, recorder = pair.open()
    reply.send(b"x" * 1000)
    pair.until(lambda: recorder.heard)
    assert reply.credit == frames.WINDOW - 1000
    recorder.stream.consumed(400)
    recorder.stream.consumed(0)
    recorder.stream.consumed(600)
    pair.until(lambda: reply.credit == frames.WINDOW)


def test_a_host_that_does_not_read_stops_everybody(pair: Pair) -> None:
    """The queue is bounded: once a megabyte waits no stream has room, and all have it again when it drained."""
    opened = [pair.open() for _ in range(12)]
    total = 0
    for _, recorder in opened:
        while recorder.stream.room:
            piece = recorder.stream.room
            recorder.stream.out(b"z" * piece)
            total += piece
    assert pair.guest.channel.backed_up
    assert total <= stream.HELD_BACK + 2 * frames.WINDOW + (1 << 20)
    assert any(not recorder.rooms and not reply.out for reply, recorder in opened)
    pair.until(lambda: sum(len(reply.out) for reply, _ in opened) == total)
    pair.guest.turn()
    assert not pair.guest.channel.backed_up
    assert all(recorder.rooms for _, recorder in opened)
    assert all(set(reply.out) <= {ord("z")} for reply, _ in opened)


def test_order_is_kept_through_the_queue(pair: Pair) -> None:
    """What could be written at once never overtakes what had to wait."""
    reply, recorder = pair.open()
    expected = bytearray()
    for number in range(40_000):
        if recorder.stream.room < 8:
            pair.until(lambda: recorder.stream.room >= 8)
        piece = b"%07d " % number
        recorder.stream.out(piece)
        expected += piece
    recorder.stream.end({})
    pair.until(lambda: reply.end is not None)
    assert reply.out == expected


def test_an_answer_too_large_for_a_frame_is_an_error(pair: Pair) -> None:
    """An answer nobody could receive does not break the agent: the asker is told."""
    reply, recorder = pair.open()
    recorder.stream.end({"entries": "x" * frames.MAX_JSON})
    pair.until(lambda: reply.end is not None)
    assert reply.error == "io"
    assert pair.guest.lost == 0


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 64,
        frames.HEADER.pack(2**31, frames.STDIN, 1),
        frames.encode(frames.CONTROL, 1, b"not json"),
        frames.encode(frames.CONTROL, 1, b"[1]"),
        frames.encode(frames.CONTROL, 1, b'"text"'),
        frames.encode(frames.CONTROL, 1, b"\xff\xfe"),
        frames.encode(frames.CONTROL, 1, b"[" * 100_000),
        frames.encode(frames.CONTROL, 1, b'{"a":' * 100_000),
        frames.encode(frames.CONTROL, 1, b'{"a":' + b"1" * 100_000 + b"}"),
        frames.encode(frames.OPEN, 1, b'{"op": "record"}'),
        frames.encode(frames.STDIN, 1, bytes(frames.MAX_DATA)) * 5,
    ],
    ids=lambda lie: f"{lie[:12].hex()}-{len(lie)}",
)
def test_a_lie_ends_the_channel(pair: Pair, lie: bytes) -> None:
    """Not frames, not JSON, not an object, a stream twice, more than the credit: the channel is lost, once."""
    _, recorder = pair.open()
    with contextlib.suppress(BrokenPipeError):
        pair.say(lie)
    pair.until(lambda: pair.guest.lost)
    recorder.stream.out(b"into the void")
    recorder.stream.end({})
    pair.guest.turn()
    assert pair.guest.lost == 1


def test_a_host_that_hangs_up_is_noticed_once(pair: Pair) -> None:
    """Reading or writing, the loss is told once, and later sends cost nothing."""
    _, recorder = pair.open()
    while recorder.stream.room:
        recorder.stream.out(b"x" * recorder.stream.room)
    pair.host.connection.close()
    for _ in range(100):
        recorder.stream.control({"still": "talking"})
    for _ in range(5):
        pair.guest.turn()
    assert pair.guest.lost == 1


def test_half_a_frame_and_then_nothing_is_a_loss_like_any_other(pair: Pair) -> None:
    """An unfinished frame holds nobody up, and its end is the channel's end."""
    reply, recorder = pair.open()
    pair.host.connection.sendall(frames.encode(frames.STDIN, 1, b"x" * 100)[:50])
    pair.guest.turn()
    recorder.stream.out(b"alive")
    pair.until(lambda: reply.out == b"alive")
    pair.host.connection.shutdown(socket.SHUT_WR)
    pair.until(lambda: pair.guest.lost)
    assert recorder.heard == []


def test_numbers_that_are_not_numbers_arrive_as_sent(pair: Pair) -> None:
    """A message is a JSON object, whatever strange values are in it."""
    _, recorder = pair.open()
    pair.host.send(frames.CONTROL, 1, json.dumps({"n": float("nan"), "s": "\ud800"}).encode())
    pair.until(lambda: recorder.heard)
    assert recorder.heard[0][1]["s"] == "\ud800"
