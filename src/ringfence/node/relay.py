"""A stream in passing: from an api connection to a guest and back, counted, capped and timed, not decoded."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ringfence.domain.process import How
from ringfence.guest import frames
from ringfence.node.link import GuestLink
from ringfence.node.live import Live

OUTPUT: Final = frozenset({frames.STDOUT, frames.STDERR})
UNCAPPED: Final = sys.maxsize  # of a kernel: a program that lives on and on; what each of its cells says is capped


class Outlet(Protocol):
    """Where a relay's frames go: one stream of one api connection."""

    def send(self, type_: int, payload: bytes = b"") -> None:
        """Pass one frame up."""

    def throttle(self, link: GuestLink) -> None:
        """Hold the guest while the api is behind with reading."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What the node knows when a stream is over."""

    answer: bytes | None  # the guest's END payload; None when the sandbox was lost first
    override: tuple[How, str] | None  # the node's own verdict, when it made one


@dataclass(eq=False)
class Relay:
    """The sink of one guest stream."""

    live: Live
    outlet: Outlet
    cap: int | None  # bytes of output allowed, for programs
    opened_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    output_bytes: int = 0
    stream: int = 0
    override: tuple[How, str] | None = None
    ended: asyncio.Future[Ended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def begin(self, payload: bytes) -> None:
        """Open the guest stream. Raises FrameError when the sandbox has too many."""
        self.stream = self.live.link.open(payload, self)
        self.live.touch()
        if self.cap is not None:
            self.live.programs += 1

    def on_frame(self, type_: int, payload: bytes) -> None:
        """From the guest, upward."""
        if type_ == frames.END:
            self._finish(payload)
            return
        if type_ == frames.WAITED:
            raise frames.FrameError("only a lone run's process 1 says how it ended")
        if type_ in OUTPUT:
            self._output(type_, payload)
        else:
            self.started_at = self.started_at or time.monotonic()
            self.outlet.send(type_, payload)
        self.outlet.throttle(self.live.link)

    def _output(self, type_: int, payload: bytes) -> None:
        if self.cap is None:
            self.output_bytes += len(payload)
            self.outlet.send(type_, payload)
            return
        room = self.cap - self.output_bytes
        if room > 0:
            self.outlet.send(type_, payload[:room])
        self.output_bytes += min(room, len(payload))
        if len(payload) > room:
            self.condemn(How.OUTPUT_CAPPED, f"wrote more than the limit of {self.cap} bytes")

    def condemn(self, how: How, reason: str) -> None:
        """The node decides this program's fate: it is told to go, and the stream ends with our verdict."""
        if self.ended.done():
            return
        self.override = self.override or (how, reason)
        self.live.link.send(frames.CANCEL, self.stream)
        self.live.link.forget(self.stream)
        self._finish(b"")

    def on_lost(self) -> None:
        """The sandbox is gone."""
        self._finish(None)

    def _finish(self, answer: bytes | None) -> None:
        if self.ended.done():
            return
        self.live.touch()
        if self.cap is not None:
            self.live.programs -= 1
        self.ended.set_result(Ended(answer, self.override or self.live.doomed))

    def from_above(self, type_: int, payload: bytes) -> None:
        """From the opener, down."""
        self.live.last_active = time.monotonic()
        self.live.link.send(type_, self.stream, payload)


def after(relay: Relay, seconds: float, how: How, reason: str) -> Callable[[], None]:
    """Condemn `relay` that many seconds from now unless it ends first; returns how to call it off."""
    handle = asyncio.get_running_loop().call_later(seconds, relay.condemn, how, reason)
    return handle.cancel
