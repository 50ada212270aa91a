"""The published description of the routes: Litestar's, with the wire module's exact shapes and our one error shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from ringfence import wire, wire_egress, wire_secrets

REF: Final = "#/components/schemas/{name}"
RAW_BODY: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
RAW_ROUTES: Final = frozenset({"WriteFile", "FeedProcess"})
OPEN_ROUTES: Final = frozenset({"Health"})
KEY_ROUTES: Final = frozenset({"CreateRun", "CreateSandbox"})


def _shapes() -> dict[str, Any]:
    kinds = [
        kind
        for kind in (vars(wire) | vars(wire_egress) | vars(wire_secrets)).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in {wire.Request, wire.Answer}
    ]
    return msgspec.json.schema_components(kinds, ref_template=REF)[1]


def _errors() -> dict[str, Any]:
    shape = {"application/json": {"schema": {"$ref": REF.format(name="ErrorAnswer")}}}
    return {
        "4XX": {"description": "Refused; nothing was started.", "content": shape},
        "5XX": {"description": "The platform failed; no fate is invented.", "content": shape},
    }


def _finish(operation: dict[str, Any]) -> None:
    name = operation["summary"]
    kept = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    operation["responses"] = kept | _errors()
    if name in RAW_ROUTES:
        operation["requestBody"] = RAW_BODY | {"required": True}
    if name in OPEN_ROUTES:
        operation["security"] = []
    if name in KEY_ROUTES:
        operation.setdefault("parameters", []).append(
            {
                "name": wire.IDEMPOTENCY_HEADER,
                "in": "header",
                "required": False,
                "schema": {"type": "string", "maxLength": 255},
                "description": "A repeat of this key with the same body gets the first answer.",
            }
        )


def describer(routes: list[Any], version: str) -> Callable[[], dict[str, Any]]:
    """What makes the routes' OpenAPI document. Litestar reads them in an app of their own: none is added to ours.

    That app is made here, because that imports; reading the document out is the slower part, and imports nothing.
    """
    config = OpenAPIConfig(
        title="ringfence",
        version=version,
        description="Run code from strangers in short-lived, isolated sandboxes.",
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"key": []}],
        render_plugins=[JsonRenderPlugin()],
        use_handler_docstrings=True,
    )
    app = Litestar(routes, openapi_config=config, logging_config=None)
    return lambda: _described(app)


def _described(app: Litestar) -> dict[str, Any]:
    schema: dict[str, Any] = app.openapi_schema.to_schema()
    for methods in schema["paths"].values():
        for operation in methods.values():
            _finish(operation)
    schema["components"]["schemas"] |= _shapes()
    return schema
