"""Where clients put the files of their COPYs: URLs of our own, each for one upload and a short time."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Final

from ringfence.api.compat.e2b.http import Exchange
from ringfence.domain.errors import BadRequest, Forbidden, OverQuota, TooLarge
from ringfence.engine.builds import upload_key
from ringfence.engine.kept import Cache
from ringfence.engine.shelf import Blob

TOKEN_BYTES: Final = 32
SECONDS: Final = 3600.0  # as long as the clients themselves take for an upload at most
MOST_GRANTS: Final = 1000  # of one tenant's that were not used yet


@dataclass(frozen=True, slots=True)
class Grant:
    """What one URL lets its holder do, once."""

    tenant: str
    files: str
    until: float


class Uploads:
    """The URLs that were given out, and what came by them."""

    def __init__(self, cache: Cache, most: int, base: str) -> None:
        """`base` is how clients reach this server, where the Host they sent does not say it."""
        self._cache = cache
        self._most = most
        self._base = base.rstrip("/")
        self._grants: dict[bytes, Grant] = {}

    def present(self, tenant: str, files: str) -> bool:
        """Whether these files are here already."""
        return self._cache.row(tenant, upload_key(files)) is not None

    def url(self, exchange: Exchange, tenant: str, template: str, files: str) -> str:
        """A URL for one upload. Raises OverQuota."""
        self._forget_old()
        if sum(grant.tenant == tenant for grant in self._grants.values()) >= MOST_GRANTS:
            raise OverQuota("too many uploads were asked for and not made", code="build_quota")
        token = secrets.token_hex(TOKEN_BYTES)
        self._grants[_digest(token)] = Grant(tenant, files, time.monotonic() + SECONDS)
        base = self._base or f"{exchange.scope['scheme']}://{exchange.header(b'host')}"
        return f"{base}/templates/{template}/files/{files}?token={token}"

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [key for key, grant in self._grants.items() if grant.until < now]:
            del self._grants[key]

    def admitted(self, exchange: Exchange, files: str) -> Grant:
        """Whose upload this is; its URL is used up. Raises Forbidden for one that was not given, or not for this."""
        grant = self._grants.get(_digest(exchange.query().get("token", "")))
        if grant is None or grant.until < time.monotonic() or grant.files != files:
            raise Forbidden("this upload was not asked for, or was made already", code="bad_upload")
        del self._grants[_digest(exchange.query()["token"])]
        return grant

    async def take(self, exchange: Exchange, grant: Grant) -> None:
        """Keep what is sent. Raises TooLarge, OverQuota."""
        length = exchange.header(b"content-length")
        if length is not None and (not length.isdecimal() or int(length[:20]) > self._most):
            raise TooLarge(f"the files are larger than {self._most >> 20} MiB", code="build_too_large")

        async def fill(blob: Blob) -> None:
            count = 0
            async for chunk in exchange.chunks():
                count += len(chunk)
                await blob.write(chunk)
            if not count:
                raise BadRequest("the upload is empty", code="bad_upload")

        await self._cache.keep(grant.tenant, upload_key(grant.files), self._most, fill)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
