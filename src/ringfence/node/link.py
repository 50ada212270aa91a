"""The node's end of one sandbox's channel: frames in and out, credit enforced, nothing decoded."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from ringfence.guest import frames

_FROM_GUEST: Final = frozenset(
    {frames.STDOUT, frames.STDERR, frames.EOF, frames.CREDIT, frames.CONTROL, frames.END, frames.WAITED}
)
MAX_STREAMS: Final = 512
MAX_UNREAD: Final = 32 * 1024 * 1024  # a guest that grants credit and does not read is lying: its sandbox ends


class Sink(Protocol):
    """Whoever opened a stream."""

    def on_frame(self, type_: int, payload: bytes) -> None:
        """One frame of the stream; END is the last."""

    def on_lost(self) -> None:
        """The sandbox is gone; nothing more will come."""


class _Stream:
    __slots__ = ("credit", "sink")

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.credit = frames.WINDOW  # bytes the guest may still send before the opener grants more


class GuestLink(asyncio.Protocol):
    """Many streams over one socket. A guest that breaks the protocol loses its sandbox, and only that."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = frames.Parser()
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every opener, once."""
        self._end("the sandbox closed its channel" if exc is None else str(exc))

    def _end(self, why: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.sink.on_lost()
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse and pass on; the first lie ends the link."""
        try:
            for frame in self._parser.feed(data):
                self._dispatch(frame)
        except frames.FrameError as error:
            self._end(f"broken protocol: {error}")

    def _dispatch(self, frame: frames.Frame) -> None:
        if frame.type not in _FROM_GUEST:
            raise frames.FrameError(f"type {frame.type} is not a guest's to send")
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # an answer to a stream that was cancelled meanwhile
        if frame.type in {frames.STDOUT, frames.STDERR}:
            stream.credit -= len(frame.payload)
            if stream.credit < 0:
                raise frames.FrameError("more output than was granted")
        if frame.type == frames.END:
            del self._streams[frame.stream]
        stream.sink.on_frame(frame.type, frame.payload)

    def open(self, payload: bytes, sink: Sink) -> int:
        """Start a stream; its answers go to `sink`. Raises FrameError past the bound of open streams."""
        if len(self._streams) >= MAX_STREAMS:
            raise frames.FrameError("too many open streams on one sandbox")
        stream_id = self._next
        self._next = self._next % 0xFFFF_FFF0 + 1
        if self.lost.done():
            asyncio.get_running_loop().call_soon(sink.on_lost)
            return stream_id
        self._streams[stream_id] = _Stream(sink)
        self._write(frames.encode(frames.OPEN, stream_id, payload))
        return stream_id

    def send(self, type_: int, stream_id: int, payload: bytes = b"") -> None:
        """Pass a frame of the opener's on to the guest."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if type_ == frames.CREDIT:
            stream.credit += frames.credit_of(payload)
        self._write(frames.encode(type_, stream_id, payload))

    def forget(self, stream_id: int) -> None:
        """Hear no more of a stream."""
        self._streams.pop(stream_id, None)

    def close(self) -> None:
        """Hang up; openers hear that it is lost."""
        self._end("closed by the node")

    def hold(self, *, held: bool) -> None:
        """Read no more from this guest while whoever asked cannot take it; CONTROL frames carry no credit."""
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self._end("broken protocol: credit was granted and nothing is read")


class Nobody:
    """The sink of a stream whose answer concerns no one."""

    def on_frame(self, type_: int, payload: bytes) -> None:
        """Nobody asked."""

    def on_lost(self) -> None:
        """Nobody minds."""
