"""What a fuzzer feeds: bytes from a peer that may be anybody, and what must hold whatever they are.

The parser and an agent's channel are given the same bytes. They may refuse them; they may not raise anything else,
not send more than they have credit for, not answer twice, and not depend on where the bytes were cut.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from typing import Any

from ringfence.guest import frames
from ringfence.guest.context import Context, Op
from ringfence.guest.stream import Handler, Stream
from tests.support.guestharness import Guest


class Broken(AssertionError):
    """A promise was not kept."""


def _require(kept: object, promise: str) -> None:
    if not kept:
        raise Broken(promise)


# -- the parser -------------------------------------------------------------------------------------------------


def _parsed(pieces: list[bytes]) -> tuple[list[frames.Frame], int, bool]:
    """The frames, what is left over, and whether it was refused."""
    parser = frames.Parser()
    received: list[frames.Frame] = []
    for piece in pieces:
        try:
            received += parser.feed(piece)
        except frames.FrameError:
            return received, 0, True
        _require(parser.pending <= frames.MAX_JSON + frames.HEADER.size, "more is kept than one frame")
    return received, parser.pending, False


def _cut(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


def check_parser(data: bytes, step: int) -> None:
    """Whole or in pieces: the same frames, the same rest, the same refusal; and each frame encodes to what came."""
    whole, left, refused = _parsed([data])
    pieces, rest, refused_too = _parsed(_cut(data, step))
    _require(refused == refused_too, "the cut decides whether it is refused")
    encoded = b"".join(frames.encode(*frame) for frame in pieces)
    _require(data.startswith(encoded), "a frame that never came")
    if not refused:
        _require(whole == pieces and left == rest, "the cut decides what is received")
        _require(len(encoded) + left == len(data), "bytes were lost")


# -- the channel ------------------------------------------------------------------------------------------------


class _Echo(Handler):
    """Sends back what it gets, as there is room for it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waiting = bytearray()
        self.over = False
        stream.handler = self

    def on_stdin(self, data: bytes) -> None:
        """Keep it, send what may be sent."""
        self.waiting += data
        self.on_room()

    def on_room(self) -> None:
        """Send on, and give credit for as much."""
        while self.waiting and self.stream.room:
            piece = bytes(self.waiting[: self.stream.room])
            del self.waiting[: len(piece)]
            (self.stream.err if piece[0] & 1 else self.stream.out)(piece)
            self.stream.consumed(len(piece))
        if self.over and not self.waiting:
            self.stream.end({})

    def on_eof(self) -> None:
        """End when all went back."""
        self.over = True
        self.on_room()

    def on_control(self, message: dict[str, Any]) -> None:
        """Messages go back as well."""
        self.stream.control({"echo": len(message)})

    def on_cancel(self) -> None:
        """Enough."""
        self.stream.end({"cancelled": True})


class _Flood(_Echo):
    """Fills whatever room there is."""

    def on_room(self) -> None:
        """All of it."""
        while self.stream.room:
            self.stream.out(bytes(self.stream.room))


def _echo(_: Context, stream: Stream, __: dict[str, Any]) -> None:
    _Echo(stream)


def _flood(_: Context, stream: Stream, __: dict[str, Any]) -> None:
    _Flood(stream).on_room()


def _mute(_: Context, stream: Stream, __: dict[str, Any]) -> None:
    stream.handler = Handler()


def _refuse(_: Context, stream: Stream, __: dict[str, Any]) -> None:
    stream.fail("not_found", "never here")


OPS: dict[str, Op] = {"echo": _echo, "flood": _flood, "mute": _mute, "refuse": _refuse}


class _Account:
    """What an agent may send at most, from what it was sent; and what it did send."""

    def __init__(self, data: bytes) -> None:
        self.opened: Counter[int] = Counter()
        self.credit: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        for frame in _parsed(_cut(data, 1))[0]:
            if frame.type == frames.OPEN:
                self.opened[frame.stream] += 1
                self.credit[frame.stream] += frames.WINDOW
            elif frame.type == frames.CREDIT:
                self.credit[frame.stream] += frames.credit_of(frame.payload)

    def received(self, frame: frames.Frame) -> None:
        """Book one frame from the agent."""
        _require(self.opened[frame.stream], "a frame on a stream never opened")
        if frame.type in {frames.STDOUT, frames.STDERR}:
            self.credit[frame.stream] -= len(frame.payload)
            _require(self.credit[frame.stream] >= 0, "more bytes than credit")
        elif frame.type == frames.END:
            self.ended[frame.stream] += 1
            _require(self.ended[frame.stream] <= self.opened[frame.stream], "two answers")
        else:
            _require(frame.type in {frames.EOF, frames.CREDIT, frames.CONTROL}, "a frame toward the program")


def _collect(connection: socket.socket, parser: frames.Parser, account: _Account, most: int) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        for frame in parser.feed(connection.recv(most)):
            account.received(frame)


def check_channel(data: bytes, step: int, greedy: bool) -> None:
    """An agent is told `data` in pieces. `greedy`: its host reads all it can; else hardly anything until the end."""
    ours, theirs = socket.socketpair()
    agent = Guest(theirs, "/", OPS)
    account, parser = _Account(data), frames.Parser()
    ours.setblocking(False)
    try:
        for piece in _cut(data, step):
            _tell(ours, piece, agent)
            _collect(ours, parser, account, 1 << 20 if greedy else 1000)
        for _ in range(8):
            agent.turn()
            _collect(ours, parser, account, 1 << 20)
        _require(agent.lost <= 1, "lost more than once")
        if _parsed([data])[2]:
            _require(agent.lost, "a lie was not noticed")
    finally:
        ours.close()
        agent.turn()
        _require(agent.lost == 1, "the end was not noticed, or noticed twice")
        agent.close()


def _tell(connection: socket.socket, piece: bytes, agent: Guest) -> None:
    """Send a piece, whatever the agent does meanwhile."""
    view = memoryview(piece)
    while view and not agent.lost:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            view = view[connection.send(view) :]
        agent.turn()


def one_input(data: bytes) -> None:
    """The first byte says how the rest is cut and how the host reads."""
    if not data:
        return
    how, rest = data[0], data[1:]
    step = (1, 3, 9, 10, 64, 1000, 65545, 1 << 20)[how & 7]
    check_parser(rest, step)
    check_channel(rest, max(step, len(rest) // 64), greedy=bool(how & 8))
