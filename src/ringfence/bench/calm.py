"""Wait until nobody else wants the processors, so that a sample measures its row and not its neighbours.

The kernel counts who is runnable right now (the fourth field of /proc/loadavg); alone, that is only us. A process that
starts after the look still disturbs: p95 and p99 are upper bounds.
"""

from __future__ import annotations

import time
from typing import Final

LOOKS: Final = 3  # in a row, all calm
PAUSE: Final = 0.002


def runnable() -> int:
    """How many tasks are running or want to, the caller included."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].split("/")[0])


class Gate:
    """Counts how often it was calm, and how often the waiting had to end. It never spends more than its budget."""

    def __init__(self, seconds: float, each: float = 0.25) -> None:
        self._left = seconds
        self._each = each
        self.calm = 0
        self.forced = 0

    def wait(self) -> bool:
        """Return when calm, or when this wait or all waits have taken long enough."""
        began = time.monotonic()
        until = began + min(self._each, self._left)
        looks = 0
        while looks < LOOKS:
            looks = looks + 1 if runnable() <= 1 else 0
            if time.monotonic() >= until:
                break
            time.sleep(PAUSE)
        self._left -= time.monotonic() - began
        calm = looks >= LOOKS
        self.calm += calm
        self.forced += not calm
        return calm
