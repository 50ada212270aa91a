"""What the engine refuses, in the words and numbers that E2B's clients act on.

Their clients repeat 429, 502, 503 and 504, a create included. So each answer says whether that is safe.
"""

from __future__ import annotations

from typing import Final

from ringfence.api.compat.e2b.http import Exchange
from ringfence.api.errors import RETRY_SECONDS, ours
from ringfence.domain.errors import NotFound, Overloaded, OverQuota, RingfenceError, SandboxRefused, TooLarge

_NOT_FOUND: Final = frozenset({"sandbox_ended", "unknown_template"})
AGAIN: Final = (Overloaded, OverQuota, SandboxRefused)  # nothing was made: asking again is safe


def missing(sandbox_id: str) -> NotFound:
    """The one answer for what never was, is gone, or is another's."""
    return NotFound(f"sandbox {sandbox_id[:64]!r} was not found", code="sandbox_not_found")


def status_of(error: RingfenceError) -> int:
    """The status E2B's clients expect."""
    if error.code in _NOT_FOUND:
        return 404
    if isinstance(error, TooLarge):
        return 413
    return type(error).status


def headers_of(error: RingfenceError) -> dict[str, str]:
    """When to ask again, and whether."""
    headers = {"cache-control": "no-store"}
    if status_of(error) in {429, 502, 503, 504}:
        again = isinstance(error, AGAIN)
        headers["should-retry"] = str(again).lower()
        if again:
            headers["retry-after"] = str(RETRY_SECONDS)
    return headers


def words_of(error: RingfenceError) -> str:
    """The cause, and what to do about it."""
    return f"{error.cause} ({error.remediation})" if error.remediation else error.cause


async def answer(exchange: Exchange, error: Exception) -> None:
    """Answer with what went wrong."""
    known = ours(error)
    await exchange.refuse(status_of(known), words_of(known), headers_of(known), error_code=known.code)
