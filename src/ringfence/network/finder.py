"""Finding and covering known words in streams of bytes, however the streams are cut into pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def _alternatives(words: Iterable[bytes]) -> re.Pattern[bytes] | None:
    longest_first = sorted({word for word in words if word}, key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None


class Finder:
    """Says which of some words comes by. It keeps the end of what it saw, so that a word may come in two pieces."""

    def __init__(self, words: Mapping[bytes, str]) -> None:
        """`words` maps each to what is said of it."""
        self._words = words
        self._pattern = _alternatives(words)
        self._keep = max(map(len, words), default=1) - 1
        self._tail = b""

    def feed(self, data: bytes) -> str:
        """What is said of the first word that these bytes complete; empty for none."""
        if self._pattern is None:
            return ""
        seen = self._tail + data
        found = self._pattern.search(seen)
        if found is not None:
            return self._words[found[0]]
        self._tail = seen[-self._keep :] if self._keep else b""
        return ""


class Cover:
    """Puts as many asterisks in the place of some words, so that nothing that counts bytes need know.

    What could be the beginning of a word is held back until it is known; of ordinary bytes, that is nothing.
    """

    def __init__(self, words: Iterable[bytes]) -> None:
        self._words: set[bytes] = set()
        self._starts: frozenset[int] = frozenset()
        self._longest = 0
        self._pattern: re.Pattern[bytes] | None = None
        self._held = b""
        self.covered = 0
        self.add(words)

    def add(self, words: Iterable[bytes]) -> None:
        """Cover these as well, from now on."""
        fresh = {word for word in words if word} - self._words
        if fresh or self._pattern is None:
            self._words |= fresh
            self._pattern = _alternatives(self._words)
            self._starts = frozenset(word[0] for word in self._words)
            self._longest = max(map(len, self._words), default=0)

    def feed(self, data: bytes) -> bytes:
        """What of these bytes, and of those held back, may be passed on."""
        if self._pattern is None:
            return data
        data = self._held + data
        data = self._pattern.sub(self._asterisks, data)
        size = self._unsure(data)
        self._held = data[len(data) - size :]
        return data[: len(data) - size]

    def _asterisks(self, found: re.Match[bytes]) -> bytes:
        self.covered += 1
        return b"*" * len(found[0])

    def _unsure(self, data: bytes) -> int:
        """How many bytes at the end could begin a word."""
        for at in range(len(data) - min(self._longest - 1, len(data)), len(data)):
            if data[at] in self._starts and any(word.startswith(data[at:]) for word in self._words):
                return len(data) - at
        return 0

    def rest(self) -> bytes:
        """What was held back, at the end: it was no word after all."""
        rest, self._held = self._held, b""
        return rest
