"""/files: contents up and down as raw bytes, in pieces, by token or by signed URL."""

from __future__ import annotations

import email.utils
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

from ringfence import wire
from ringfence.api.compat.e2b import refusals
from ringfence.api.compat.e2b.call import Call
from ringfence.api.compat.e2b.filesystem import look
from ringfence.api.compat.e2b.http import Exchange
from ringfence.api.compat.e2b.multipart import Parts, boundary_of
from ringfence.api.compat.e2b.records import Signed
from ringfence.api.compat.e2b.users import account
from ringfence.domain.errors import BadRequest, RingfenceError

RAW: Final = "application/octet-stream"
PIECE: Final = 256 * 1024  # of what is unpacked at once
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_STATUS: Final = {"guest_no_space": 507, "guest_not_found": 404, "guest_permission": 400}
_OPERATION: Final = {"GET": "read", "HEAD": "read", "POST": "write"}


def signed_words(exchange: Exchange) -> Signed | None:
    """What a file URL's signature claims to be over; None without one. Raises BadRequest."""
    query = exchange.query()
    operation = _OPERATION.get(exchange.method)
    if "signature" not in query or operation is None:
        return None
    expiry = (query["signature_expiration"],) if query.get("signature_expiration") else ()
    return Signed(query.get("path", ""), operation, query.get("username", ""), expiry, query["signature"])


def status_of(error: RingfenceError) -> int:
    """The status of a failure with a file."""
    return _STATUS.get(error.code) or refusals.status_of(error)


async def serve(call: Call) -> None:
    """GET, HEAD or POST."""
    exchange, query = call.exchange, call.exchange.query()
    call.account = account(query.get("username"))
    if exchange.method in {"GET", "HEAD"}:
        await _download(call, call.path(_path(query)))
    elif exchange.method == "POST":
        await _upload(call, query)
    else:
        await exchange.refuse(405, "files are read by GET and written by POST")


def _path(query: dict[str, str]) -> str:
    if not query.get("path"):
        raise BadRequest("path is missing", code="bad_path")
    return query["path"]


# --- down ----------------------------------------------------------------------------------------------------------


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, length) of the one range asked for; None where there is none that can be served as such."""
    found = _RANGE.fullmatch(header or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return size - length, length
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    return first, last - first + 1


async def _download(call: Call, path: str) -> None:
    exchange = call.exchange
    entry = await look(call, path)
    if entry.type != "file":
        raise BadRequest(f"path {path!r:.200} is not a file", code="not_a_file")
    span = _span(exchange.header(b"range"), entry.size)
    if span is not None and (span[1] <= 0 or span[0] >= max(entry.size, 1)):
        await exchange.refuse(416, "the range lies outside the file", {"content-range": f"bytes */{entry.size}"})
        return
    await exchange.until_left(call.engine.stopping, _sent(call, path, entry, span))


def _headers(path: str, entry: wire.Entry, span: tuple[int, int] | None) -> dict[str, str]:
    """What a sandbox wrote is never shown as a page of this server."""
    first, length = span or (0, entry.size)
    headers = {
        "content-type": RAW,
        "content-length": str(length),
        "content-disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2][:200], safe='')}",
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "accept-ranges": "bytes",
        "last-modified": email.utils.formatdate(max(entry.mtime, 0.0), usegmt=True),
    }
    return headers if span is None else {**headers, "content-range": f"bytes {first}-{first + length - 1}/{entry.size}"}


async def _sent(call: Call, path: str, entry: wire.Entry, span: tuple[int, int] | None) -> None:
    exchange = call.exchange
    first, left = span or (0, entry.size)
    async with call.engine.files.reading(*call.where, path, offset=first, length=left, user=call.account.name) as live:
        await exchange.start(200 if span is None else 206, _headers(path, entry, span))
        if exchange.method != "HEAD":
            async for chunk in live.chunks():
                left -= len(chunk)
                await exchange.write(chunk)
    if not left or exchange.method == "HEAD":  # a file that shrank meanwhile is cut, not made to look whole
        await exchange.finish()


# --- up ------------------------------------------------------------------------------------------------------------


async def _unpacked(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A gzip body's bytes, never much more of them at once than were asked for."""
    unpacker = zlib.decompressobj(wbits=31)
    async for chunk in chunks:
        data = chunk
        while data and not unpacker.eof:
            try:
                piece = unpacker.decompress(data, PIECE)
            except zlib.error:
                raise BadRequest("the body is not gzip", code="bad_gzip") from None
            data = unpacker.unconsumed_tail
            if piece:
                yield piece
    if not unpacker.eof:
        raise BadRequest("the gzip body is cut short", code="bad_gzip")


def _body(exchange: Exchange) -> AsyncIterator[bytes]:
    packing = (exchange.header(b"content-encoding") or "identity").lower()
    if packing not in {"identity", "gzip"}:
        raise BadRequest(f"content encoding {packing!r:.40} is not taken", code="bad_encoding")
    return _unpacked(exchange.chunks()) if packing == "gzip" else exchange.chunks()


async def _write(call: Call, path: str, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
    await call.engine.files.write_stream(*call.where, path, chunks, in_place=True, user=call.account.name)
    return {"path": path, "name": path.rpartition("/")[2], "type": "file"}


async def _upload(call: Call, query: dict[str, str]) -> None:
    exchange = call.exchange
    for name, _ in exchange.scope["headers"]:
        if name.startswith(b"x-metadata-"):
            raise BadRequest("files have no metadata here", code="unsupported_option")
    kind = exchange.header(b"content-type") or ""
    plain = kind.partition(";")[0].strip().lower()
    if plain == RAW:
        written = [await _write(call, call.path(_path(query)), _body(exchange))]
    elif plain == "multipart/form-data":
        written = await _parts(call, query.get("path"), Parts(_body(exchange), boundary_of(kind)))
    else:
        await exchange.refuse(415, f"a file is sent as multipart/form-data or {RAW}")
        return
    await exchange.tell(200, written)


async def _parts(call: Call, path: str | None, parts: Parts) -> list[dict[str, Any]]:
    """Each part named `file`: to the query's path, or to the one its file name is."""
    written: dict[str, dict[str, Any]] = {}
    while (words := await parts.next()) is not None:
        if words.get("name") != "file":
            continue
        target = call.path(path or words.get("filename") or "")
        if target in written or not (path or words.get("filename")):
            raise BadRequest(f"more than one file, or none, for path {target!r:.200}", code="bad_multipart")
        written[target] = await _write(call, target, parts.contents())
    return list(written.values())
