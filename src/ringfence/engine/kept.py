"""What builds keep to use again: uploads and steps' outcomes, a tenant's own, as files that nobody reads."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ringfence.domain.errors import OverQuota, TooLarge
from ringfence.engine.shelf import Blob, Shelf
from ringfence.store.base import PauseRow


class Pins:
    """What one build uses of what is kept: it stays while the build goes on."""

    def __init__(self, pinned: Counter[str]) -> None:
        self.names: list[str] = []
        self._pinned = pinned

    def add(self, row: PauseRow) -> PauseRow:
        """This too."""
        self.names.append(row.sandbox)
        self._pinned[row.sandbox] += 1
        return row


class Cache:
    """Tenants' outcomes and uploads, on a shelf; of each tenant's the longest unused go first when there is no room."""

    def __init__(self, shelf: Shelf, most: int) -> None:
        self.shelf = shelf
        self._most = most
        self._rows: dict[str, PauseRow] = {}  # by the digest of whose and what; each file's own name is random
        self._used: dict[str, float] = {}
        self._pinned: Counter[str] = Counter()
        self._stale: dict[str, PauseRow] = {}  # in use, and replaced meanwhile

    def row(self, tenant: str, key: str) -> PauseRow | None:
        """What is kept by this name."""
        row = self._rows.get(_name(tenant, key))
        if row is not None:
            self._used[row.sandbox] = time.monotonic()
        return row

    @asynccontextmanager
    async def pinning(self) -> AsyncIterator[Pins]:
        """For one build."""
        pins = Pins(self._pinned)
        try:
            yield pins
        finally:
            self._pinned.subtract(pins.names)
            for name in set(pins.names):
                if self._pinned[name] <= 0:
                    del self._pinned[name]
                    if name in self._stale:
                        await self._drop(self._stale.pop(name))

    async def keep(self, tenant: str, key: str, most: int, fill: Callable[[Blob], Awaitable[None]]) -> PauseRow:
        """Keep what `fill` writes, in the place of what had this name. Raises OverQuota, TooLarge, Overloaded."""
        await self._room(tenant)
        name = _name(tenant, key)
        blob = self.shelf.writing(tenant, secrets.token_hex(32), most, self._most)
        try:
            async with blob:
                await fill(blob)
                row = await blob.finish(0.0)
                blob.keep(row)
        except TooLarge:
            raise TooLarge(f"larger than {most >> 20} MiB", code="build_too_large") from None
        except OverQuota:
            raise OverQuota(
                "this tenant's builds keep as many bytes as they may",
                code="build_quota",
                remediation="make the steps leave less, or have the operator raise e2b.builds.kept_mib",
            ) from None
        old, self._rows[name] = self._rows.get(name), row
        self._used[row.sandbox] = time.monotonic()
        if old is not None:
            await self._drop(old)
        return row

    async def _drop(self, row: PauseRow) -> None:
        """Remove it; once nobody uses it."""
        self._used.pop(row.sandbox, None)
        if self._pinned[row.sandbox] > 0:
            self._stale[row.sandbox] = row
        else:
            await self.shelf.remove(row.sandbox)

    async def _room(self, tenant: str) -> None:
        """Drop what was not used for long, while more than half of the tenant's room is taken."""
        while self.shelf.used(tenant) > self._most // 2:
            mine = {k: r for k, r in self._rows.items() if r.tenant == tenant and self._pinned[r.sandbox] <= 0}
            if not mine:
                return
            oldest = min(mine, key=lambda name: self._used.get(mine[name].sandbox, 0.0))
            await self._drop(self._rows.pop(oldest))


def _name(tenant: str, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
