"""One connection to the node, many streams through it, each with its own credit."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from ringfence.domain.errors import NodeLost, RingfenceError, SandboxLost
from ringfence.guest import frames

CONTROL_HELD: Final = 1024 * 1024  # bytes of undelivered CONTROL one stream may hold
GRANT_AT: Final = frames.WINDOW // 4  # credit is returned in lumps of this size
HEAD: Final = struct.Struct(">I")


class End(NamedTuple):
    """The last frame of a stream: the node's header and the guest's own words."""

    header: bytes
    guest: bytes


def end_of(payload: bytes) -> End:
    """Split an END payload. Raises NodeLost when it is not one."""
    size = HEAD.unpack_from(payload)[0] if len(payload) >= 4 else len(payload)
    if size > len(payload) - 4:
        raise NodeLost("the node's answer was cut short")
    return End(payload[4 : 4 + size], payload[4 + size :])


def open_of(header: bytes, guest: bytes = b"") -> bytes:
    """An OPEN payload for the node. Raises FrameError past the frame's bound."""
    return HEAD.pack(len(header)) + header + guest


class NodeStream:
    """One request at the node. Subclasses say what becomes of output; `ended` is the one future everybody awaits."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._link: Link | None = None
        self._id = 0
        self._allowance = frames.WINDOW  # what the peer may still send
        self._owed = 0  # consumed, not yet granted
        self._credit = frames.WINDOW  # what we may still send
        self._room: asyncio.Event | None = None

    def attach(self, link: Link, stream_id: int) -> None:
        """Called by the link when it opens the stream."""
        self._link, self._id = link, stream_id

    # --- what subclasses do ---

    def on_output(self, type_: int, data: bytes) -> None:
        """STDOUT or STDERR bytes came; call consumed() once they are gone."""
        self.consumed(len(data))

    def on_control(self, payload: bytes) -> None:
        """A CONTROL frame came."""

    def on_eof(self) -> None:
        """No more output follows on this stream."""

    def on_ended(self) -> None:
        """`ended` was just resolved, one way or the other."""

    # --- from the link ---

    def received(self, frame: frames.Frame) -> None:
        """Take one frame; a peer that lies ends this stream alone."""
        kind = frame.type
        if kind in {frames.STDOUT, frames.STDERR}:
            self._allowance -= len(frame.payload)
            if self._allowance < 0:
                self.fail(SandboxLost("the sandbox sent more than it was allowed"))
            else:
                self.on_output(kind, frame.payload)
        elif kind == frames.END:
            self._finish(frame.payload)
        elif kind == frames.CONTROL:
            self.on_control(frame.payload)
        elif kind == frames.CREDIT:
            self._credit += frames.credit_of(frame.payload)
            if self._room is not None:
                self._room.set()
        elif kind == frames.EOF:
            self.on_eof()
        else:
            self.fail(SandboxLost("the sandbox's agent broke the protocol"))

    def _finish(self, payload: bytes) -> None:
        self._forget()
        if self.ended.done():
            return
        try:
            self.ended.set_result(end_of(payload))
        except NodeLost as error:
            self._lose(error)
            return
        self._settled()

    def _settled(self) -> None:
        if self._room is not None:
            self._room.set()
        self.on_ended()

    def _lose(self, error: RingfenceError) -> None:
        self.ended.set_exception(error)
        self.ended.exception()  # somebody may never ask; that is no reason to log
        self._settled()

    def _forget(self) -> None:
        if self._link is not None:
            self._link.forget(self._id)
            self._link = None

    def lost(self, error: RingfenceError) -> None:
        """The connection is gone."""
        self._link = None
        if not self.ended.done():
            self._lose(error)

    def fail(self, error: RingfenceError) -> None:
        """Give up on this stream: tell the node, fail whoever waits."""
        self.cancel()
        if not self.ended.done():
            self._lose(error)

    # --- for the engine ---

    def consumed(self, count: int) -> None:
        """Let the peer send `count` more bytes of output, sooner or later."""
        self._owed += count
        if self._owed >= GRANT_AT and self._link is not None:
            self._link.write(frames.credit(self._id, self._owed))
            self._allowance += self._owed
            self._owed = 0

    def cancel(self) -> None:
        """Lose interest: no further frame of this stream is looked at."""
        if self._link is not None:
            self._link.write(frames.encode(frames.CANCEL, self._id))
            self._forget()

    def control(self, payload: bytes) -> None:
        """Send a message on the open stream; nothing when it has ended."""
        if self._link is not None:
            self._link.write(frames.encode(frames.CONTROL, self._id, payload))

    def eof(self) -> None:
        """Say that no more input follows."""
        if self._link is not None:
            self._link.write(frames.encode(frames.EOF, self._id))

    async def send(self, data: bytes) -> bool:
        """Send input as credit and the connection allow. False when the stream ended first."""
        at = 0
        while at < len(data):
            while self._credit <= 0 and self._link is not None:
                self._room = self._room or asyncio.Event()
                self._room.clear()
                await self._room.wait()
            if self._link is None:
                return False
            piece = data[at : at + min(self._credit, frames.MAX_DATA)]
            self._credit -= len(piece)
            at += len(piece)
            self._link.write(frames.encode(frames.STDIN, self._id, piece))
            await self._link.drained()
        return True


class Collector(NodeStream):
    """Keeps output up to a bound and drops the rest; for answers given in one piece."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.out = bytearray()
        self.err = bytearray()
        self.truncated = False
        self.controls: list[bytes] = []
        self._most = most
        self._held = 0
        self.on_first_control: Callable[[bytes], None] | None = None

    def on_output(self, type_: int, data: bytes) -> None:
        """Keep what fits."""
        into = self.out if type_ == frames.STDOUT else self.err
        room = self._most - len(into)
        if len(data) > room:
            self.truncated = True
            into += data[: max(0, room)]
        else:
            into += data
        self.consumed(len(data))

    def on_control(self, payload: bytes) -> None:
        """Keep messages, within a bound."""
        self._held += len(payload) + 64
        if self._held > CONTROL_HELD:
            self.fail(SandboxLost("the sandbox sent too many messages"))
            return
        self.controls.append(payload)
        if self.on_first_control is not None:
            callback, self.on_first_control = self.on_first_control, None
            callback(payload)


