"""A host's end of a sandbox's channel, for tests: opens streams, collects replies, and keeps the other end honest.

`Host` works over any connected socket: give it the one of a real sandbox, or let `guest()` serve ops in a thread.
It reads only while somebody waits, so a test decides what the other end has to hold back.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ringfence.guest import files, frames, tunnel, watch
from ringfence.guest.context import Context, Op
from ringfence.guest.loop import Loop
from ringfence.guest.stream import Channel, Stream

PATIENCE = 60.0  # seconds until a test gives up; nothing is timed with it
OPS: dict[str, Op] = {**files.OPS, **watch.OPS, **tunnel.OPS}


class ProtocolBroken(AssertionError):
    """The other end sent what the protocol forbids."""


class Reply:
    """One stream: what was sent back so far, and the means to send more."""

    def __init__(self, host: Host, stream: int, *, automatic: bool) -> None:
        self.id = stream
        self.out = bytearray()
        self.err = bytearray()
        self.controls: list[dict[str, Any]] = []
        self.eof = False
        self.end: dict[str, Any] | None = None
        self.credit = frames.WINDOW  # what we may still send
        self.allowed = frames.WINDOW  # what the other end may still send
        self._host = host
        self._automatic = automatic
        self._taken = 0

    # -- what came ----------------------------------------------------------------------------------------------

    @property
    def error(self) -> str | None:
        """The code of a refusal; None for another answer or none yet."""
        code = (self.end or {}).get("error", {}).get("code")
        return None if code is None else str(code)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What a watch told."""
        return [message["event"] for message in self.controls if "event" in message]

    def received(self, frame: frames.Frame) -> None:
        """Take one frame of this stream. Raises ProtocolBroken."""
        if self.end is not None:
            raise ProtocolBroken(f"frame {frame.type} after END")
        if frame.type in {frames.STDOUT, frames.STDERR}:
            self._output(frame)
        elif frame.type == frames.CREDIT:
            self.credit += frames.credit_of(frame.payload)
            if self.credit > frames.WINDOW:
                raise ProtocolBroken("credit for bytes that were never sent")
        elif frame.type == frames.CONTROL:
            self.controls.append(json.loads(frame.payload))
        elif frame.type == frames.EOF and not self.eof:
            self.eof = True
        elif frame.type == frames.END:
            self.end = json.loads(frame.payload)
        else:
            raise ProtocolBroken(f"frame {frame.type} toward the host")

    def _output(self, frame: frames.Frame) -> None:
        size = len(frame.payload)
        self.allowed -= size
        if self.eof or not size or self.allowed < 0:
            raise ProtocolBroken("output after EOF, empty, or without credit")
        (self.out if frame.type == frames.STDOUT else self.err).extend(frame.payload)
        if self._automatic:
            self._taken += size

    def acknowledge(self) -> None:
        """Give back the credit of what was taken, in one frame."""
        if self._taken and self.end is None:
            self.grant(self._taken)
        self._taken = 0

    # -- waiting ------------------------------------------------------------------------------------------------

    def until(self, true: Callable[[Reply], object], patience: float = PATIENCE) -> Reply:
        """Read from the channel until `true(self)`."""
        self._host.until(lambda: true(self), patience)
        return self

    def started(self) -> dict[str, Any]:
        """The body of "started"; raises ProtocolBroken when the stream ended without."""
        self.until(lambda reply: reply.end is not None or any("started" in message for message in reply.controls))
        for message in self.controls:
            if "started" in message:
                return dict(message["started"])
        raise ProtocolBroken(f"ended before it started: {self.end}")

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """What END holds, once it came."""
        self.until(lambda reply: reply.end is not None, patience)
        return self.end or {}

    # -- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all, waiting for credit; stops early when the stream ends."""
        view = memoryview(data)
        while view and self.end is None:
            self.until(lambda reply: reply.credit or reply.end is not None)
            piece = view[: min(self.credit, frames.MAX_DATA)]
            self.credit -= len(piece)
            self._host.send(frames.STDIN, self.id, bytes(piece))
            view = view[len(piece) :]

    def close_input(self) -> None:
        """Send EOF."""
        self._host.send(frames.EOF, self.id)

    def control(self, message: dict[str, Any]) -> None:
        """Send a message on the open stream."""
        self._host.send(frames.CONTROL, self.id, json.dumps(message).encode())

    def grant(self, count: int) -> None:
        """Let the other end send `count` more bytes."""
        self.allowed += count
        self._host.send(frames.CREDIT, self.id, count.to_bytes(4, "big"))

    def cancel(self) -> None:
        """Lose interest."""
        self._host.send(frames.CANCEL, self.id)


