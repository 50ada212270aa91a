"""What E2B's clients are told of a sandbox that publishes every port: the words they look for, in the shape they read.

Facts of that protocol: 502 with `sandboxId`, `message` and `code`; a client looks for "was not found" and "port is not
open" in the message, and takes 403 for a traffic access token that is missing or wrong.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ringfence.domain.errors import RingfenceError

_DEAD: Final = frozenset({
    "sandbox_ended", "sandbox_lost", "sandbox_paused", "not_found", "node_lost", "cut",
})  # fmt: skip
CLOSED: Final = "port_not_listening"


class GatewayError(RingfenceError):
    """An answer in E2B's shape."""

    status: ClassVar[int] = 502

    def __init__(self, cause: str, sandbox: str, port: int | None = None, *, remediation: str = "") -> None:
        super().__init__(cause, remediation=remediation)
        self.sandbox = sandbox
        self.port = port

    def told(self) -> dict[str, Any]:
        """The body."""
        shown = {"sandboxId": self.sandbox, "message": self.cause, "code": self.status}
        return shown if self.port is None else {**shown, "port": self.port}


class SandboxNotFound(GatewayError):
    """The sandbox ended, or is paused."""

    default_code: ClassVar[str] = "sandbox_not_found"


class PortNotOpen(GatewayError):
    """The sandbox lives and nothing listens."""

    default_code: ClassVar[str] = "port_not_open"


class TokenRefused(GatewayError):
    """The sandbox's ports want a token, and it was not shown."""

    status: ClassVar[int] = 403
    default_code: ClassVar[str] = "traffic_token_refused"


def not_found(sandbox: str) -> SandboxNotFound:
    """The answer for a sandbox that is no more."""
    return SandboxNotFound("The sandbox was not found", sandbox, remediation="create a new sandbox")


def told(error: RingfenceError, sandbox: str, port: int) -> RingfenceError:
    """An error on the way to a port, in those words where there are any for it."""
    if error.code in _DEAD:
        return not_found(sandbox)
    if error.code == CLOSED:
        cause = "The sandbox is running but port is not open"
        return PortNotOpen(cause, sandbox, port, remediation=error.remediation)
    return error
