"""Which headers cross the edge, each way. What belongs to one connection, to the platform or to a sibling does not.

Cookies: the platform's own never reach a sandbox, and no sandbox sets one for more than its own host.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from ringfence.edge.hosts import ROUTING
from ringfence.edge.parse import Answer, Fields, Malformed, Request, all_of, tokens

ACCESS: Final = b"x-ringfence-access"
TRAFFIC: Final = b"e2b-traffic-access-token"
COOKIE: Final = b"__Host-ringfence-access"
KEY_PREFIX: Final = b"rf_"
_OURS: Final = (b"ringfence", b"__host-ringfence", b"__secure-ringfence")

# Of one connection only (RFC 9110 7.6.1, and what older clients send). `upgrade` is written anew for a WebSocket.
_HOP: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
})  # fmt: skip
# What a client could use to speak for a proxy; a trusted proxy's word is read before this and written anew.
_SPOKEN_FOR: Final = frozenset({b"forwarded", b"via", b"x-real-ip", b"true-client-ip", b"x-client-ip", b"proxy"})
# Read or written by us: `host` and the length are set anew, `expect` is answered here, where to is for us alone.
_SET: Final = frozenset({b"host", b"content-length", b"expect", ACCESS, TRAFFIC, *itertools.chain(*ROUTING)})
# `Connection: x` has x dropped on the way. These it may not name: dropping them changes what the request is.
_NOT_DROPPABLE: Final = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"cookie", b"authorization", ACCESS, TRAFFIC,
})  # fmt: skip
# What a sandbox may not tell a browser: it would count for siblings, for the platform, or for where else this host is.
# Clear-Site-Data clears the cookies of the whole registrable domain; Alt-Svc moves the host to another port.
_NEVER_BACK: Final = frozenset({
    b"clear-site-data", b"alt-svc", b"strict-transport-security", b"public-key-pins", b"service-worker-allowed",
    b"x-ringfence-error",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What the sandbox is told of who asked: the client's address, the scheme and the host it used, and a prefix."""

    client: str
    scheme: str
    host: bytes
    upstream_host: bytes
    prefix: str = ""
    shared: bool = False  # the origin is not this port's alone


def _dropped_by_connection(fields: Fields) -> frozenset[bytes]:
    named = tokens(fields, b"connection")
    if named & _NOT_DROPPABLE:
        raise Malformed("Connection names a header that belongs to the request itself", code="bad_connection")
    return named


def _cookies(value: bytes) -> bytes:
    """A Cookie header without the platform's own."""
    kept = [part.strip(b" \t") for part in value.split(b";") if not part.strip(b" \t").lower().startswith(_OURS)]
    return b"; ".join(kept)


def _is_key(name: bytes, value: bytes) -> bool:
    """Whether a header carries a key of the platform, sent here by mistake: a sandbox must not learn it."""
    if name == b"x-api-key":
        return value.startswith(KEY_PREFIX)
    return name == b"authorization" and KEY_PREFIX in value


def inward(request: Request, target: bytes, forwarding: Forwarding, *, key: bytes | None) -> bytes:
    """The request's head as the sandbox gets it. `key` is a WebSocket handshake's. Raises Malformed."""
    gone = _HOP | _SPOKEN_FOR | _SET | _dropped_by_connection(request.fields)
    lines = [b"%b %b HTTP/1.1" % (request.method, target), b"Host: " + forwarding.upstream_host]
    for name, raw, value in request.fields:
        # An underscore: to CGI and WSGI, X_Forwarded_For and X-Forwarded-For are one name.
        if name in gone or name.startswith(b"x-forwarded-") or b"_" in name or _is_key(name, value):
            continue
        kept = _cookies(value) if name == b"cookie" else value
        if kept or not value:
            lines.append(raw + b": " + kept)
    if request.framing.kind == "length":
        lines.append(b"Content-Length: %d" % request.framing.length)
    elif request.framing.kind == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
    lines += _told(forwarding)
    lines += [b"Connection: Upgrade", b"Upgrade: websocket"] if key is not None else [b"Connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _told(forwarding: Forwarding) -> list[bytes]:
    said = [
        b"X-Forwarded-For: " + forwarding.client.encode(),
        b"X-Forwarded-Proto: " + forwarding.scheme.encode(),
        b"X-Forwarded-Host: " + forwarding.host,
    ]
    return [*said, b"X-Forwarded-Prefix: " + forwarding.prefix.encode()] if forwarding.prefix else said


def _set_cookie(value: bytes) -> bytes | None:
    """A Set-Cookie for this host alone; None for one that would be ours."""
    pair, *attributes = value.split(b";")
    if pair.strip(b" \t").lower().startswith(_OURS):
        return None
    kept = [part for part in attributes if part.partition(b"=")[0].strip(b" \t").lower() != b"domain"]
    return b";".join([pair, *kept])


def outward(answer: Answer, *, shared_origin: bool) -> list[bytes]:
    """The answer's header lines as the client gets them, without framing. On a shared origin nothing is remembered."""
    gone = _HOP | _NEVER_BACK | {b"content-length"} | tokens(answer.fields, b"connection")
    lines = []
    for name, raw, value in answer.fields:
        if name in gone:
            continue
        if name == b"set-cookie":
            kept = None if shared_origin else _set_cookie(value)
            if kept is None:
                continue
            value = kept  # noqa: PLW2901 - the header's value, as it crosses
        lines.append(raw + b": " + value)
    if shared_origin:
        lines.append(b"Content-Security-Policy: sandbox allow-scripts allow-forms allow-popups")
    return lines


def access_cookie(fields: Fields) -> bytes | None:
    """The value of our own cookie, when exactly one was sent."""
    pairs = [part.strip(b" \t") for value in all_of(fields, b"cookie") for part in value.split(b";")]
    found = [value for name, _, value in (pair.partition(b"=") for pair in pairs) if name == COOKIE]
    return found[0] if len(found) == 1 else None
