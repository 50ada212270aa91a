"""What E2B's clients send to the control plane, and how it is read.

Their clients change every month. A field we do not know is let pass while it says nothing (null, false, empty), and
refused when it asks for something: what cannot be honoured is never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec

from ringfence.domain.errors import BadRequest

MOST_BODY: Final = 1024 * 1024
Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of what is sent to us."""


T = TypeVar("T", bound=Shape)


class AutoResume(Shape, frozen=True):
    """Whether a request to a paused sandbox wakes it."""

    enabled: bool = False


class Network(Shape, frozen=True):
    """What a sandbox may reach, and who may reach it. `allow_internet_access` is there in an update alone."""

    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    allow_public_traffic: bool | None = None
    allow_internet_access: bool | None = msgspec.field(default=None, name="allow_internet_access")


class NewSandbox(Shape, frozen=True):
    """A sandbox to be made."""

    template: str = msgspec.field(default="base", name="templateID")
    timeout: Seconds | None = None
    auto_pause: bool | None = None
    auto_pause_memory: bool | None = None
    auto_resume: AutoResume | None = None
    secure: bool | None = None
    allow_internet_access: bool | None = msgspec.field(default=None, name="allow_internet_access")
    network: Network | None = None
    metadata: dict[str, str] | None = None
    env: dict[str, str] | None = msgspec.field(default=None, name="envVars")


class Connect(Shape, frozen=True):
    """A sandbox to be found again, and to live at least so long from now."""

    timeout: Seconds | None = None
    memory: bool | None = None
    auto_pause: bool | None = None


class Timeout(Shape, frozen=True):
    """When it ends, from now."""

    timeout: Seconds


class Refresh(Shape, frozen=True):
    """How much longer it lives, at least."""

    duration: Seconds | None = None


class Pause(Shape, frozen=True):
    """How to pause."""

    memory: bool | None = None
    require_healthy_guest: bool | None = None


def _names(kind: type[Shape]) -> frozenset[str]:
    return frozenset(kind.__struct_encode_fields__)


def _check(table: dict[str, Any], kind: type[Shape], where: str) -> None:
    for name, value in table.items():
        if name not in _names(kind) and value:
            raise BadRequest(f"{where}{name!s:.60} is not supported by this server", code="unsupported_option")


_NESTED: Final[dict[str, type[Shape]]] = {"network": Network, "autoResume": AutoResume}


def read(body: bytes, kind: type[T]) -> T:
    """A body as `kind`; an empty one says nothing. Raises BadRequest."""
    try:
        table = msgspec.json.decode(body, type=dict[str, Any] | None) if body.strip() else {}
        table = table or {}
        _check(table, kind, "")
        for name, inner in _NESTED.items():
            if name in _names(kind) and isinstance(table.get(name), dict):
                _check(table[name], inner, f"{name}.")
        return msgspec.convert(table, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not what this route takes: {error}"[:300], code="bad_body") from None
