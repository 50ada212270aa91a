"""What goes wrong on the way to a server, and the server's own errors as the classes of domain/errors.py.

RingfenceError                  (domain)
└── PlatformFault
    ├── Unreachable             no connection, or it broke before the answer was whole
    └── DeadlineExceeded        the caller's own deadline for this call passed

ProgramFailed                   not of that tree: raised only by `.check()`, when the caller asked for it
"""

from __future__ import annotations

from typing import Any, Final

import httpx
import msgspec

from ringfence.domain.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    OverQuota,
    PlatformFault,
    Refused,
    RingfenceError,
    TooLarge,
    Unauthenticated,
)
from ringfence.wire import Exit


class Unreachable(PlatformFault):
    """The server could not be reached, or the connection broke; whether it acted is not known."""

    status = 503
    default_code = "unreachable"


class DeadlineExceeded(PlatformFault):
    """The deadline given for this call passed before the answer arrived."""

    status = 504
    default_code = "deadline_exceeded"


class ProgramFailed(Exception):
    """A program did not exit with code 0, and `.check()` was called to be told so."""

    def __init__(self, exit_: Exit, stderr: str) -> None:
        """Keep the whole fate; the message carries the last line the program wrote."""
        self.exit = exit_
        self.stderr = stderr
        lines = stderr.strip().splitlines()
        super().__init__(f"{described(exit_)}{': ' + lines[-1] if lines else ''}")


def described(exit_: Exit) -> str:
    """One short line for a fate, as in `exited with code 3` or `timed out: wall limit of 2 s`."""
    if exit_.how == "exited":
        return f"exited with code {exit_.code}"
    words = f"killed by signal {exit_.signal}" if exit_.how == "signalled" else exit_.how.replace("_", " ")
    return f"{words}: {exit_.reason}" if exit_.reason else words


BY_STATUS: Final[dict[int, type[RingfenceError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: OverQuota,
}


def _family(root: type[RingfenceError]) -> dict[str, type[RingfenceError]]:
    """Those of the domain. A server in the same process has more, which are not for clients to raise."""
    found = {root.default_code: root}
    for child in root.__subclasses__():
        if child.__module__ == RingfenceError.__module__:
            found.update(_family(child))
    return found


BY_CODE: Final = _family(RingfenceError)


def _class_for(status: int, code: str) -> type[RingfenceError]:
    if code in BY_CODE:
        return BY_CODE[code]
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status in {400, 422}:
        return BadRequest
    return Refused if 400 <= status < 500 else PlatformFault


def error_from(status: int, error: Any) -> RingfenceError:
    """The error a server described as {code, cause, remediation}; anything else becomes a plain fault."""
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        hint = "check that the URL is a ringfence server's and not another service's"
        return _class_for(status, "")(f"the server answered {status} without saying why", remediation=hint)
    code, remediation = error["code"], str(error.get("remediation") or "")
    return _class_for(status, code)(str(error.get("cause", code)), code=code, remediation=remediation)


def error_from_body(status: int, body: bytes) -> RingfenceError:
    """As `error_from`, for the bytes of a refused answer."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = None
    return error_from(status, answer.get("error") if isinstance(answer, dict) else None)


# Raised before a byte of the request was sent: a repeat cannot act twice.
NOTHING_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# The connection broke midway: a repeat is safe only for a request that is safe to repeat.
BROKEN: Final = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


def may_repeat(error: Exception, *, repeatable: bool) -> bool:
    """Whether the request that met this error may be sent again without doing its work twice."""
    return isinstance(error, NOTHING_SENT) or (repeatable and isinstance(error, BROKEN))


def lost(error: Exception, url: str) -> RingfenceError:
    """A broken connection or a passed deadline, with what to do about it."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        hint = "raise deadline=, or look at `ringfence status` for what the server is busy with"
        return DeadlineExceeded(f"no answer from {url} within the deadline", remediation=hint)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return BadRequest(f"{url} is not a usable URL: {error}", remediation="set RINGFENCE_URL to http://host:port")
    hint = "start one with `ringfence serve`, or set RINGFENCE_URL to where it is"
    what = "cannot reach" if isinstance(error, (*NOTHING_SENT, OSError)) else "lost the connection to"
    return Unreachable(f"{what} the server at {url}: {error or type(error).__name__}", remediation=hint)
