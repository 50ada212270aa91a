"""What the edge itself says: refusals and faults as JSON, or as a small page to somebody with a browser."""

from __future__ import annotations

import html
from typing import Final

import msgspec

from ringfence import wire
from ringfence.domain.errors import Overloaded, OverQuota, RingfenceError
from ringfence.edge.crossing import COOKIE
from ringfence.edge.gateway import GatewayError
from ringfence.edge.parse import END, Request

_encode: Final = msgspec.json.Encoder().encode
_REASONS: Final = {
    303: "See Other", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict", 413: "Too Large",
    417: "Expectation Failed", 421: "Misdirected Request", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_SAFE: Final = (
    "Cache-Control: no-store\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
)
_PAGE: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><style>body{{font:16px/1.5 system-ui,'
    "sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem;color:#222;background:#fff}}"
    "@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}}}</style></head>"
    "<body><main><h1>{title}</h1><p>{cause}.</p><p>{remediation}</p><p><small>{status} {code}</small></p></main>"
    "</body></html>"
)


def _wants_page(request: Request | None) -> bool:
    return request is not None and request.method == b"GET" and b"text/html" in (request.only(b"accept") or b"")


def _told(error: RingfenceError) -> bytes:
    if isinstance(error, GatewayError):
        return _encode(error.told())
    return _encode(
        wire.ErrorAnswer(error=wire.ErrorBody(code=error.code, cause=error.cause, remediation=error.remediation))
    )


def refusal(error: RingfenceError, request: Request | None, *, keeps: bool) -> bytes:
    """An error as a whole answer; `request` is None when not even its head was understood."""
    status, code = type(error).status, error.code
    reason = _REASONS.get(status, "Error")
    if _wants_page(request):
        shown = {"title": reason, "cause": error.cause, "remediation": error.remediation, "code": code}
        body = _PAGE.format(status=status, **{name: html.escape(text) for name, text in shown.items()}).encode()
        kind = "text/html; charset=utf-8"
    else:
        body, kind = _told(error), "application/json"
    head = (
        f"HTTP/1.1 {status} {reason}\r\n{_SAFE}X-Ringfence-Error: {code}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: {'keep-alive' if keeps else 'close'}"
    )
    if isinstance(error, OverQuota | Overloaded):
        head += "\r\nRetry-After: 1"
    return head.encode() + END + (b"" if request is not None and request.method == b"HEAD" else body)


def entered(target: bytes, value: str, seconds: int, *, keeps: bool) -> bytes:
    """A link was good: its bearer gets a cookie for this host alone, and the address without the link's token."""
    cookie = f"{COOKIE.decode()}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={max(0, seconds)}"
    head = (
        f"HTTP/1.1 303 See Other\r\n{_SAFE}Set-Cookie: {cookie}\r\nLocation: {target.decode()}\r\n"
        f"Content-Length: 0\r\nConnection: {'keep-alive' if keeps else 'close'}"
    )
    return head.encode() + END
