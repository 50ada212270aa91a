"""Streams over the channel: one per request, each with its own credit, all through one descriptor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from ringfence.guest import frames
from ringfence.guest.annotations import Any, Final
from ringfence.guest.loop import Loop

READ_SIZE: Final = 256 * 1024
HELD_BACK: Final = 1024 * 1024  # unsent bytes at which producers are asked to wait
_TOO_LARGE: Final = b'{"error": {"code": "io", "cause": "the answer is larger than a frame"}}'


class Handler:
    """What serves one stream; every hook may stay a no-op."""

    def on_stdin(self, data: bytes) -> None:
        """Bytes toward the program. Call stream.consumed(len(data)) once they are gone."""

    def on_eof(self) -> None:
        """No more bytes toward the program."""

    def on_control(self, message: dict[str, Any]) -> None:
        """A message on the open stream."""

    def on_cancel(self) -> None:
        """The opener lost interest: end the stream soon."""

    def on_room(self) -> None:
        """stream.room grew after it had been 0."""


class Stream:
    """One request being answered."""

    __slots__ = ("_channel", "_credit", "_taking", "closed", "handler", "id")

    def __init__(self, channel: Channel, stream_id: int) -> None:
        self._channel = channel
        self._credit = frames.WINDOW
        self._taking = frames.WINDOW
        self.id = stream_id
        self.closed = False
        self.handler = Handler()

    @property
    def room(self) -> int:
        """How many bytes out() and err() may carry now, together; 0 while the channel is backed up."""
        if self.closed or self._channel.backed_up:
            return 0
        return min(self._credit, frames.MAX_DATA)

    def _raw(self, type_: int, data: bytes) -> None:
        if self.closed or not data:
            return
        self._credit -= len(data)
        self._channel.send(frames.encode(type_, self.id, data))

    def out(self, data: bytes) -> None:
        """Send output; the caller keeps len(data) <= room."""
        self._raw(frames.STDOUT, data)

    def err(self, data: bytes) -> None:
        """Send error output; the caller keeps len(data) <= room."""
        self._raw(frames.STDERR, data)

    def eof(self) -> None:
        """Say that no more output follows (a half-closed tunnel)."""
        if not self.closed:
            self._channel.send(frames.encode(frames.EOF, self.id))

    def control(self, message: dict[str, Any]) -> None:
        """Send a message on the open stream."""
        if not self.closed:
            self._channel.send(frames.encode(frames.CONTROL, self.id, json.dumps(message).encode()))

    def consumed(self, count: int) -> None:
        """Let the opener send `count` more STDIN bytes."""
        if not self.closed and count:
            self._taking += count
            self._channel.send(frames.credit(self.id, count))

    def end(self, answer: dict[str, Any]) -> None:
        """Answer and close; anything after is dropped."""
        if self.closed:
            return
        self.closed = True
        self._channel.finish(self.id)
        payload = json.dumps(answer).encode()
        if len(payload) > frames.MAX_JSON:
            payload = _TOO_LARGE
        self._channel.send(frames.encode(frames.END, self.id, payload))

    def fail(self, code: str, cause: str) -> None:
        """Answer with a refusal and close."""
        self.end({"error": {"code": code, "cause": cause}})

    def received(self, data: bytes) -> None:
        """Bytes toward the program came. Raises FrameError when the opener had no credit for them."""
        self._taking -= len(data)
        if self._taking < 0:
            raise frames.FrameError("more bytes than credit")
        self.handler.on_stdin(data)

    def granted(self, count: int) -> None:
        """The opener took `count` bytes: there is room again."""
        was = self.room
        self._credit += count
        if not was and self.room:
            self.handler.on_room()


def _message(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):  # the second: nested deeper than the parser goes
        message = None
    if not isinstance(message, dict):
        raise frames.FrameError("a control frame without a JSON object")
    return message


class Channel:
    """The sandbox's one duplex descriptor: parses what comes, queues what goes."""

    def __init__(self, loop: Loop, fd: int, opened: Callable[[Stream, bytes], None], lost: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._opened = opened
        self._lost = lost
        self._parser = frames.Parser()
        self._streams: dict[int, Stream] = {}
        self._queue = bytearray()
        self._alive = True
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    @property
    def backed_up(self) -> bool:
        """True while the host reads more slowly than we produce."""
        return len(self._queue) > HELD_BACK

    @property
    def fd(self) -> int:
        """The descriptor itself, so that a fork can close it."""
        return self._fd

    def send(self, data: bytes) -> None:
        """Write now if nothing waits, else queue; order is kept. Dropped once the host is gone."""
        if not self._alive:
            return
        if self._queue:
            self._queue += data
            return
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        if sent < len(data):
            self._queue += data[sent:]
            self._loop.add_writer(self._fd, self._writable)

    def finish(self, stream_id: int) -> None:
        """Forget a stream that answered."""
        self._streams.pop(stream_id, None)

    def _writable(self) -> None:
        was = self.backed_up
        try:
            sent = os.write(self._fd, self._queue)
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        del self._queue[:sent]
        if not self._queue:
            self._loop.remove_writer(self._fd)
        if was and not self.backed_up:
            for stream in list(self._streams.values()):
                stream.handler.on_room()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Act on bytes that came from the host; none at all means that it hung up."""
        if not data:
            self._lose()
            return
        try:
            for frame in self._parser.feed(data):
                self._dispatch(frame)
        except frames.FrameError:
            self._lose()

    def _lose(self) -> None:
        """Say once that the host is gone, and wake no more for its descriptor."""
        if self._alive:
            self._alive = False
            self._loop.forget(self._fd)
            self._queue.clear()
            self._lost()

    def _dispatch(self, frame: frames.Frame) -> None:
        if frame.type == frames.OPEN:
            if frame.stream in self._streams:
                raise frames.FrameError("a stream opened twice")
            stream = self._streams[frame.stream] = Stream(self, frame.stream)
            self._opened(stream, frame.payload)
            return
        known = self._streams.get(frame.stream)
        if known is None:
            return
        if frame.type == frames.STDIN:
            known.received(frame.payload)
        elif frame.type == frames.EOF:
            known.handler.on_eof()
        elif frame.type == frames.CREDIT:
            known.granted(frames.credit_of(frame.payload))
        elif frame.type == frames.CONTROL:
            known.handler.on_control(_message(frame.payload))
        elif frame.type == frames.CANCEL:
            known.handler.on_cancel()
