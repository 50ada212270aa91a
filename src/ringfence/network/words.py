"""What node and gate say to each other: JSON objects, each behind its size."""

from __future__ import annotations

import json
from typing import Any, Final

MOST_TO_GATE: Final = 8 * 1024 * 1024  # a policy of a thousand rules with all their paths
MOST_TO_NODE: Final = 16 * 1024  # an event
_SIZE: Final = 4


class BadWords(ValueError):
    """Not what the other side could have meant."""


def encode(words: dict[str, Any]) -> bytes:
    """One message."""
    data = json.dumps(words).encode()
    return len(data).to_bytes(_SIZE, "big") + data


class Parser:
    """Cuts a stream into messages of bounded size."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Every message that these bytes complete. Raises BadWords."""
        self._held += data
        found = []
        while len(self._held) >= _SIZE:
            size = int.from_bytes(self._held[:_SIZE], "big")
            if size > self._most:
                raise BadWords("a message is too long")
            if len(self._held) < _SIZE + size:
                break
            found.append(_object(bytes(self._held[_SIZE : _SIZE + size])))
            del self._held[: _SIZE + size]
        return found


def _object(data: bytes) -> dict[str, Any]:
    try:
        words = json.loads(data)
    except (ValueError, RecursionError):
        raise BadWords("a message is no JSON") from None
    if not isinstance(words, dict):
        raise BadWords("a message is no object")
    return words
