"""The agent's end of a channel, for coroutines: reading is awaiting a queue, writing is awaiting room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from ringfence.guest import frames


class Left(Exception):
    """The opener lost interest in a stream whose input was being awaited."""


class Stream:
    """One request being answered."""

    def __init__(self, channel: Channel, stream_id: int) -> None:
        self._channel = channel
        self._credit = frames.WINDOW
        self._taking = frames.WINDOW
        self.id = stream_id
        self.closed = False
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the window; None is EOF
        self.on_room: Callable[[], None] = lambda: None
        self.on_control: Callable[[dict[str, Any]], None] = lambda _: None
        self.on_cancel: Callable[[], None] = lambda: self.end({})

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return 0 if self.closed else min(self._credit, frames.MAX_DATA)

    def send(self, type_: int, data: bytes) -> None:
        """Send output; the caller keeps len(data) <= room."""
        if not self.closed and data:
            self._credit -= len(data)
            self._channel.send(frames.encode(type_, self.id, data))

    async def write(self, data: bytes) -> None:
        """Send all of it as STDOUT, as room comes; the rest is dropped once the stream is closed."""
        view = memoryview(data)
        while view and not self.closed:
            if not self.room:
                await self._roomy()
                continue
            piece = bytes(view[: self.room])
            self.send(frames.STDOUT, piece)
            view = view[len(piece) :]

    async def _roomy(self) -> None:
        came = asyncio.Event()
        self.on_room = came.set
        await came.wait()

    def control(self, message: dict[str, Any]) -> None:
        """Send a message on the open stream."""
        if not self.closed:
            self._channel.send(frames.encode(frames.CONTROL, self.id, json.dumps(message).encode()))

    def eof(self) -> None:
        """Say that no more output follows."""
        if not self.closed:
            self._channel.send(frames.encode(frames.EOF, self.id))

    def consumed(self, count: int) -> None:
        """Let the opener send that much more."""
        if not self.closed and count:
            self._taking += count
            self._channel.send(frames.credit(self.id, count))

    async def take(self) -> bytes | None:
        """The next bytes toward us, with credit given back for them; None at EOF. Raises Left."""
        data = await self.inbox.get()
        if self.closed:
            raise Left
        self.consumed(len(data or b""))
        return data

    def end(self, answer: dict[str, Any]) -> None:
        """Answer and close; anything after is dropped."""
        if not self.closed:
            self.closed = True
            self._channel.forget(self.id)
            self._channel.send(frames.encode(frames.END, self.id, json.dumps(answer).encode()))
            self.inbox.put_nowait(None)
            self.on_room()

    def fail(self, code: str, cause: str) -> None:
        """Answer with a refusal."""
        self.end({"error": {"code": code, "cause": cause}})

    def hear(self, frame: frames.Frame) -> None:
        """One frame from the opener. Raises FrameError when it may not be sent."""
        if frame.type == frames.STDIN:
            self._taking -= len(frame.payload)
            if self._taking < 0:
                raise frames.FrameError("more bytes than credit")
            self.inbox.put_nowait(frame.payload)
        elif frame.type == frames.EOF:
            self.inbox.put_nowait(None)
        elif frame.type == frames.CREDIT:
            self._credit += frames.credit_of(frame.payload)
            self.on_room()
        elif frame.type == frames.CONTROL:
            self.on_control(json.loads(frame.payload))
        elif frame.type == frames.CANCEL:
            self.on_cancel()


class Channel(asyncio.Protocol):
    """Frames in and out of one socket; `opened` answers, `lost` is told once that the node hung up."""

    def __init__(self, opened: Callable[[Stream, bytes], None], lost: Callable[[], None]) -> None:
        self._opened = opened
        self._lost = lost
        self._parser = frames.Parser()
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """There is nobody left to work for."""
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Parse and pass on; hang up on whoever breaks the protocol."""
        try:
            for frame in self._parser.feed(data):
                self._dispatch(frame)
        except (frames.FrameError, ValueError):
            self.close()

    def _dispatch(self, frame: frames.Frame) -> None:
        if frame.type != frames.OPEN:
            if (stream := self._streams.get(frame.stream)) is not None:
                stream.hear(frame)
            return
        if frame.stream in self._streams:
            raise frames.FrameError("a stream opened twice")
        stream = self._streams[frame.stream] = Stream(self, frame.stream)
        self._opened(stream, frame.payload)

    def forget(self, stream_id: int) -> None:
        """A stream was answered."""
        self._streams.pop(stream_id, None)

    def send(self, data: bytes) -> None:
        """Any bytes at all: a test can have the agent lie."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
