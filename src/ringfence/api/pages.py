"""Two plain pages for people who open the address in a browser: a greeting, and the routes. No script, no CDN."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Response, get

from ringfence.api.auth import OPEN
from ringfence.api.context import AnyRequest

SAFE: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff}code{font-family:ui-monospace,monospace}dt{margin-top:1rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8cf}}"
)


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>"
    )


HOME: Final = _page(
    "ringfence",
    "<p>This server runs code from strangers in short-lived, isolated sandboxes.</p>"
    "<p>Its routes are at <a href='/docs'>/docs</a>, machine-readable at "
    "<a href='/openapi.json'>/openapi.json</a>. Every route under <code>/v1</code> needs a key: "
    "<code>ringfence keys create --tenant NAME</code> on the server makes one.</p>",
)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    summary = html.escape(operation.get("description") or operation.get("summary") or "")
    return f"<dt><code>{method.upper()} {html.escape(path)}</code></dt><dd>{summary}</dd>"


def render_docs(schema: dict[str, Any], sockets: list[tuple[str, str]]) -> str:
    """Every route with its sentence."""
    rows = [
        _operation(path, method, operation)
        for path, methods in sorted(schema.get("paths", {}).items())
        for method, operation in methods.items()
        if isinstance(operation, dict)
    ]
    rows += [_operation(path, "websocket", {"description": text}) for path, text in sockets]
    intro = "<p>Shapes of requests and answers are in <a href='/openapi.json'>/openapi.json</a>.</p>"
    return _page("ringfence: routes", f"{intro}<dl>{''.join(rows)}</dl>")


@get("/", opt=OPEN, include_in_schema=False)
async def home() -> Response[str]:
    """What this is."""
    return Response(HOME, media_type="text/html", headers=SAFE)


class Described:
    """The routes for machines and for people, made when somebody first asks: it takes a tenth of a second."""

    def __init__(self, schema: Callable[[], dict[str, Any]], sockets: list[tuple[str, str]]) -> None:
        """`schema` is called once, in a thread."""
        self._schema = schema
        self._sockets = sockets
        self._making: asyncio.Future[tuple[bytes, str]] | None = None

    def _make(self) -> tuple[bytes, str]:
        schema = self._schema()
        return msgspec.json.encode(schema), render_docs(schema, self._sockets)

    async def made(self) -> tuple[bytes, str]:
        """The document and the page. Whoever asks meanwhile waits for the same; whoever leaves stops nothing."""
        if self._making is None:
            self._making = asyncio.get_running_loop().run_in_executor(None, self._make)
        return await asyncio.shield(self._making)


@get("/docs", opt=OPEN, include_in_schema=False)
async def docs(request: AnyRequest) -> Response[str]:
    """Every route, on one page."""
    _, page = await request.app.state.described.made()
    return Response(page, media_type="text/html", headers=SAFE)


@get("/openapi.json", opt=OPEN, include_in_schema=False)
async def openapi(request: AnyRequest) -> Response[bytes]:
    """Every route, for machines."""
    document, _ = await request.app.state.described.made()
    return Response(document, media_type="application/json", headers=SAFE)


ROUTES: Final[list[Any]] = [home, docs, openapi]
