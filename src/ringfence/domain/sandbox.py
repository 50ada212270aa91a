"""A sandbox's identity, its states, and which state may follow which."""

from __future__ import annotations

import base64
import enum
import os
import re
from typing import Final

from ringfence.domain.errors import Conflict

START_BYTES: Final = 64 * 1024  # of the words for the program a sandbox begins with: the node keeps them while it lives
ID: Final = re.compile(r"[srk][a-z2-7]{26}")


class State(enum.StrEnum):
    """Life of a sandbox as its owner sees it."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


FOLLOWS: Final[dict[State, frozenset[State]]] = {
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.FAILED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.STOPPED, State.FAILED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED, State.FAILED}),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
}


def move(now: State, to: State) -> State:
    """The next state, or Conflict when the move is not one of FOLLOWS."""
    if to not in FOLLOWS[now]:
        raise Conflict(f"a {now} sandbox cannot become {to}", code="illegal_move")
    return to


def new_id(kind: str) -> str:
    """An id of 130 random bits that is also a valid DNS label and file name: `s` sandbox, `r` run, `k` key."""
    return kind + base64.b32encode(os.urandom(17)).decode().lower()[:26]
