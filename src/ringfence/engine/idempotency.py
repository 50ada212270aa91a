"""One execution for one idempotency key: a repeat gets the first one's answer, at once or once it is there.

What is under way is known to this process alone: when it dies its runs die too, and a repeat may run again. What was
answered is kept for a day, within the store's bounds. A refusal and a client's own disconnect keep nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ringfence.domain.errors import BadRequest, Conflict, RingfenceError
from ringfence.store.base import Answered, Claim, Store

KEPT_SECONDS: Final = 86_400.0
LONGEST_KEY: Final = 255
LARGEST_ANSWER: Final = 1024 * 1024


class _Underway:
    """Who works on a key now."""

    __slots__ = ("answer", "digest", "done")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.done = asyncio.Event()
        self.answer: Answered | None = None


def checked(key: str) -> str:
    """A key as a client sent it. Raises BadRequest."""
    if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise BadRequest(f"an idempotency key is 1 to {LONGEST_KEY} printable ASCII characters", code="bad_idempotency")
    return key


class Idempotency:
    """Answers repeats."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._underway: dict[tuple[str, str, str], _Underway] = {}
        self._keeping: set[asyncio.Task[None]] = set()

    async def once(
        self, claim: Claim, work: Callable[[], Awaitable[tuple[int, bytes]]], brief: Callable[[bytes], bytes]
    ) -> tuple[int, bytes]:
        """The answer to this claim: `work`'s, or an earlier one's. `brief` shortens an answer too large to keep.

        Raises Conflict when the key was used with another body. Whatever `work` raises is not kept.
        """
        place = (claim.tenant, claim.route, claim.key)
        while True:
            underway = self._underway.get(place)
            if underway is None:
                break
            _same(underway.digest, claim)
            if underway.answer is None:
                await underway.done.wait()
            if underway.answer is not None:
                return underway.answer.status, underway.answer.body
        earlier = self._store.answered(claim)
        if earlier is not None:
            _same(earlier.digest, claim)
            return earlier.status, earlier.body
        return await self._work(place, claim, work, brief)

    async def _work(
        self,
        place: tuple[str, str, str],
        claim: Claim,
        work: Callable[[], Awaitable[tuple[int, bytes]]],
        brief: Callable[[bytes], bytes],
    ) -> tuple[int, bytes]:
        mine = self._underway[place] = _Underway(claim.digest)
        try:
            status, body = await work()
        except BaseException:
            del self._underway[place]
            mine.done.set()
            raise
        kept = body if len(body) <= LARGEST_ANSWER else brief(body)
        mine.answer = Answered(claim.digest, status, kept)
        mine.done.set()
        task = asyncio.get_running_loop().create_task(self._keep(place, claim, mine.answer))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return status, body

    async def _keep(self, place: tuple[str, str, str], claim: Claim, answer: Answered) -> None:
        """Durable beside the answer; until then memory answers repeats."""
        try:
            await self._store.keep(claim, answer, time.time() + KEPT_SECONDS)
        except RingfenceError:
            return
        finally:
            self._underway.pop(place, None)


def _same(digest: bytes, claim: Claim) -> None:
    if digest != claim.digest:
        raise Conflict(
            "this idempotency key was used with another request",
            code="idempotency_mismatch",
            remediation="use a new key for a new request",
        )
