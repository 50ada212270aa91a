"""The error table: every refusal and fault leaves as {"error": {code, cause, remediation}}, with its own status."""

from __future__ import annotations

import logging
import secrets
from typing import Any, ClassVar, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from ringfence import wire
from ringfence.domain.errors import Overloaded, OverQuota, PlatformFault, Refused, RingfenceError

RETRY_SECONDS: Final = 1
_log: Final = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode


class MisdirectedRequest(Refused):
    """The Host header names a server we are not: a page elsewhere may have rebound its name to this address."""

    status: ClassVar[int] = 421
    default_code: ClassVar[str] = "wrong_host"


class SlowBody(Refused):
    """The request's body did not arrive in time."""

    status: ClassVar[int] = 408
    default_code: ClassVar[str] = "body_timeout"


class ClientGone(Refused):
    """The client disconnected; nobody reads this."""

    status: ClassVar[int] = 499
    default_code: ClassVar[str] = "client_gone"


_BY_STATUS: Final[dict[int, tuple[str, str]]] = {
    400: ("bad_request", "see /docs for what this route takes"),
    401: ("unauthenticated", "send a key as `Authorization: Bearer rf_...`"),
    403: ("forbidden", ""),
    404: ("not_found", "see /docs for the routes there are"),
    405: ("method_not_allowed", "see /docs for the methods of this route"),
    413: ("too_large", "send less"),
    415: ("unsupported_media_type", "send application/json"),
}


def error_body(error: RingfenceError) -> bytes:
    """An error as the body of an answer."""
    return _encode(
        wire.ErrorAnswer(error=wire.ErrorBody(code=error.code, cause=error.cause, remediation=error.remediation))
    )


def status_of(error: RingfenceError) -> int:
    """The status an error answers with."""
    return type(error).status


def headers_of(error: RingfenceError) -> dict[str, str]:
    """What a client needs beside the body: when to try again, how to authenticate."""
    headers = {"cache-control": "no-store"}
    if isinstance(error, OverQuota | Overloaded):
        headers["retry-after"] = str(RETRY_SECONDS)
    if status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def from_litestar(error: HTTPException) -> RingfenceError:
    """The framework's own refusals as ours; its words may quote input, so they are bounded."""
    code, remediation = _BY_STATUS.get(error.status_code, ("refused" if error.status_code < 500 else "internal", ""))
    cause = _cause(error)[:500]
    made = Refused(cause, code=code, remediation=remediation) if error.status_code < 500 else PlatformFault(cause)
    return _with_status(made, error.status_code)


def _cause(error: HTTPException) -> str:
    extra: Any = error.extra
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        first = extra[0]
        return f"{first.get('key', 'parameter')}: {first.get('message', error.detail)}"
    if error.status_code >= 500:
        return "an internal error"
    return str(error.detail).partition(" for http")[0]


def _with_status(error: RingfenceError, status: int) -> RingfenceError:
    kind = type(error)
    if kind.status == status:
        return error
    made = type(kind.__name__, (kind,), {"status": status})
    again: RingfenceError = made(error.cause, code=error.code, remediation=error.remediation)
    return again


def internal(error: Exception) -> RingfenceError:
    """A bug of ours: logged under a reference, told as that reference alone."""
    reference = secrets.token_hex(6)
    _log.error("internal error %s", reference, exc_info=error)
    return PlatformFault(f"an internal error; reference {reference}", code="internal", remediation="report it")


def ours(error: Exception) -> RingfenceError:
    """Any exception as one of our tree."""
    if isinstance(error, RingfenceError):
        return error
    if isinstance(error, HTTPException):
        return from_litestar(error)
    return internal(error)


def answer(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of every route."""
    known = ours(error)
    return Response(
        error_body(known),
        status_code=status_of(known),
        media_type="application/json",
        headers=headers_of(known),
    )