class Host:
    """Opens streams over one socket and sorts what comes back."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.closed = False  # the other end hung up
        self.stray: list[frames.Frame] = []  # of stream 0: what an agent says before any request
        self._parser = frames.Parser()
        self._replies: dict[int, Reply] = {}
        self._last = 0

    def send(self, type_: int, stream: int, payload: bytes = b"") -> None:
        """Send one frame, right or wrong."""
        self.connection.sendall(frames.encode(type_, stream, payload))

    def open(self, op: str, *, automatic: bool = True, **fields: Any) -> Reply:
        """Ask for something. `automatic`: give credit back as bytes arrive."""
        return self.open_raw(json.dumps({"op": op, **fields}).encode(), automatic=automatic)

    def open_raw(self, payload: bytes, *, automatic: bool = True) -> Reply:
        """Open a stream with any bytes."""
        self._last += 1
        reply = self._replies[self._last] = Reply(self, self._last, automatic=automatic)
        self.send(frames.OPEN, self._last, payload)
        return reply

    def ask(self, op: str, *, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        return self.open(op, **fields).answer(patience)

    def put(self, path: str, data: bytes, **fields: Any) -> dict[str, Any]:
        """Write a file, and wait for the answer."""
        reply = self.open("write", path=path, **fields)
        reply.send(data)
        reply.close_input()
        return reply.answer()

    def get(self, path: str, **fields: Any) -> bytes:
        """Read a file whole."""
        reply = self.open("read", path=path, **fields)
        if "error" in reply.answer():
            raise ProtocolBroken(f"read refused: {reply.end}")
        return bytes(reply.out)

    def unended(self) -> bool:
        """Whether a stream is open still."""
        return any(reply.end is None for reply in self._replies.values())

    def pump(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False when nothing did."""
        if self.closed or not select.select([self.connection], [], [], seconds)[0]:
            return False
        try:
            data = self.connection.recv(1024 * 1024)
        except ConnectionError:
            data = b""
        self.closed = not data
        touched: set[Reply] = set()
        for frame in self._parser.feed(data):
            if frame.stream == 0:
                self.stray.append(frame)
                continue
            reply = self._replies.get(frame.stream)
            if reply is None:
                raise ProtocolBroken(f"frame {frame.type} on a stream never opened")
            reply.received(frame)
            touched.add(reply)
        for reply in touched:
            reply.acknowledge()
        return True

    def until(self, true: Callable[[], object], patience: float = PATIENCE) -> None:
        """Pump until `true()`; raises TimeoutError after `patience`, ConnectionError when the other end hung up."""
        deadline = time.monotonic() + patience
        while not true():
            if self.closed:
                raise ConnectionError("the other end hung up")
            if time.monotonic() > deadline:
                raise TimeoutError("the other end did not answer")
            self.pump(0.05)

    def settle(self, seconds: float = 0.1) -> None:
        """Pump until nothing comes for `seconds`."""
        while self.pump(seconds):
            continue


class Guest:
    """An agent's plumbing without its programs: a loop and a channel, and a table of ops."""

    def __init__(self, connection: socket.socket, home: str, ops: Mapping[str, Op]) -> None:
        self.loop = Loop()
        self.context = Context(loop=self.loop, home=home)
        self.lost = 0
        self._ops = ops
        self._connection = connection
        self.channel = Channel(self.loop, connection.fileno(), self._opened, self._lost)

    def _opened(self, stream: Stream, payload: bytes) -> None:
        try:
            request = json.loads(payload)
            op = self._ops[request["op"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            stream.fail("bad_request", "not a request this agent knows")
            return
        op(self.context, stream, request)

    def _lost(self) -> None:
        self.lost += 1
        self.loop.stop()

    def turn(self) -> None:
        """Serve what is ready now, and return."""
        self.loop.call_later(0, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        """Give the descriptors back."""
        self.loop.close()
        self._connection.close()


@contextmanager
def guest(home: str | os.PathLike[str], ops: Mapping[str, Op] | None = None) -> Iterator[Host]:
    """Serve `ops` (files, watch and tunnel by default) in a thread; what breaks there is raised here."""
    ours, theirs = socket.socketpair()
    serving = Guest(theirs, str(Path(home)), OPS if ops is None else ops)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            serving.loop.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)
        finally:
            serving.close()

    thread = threading.Thread(target=serve, name="guest", daemon=True)
    thread.start()
    try:
        yield Host(ours)
    finally:
        ours.close()
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    if thread.is_alive():
        raise ProtocolBroken("the guest did not notice that the host is gone")
