"""JSON bodies straight to their struct: strict, unknown fields refused, bounded in size and depth."""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from litestar import Request

from ringfence.domain.errors import BadRequest

JSON_BYTES: Final = 1024 * 1024
RUN_BYTES: Final = 64 * 1024 * 1024


@functools.lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: Any) -> Any:
    """The body as `kind`. Raises BadRequest that names the field and what was wrong with it."""
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)[:300], code="bad_field", remediation="see /docs for the fields") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"not JSON: {error}"[:300], code="bad_json") from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply", code="bad_json") from None


class StrictRequest(Request[Any, Any, Any]):
    """Litestar would convert leniently ("1" to 1); this decodes the handler's `data` type itself."""

    async def json(self) -> Any:
        """See litestar.Request."""
        field = self.route_handler.parsed_data_field
        return decode(await self.body(), field.annotation if field is not None else Any)

    async def body(self) -> bytes:
        """See litestar.Request. An empty body is an empty JSON value, which no struct is."""
        return await super().body() or b" "
