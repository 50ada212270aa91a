"""Our own faults and refusals, as one tree.

RingfenceError                  anything we raise on purpose
├── Refused                     the caller asked for something we will not do (4xx)
│   ├── BadRequest              malformed or out of bounds; nothing was started
│   ├── Unauthenticated         no key, a wrong key, an expired key
│   ├── Forbidden               a valid key that lacks the right
│   ├── NotFound                no such thing, or not yours: the two are not told apart
│   ├── Conflict                the thing is in a state that forbids this
│   ├── TooLarge                a body, a path or a value past its bound
│   └── OverQuota               a tenant's own ceiling is reached
└── PlatformFault               we failed; the program's fate is unknown (5xx)
    ├── SandboxRefused          a hardening layer could not be put in force
    ├── SandboxLost             the sandbox or its agent vanished or broke protocol
    ├── NodeLost                the node does not answer
    └── Overloaded              no capacity within the deadline

A program's death is never here: it is an `Exit` (see process.py).
"""

from __future__ import annotations

from typing import ClassVar


class RingfenceError(Exception):
    """Base of every error raised on purpose: a stable code, the cause, and what to do about it."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal"

    def __init__(self, cause: str, *, code: str | None = None, remediation: str = "") -> None:
        """Keep the three parts a user sees; `code` defaults to the class's own."""
        super().__init__(cause)
        self.code = code or self.default_code
        self.cause = cause
        self.remediation = remediation


class Refused(RingfenceError):
    """The request is refused; nothing was started and nothing was lost."""

    status = 400
    default_code = "refused"


class BadRequest(Refused):
    """Malformed, unknown or out of bounds."""

    default_code = "bad_request"


class Unauthenticated(Refused):
    """No key, a wrong key, a revoked key or an expired key."""

    status = 401
    default_code = "unauthenticated"


class Forbidden(Refused):
    """A valid key without this right."""

    status = 403
    default_code = "forbidden"


class NotFound(Refused):
    """No such thing for this tenant."""

    status = 404
    default_code = "not_found"


class Conflict(Refused):
    """The thing exists, in a state that forbids the request."""

    status = 409
    default_code = "conflict"


class TooLarge(Refused):
    """Past a documented bound."""

    status = 413
    default_code = "too_large"


class OverQuota(Refused):
    """The tenant's own ceiling is reached."""

    status = 429
    default_code = "over_quota"


class PlatformFault(RingfenceError):
    """We failed; the program's fate is not known and no fate is invented."""

    status = 500
    default_code = "platform_fault"


class SandboxRefused(PlatformFault):
    """A layer could not be put in force, so the sandbox was not started."""

    status = 503
    default_code = "sandbox_refused"


class SandboxLost(PlatformFault):
    """The sandbox vanished, or its agent broke the protocol, before the program's fate was known."""

    status = 502
    default_code = "sandbox_lost"


class NodeLost(PlatformFault):
    """The node does not answer, or died while it held this work."""

    status = 503
    default_code = "node_lost"


class Overloaded(PlatformFault):
    """No capacity became free within the deadline."""

    status = 503
    default_code = "overloaded"
