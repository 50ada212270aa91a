"""What every JSON shape of wire.py is built on: both kinds of struct, and the pieces that many share."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ringfence.domain.process import How

Size = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything a client sends."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything the server sends."""


# --- shared pieces ---------------------------------------------------------------------------------------------------


class Data(Request, frozen=True):
    """Bytes that need not be text."""

    base64: bytes


class PtySize(Request, frozen=True):
    """Columns and rows of a terminal."""

    cols: Size
    rows: Size


class Exit(Answer, frozen=True):
    """A program's fate."""

    how: How
    code: int | None = None
    signal: int | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """True only for a program that ended by itself with code 0."""
        return self.how is How.EXITED and self.code == 0


class ErrorBody(Answer, frozen=True):
    """A refusal or a fault of ours: a stable code, the cause, and what to do about it."""

    code: str
    cause: str
    remediation: str = ""


class ErrorAnswer(Answer, frozen=True):
    """The body of every 4xx and 5xx."""

    error: ErrorBody
