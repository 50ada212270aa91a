"""A deadline for one call, counted on the monotonic clock from the moment it is made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import httpx
from httpx import Response

from ringfence.client.errors import DeadlineExceeded

CONNECT_SECONDS: Final = 10.0  # a listening server accepts at once; longer means nobody is there
HEAD_SECONDS: Final = 60.0  # where only silence is bounded: for an answer to begin, on however busy a machine
PAUSES: Final = (0.05, 0.2, 0.8)  # before the second, third and fourth try: together about a second, a restart's length


class Deadline:
    """How long a call may still take, and how long the other side may be silent; None means as long as it likes."""

    def __init__(self, seconds: float | None, silence: float | None = None) -> None:
        self.seconds = seconds
        self._silence = silence
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds that remain. Raises DeadlineExceeded when none do."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"no complete answer within {self.seconds:g} s", remediation="raise deadline= for this call"
            )
        return left

    def httpx(self) -> httpx.Timeout:
        """The same as httpx wants it. It bounds each wait; `left` between reads bounds their sum."""
        left = self.left()
        read = HEAD_SECONDS if left is None and self._silence is not None else left
        return httpx.Timeout(left, read=read, connect=CONNECT_SECONDS if left is None else min(left, CONNECT_SECONDS))

    def listen(self, response: Response) -> None:
        """Silence counts from here on: until an answer begins its server is at work, which is not to have no more."""
        if self._silence is not None:
            waits = response.request.extensions["timeout"]
            waits["read"] = self._silence if waits["read"] is None else min(self._silence, waits["read"])

    def pauses(self) -> Iterator[float]:
        """Waits before each further try, as long as they fit."""
        for pause in PAUSES:
            if self._end is None or time.monotonic() + pause < self._end:
                yield pause