class Reader(NodeStream):
    """Hands frames on one by one; the peer waits while nobody takes them."""

    def __init__(self) -> None:
        super().__init__()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._held = 0
        self._waiter: asyncio.Future[None] | None = None

    def _push(self, type_: int, data: bytes) -> None:
        self._frames.append((type_, data))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_output(self, type_: int, data: bytes) -> None:
        """Queue; bounded by credit."""
        self._push(type_, data)

    def on_eof(self) -> None:
        """Queue the half-close behind the output before it."""
        self._push(frames.EOF, b"")

    def on_control(self, payload: bytes) -> None:
        """Queue, within a bound."""
        self._held += len(payload) + 64
        if self._held > CONTROL_HELD:
            self.fail(SandboxLost("the sandbox sent too many messages"))
            return
        self._push(frames.CONTROL, payload)

    def on_ended(self) -> None:
        """Wake whoever waits for a frame."""
        self._wake()

    @property
    def empty(self) -> bool:
        """True while there is nothing to take."""
        return not self._frames

    async def next(self) -> tuple[int, bytes] | None:
        """The next (type, payload), or None once the stream ended and all is taken. Output taken is consumed."""
        while not self._frames:
            if self.ended.done():
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        type_, data = self._frames.popleft()
        if type_ == frames.CONTROL:
            self._held -= len(data) + 64
        elif data:
            self.consumed(len(data))
        return type_, data

    async def first(self, seconds: float | None) -> None:
        """Return when there is a frame, an end, or `seconds` have passed."""
        if self._frames or self.ended.done():
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._waiter], timeout=seconds)


class Link(asyncio.Protocol):
    """The connection itself. Made anew after each loss."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = frames.Parser()
        self._streams: dict[int, NodeStream] = {}
        self._next = 1
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail every stream: what they held at the node is not known any more."""
        self._transport = None
        self._writable.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lost(
                NodeLost("the node went away while it held this work", remediation="try again; nothing is running")
            )
        self._on_lost()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Hand each frame to its stream; a node that breaks framing is dropped."""
        try:
            for frame in self._parser.feed(data):
                stream = self._streams.get(frame.stream)
                if stream is not None:
                    stream.received(frame)
        except frames.FrameError:
            self.abort()

    @property
    def alive(self) -> bool:
        """True while connected."""
        return self._transport is not None

    def open(self, stream: NodeStream, payload: bytes) -> None:
        """Open a stream. Raises NodeLost when the connection is gone, FrameError for a payload past its bound."""
        if self._transport is None:
            raise NodeLost("the node is not connected", code="node_unreachable", remediation="try again shortly")
        stream_id, self._next = self._next, self._next + 1
        data = frames.encode(frames.OPEN, stream_id, payload)
        self._streams[stream_id] = stream
        stream.attach(self, stream_id)
        self._transport.write(data)
        if self._next >= 2**32:  # ids are never reused: a new connection starts anew
            self.abort()

    def forget(self, stream_id: int) -> None:
        """Ignore frames of this stream from now on."""
        self._streams.pop(stream_id, None)

    def write(self, data: bytes) -> None:
        """Send, or drop when the connection is gone."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait while the node reads more slowly than we write."""
        if not self._writable.is_set():
            await self._writable.wait()

    def abort(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()
