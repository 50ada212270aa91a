"""Whom a call is made as, and what a path means to them."""

from __future__ import annotations

import base64
import binascii
import posixpath
from dataclasses import dataclass
from typing import Final, Literal

from ringfence.api.compat.e2b.connect import ConnectError

User = Literal["user", "root"]
NAMES: Final[dict[int, str]] = {0: "root", 1000: "user"}
MOST_PATH: Final = 4096


@dataclass(frozen=True, slots=True)
class Account:
    """A user inside the sandbox."""

    name: User
    home: str

    def resolved(self, path: str) -> str:
        """An absolute path; `~` and relative ones start at home. Raises ConnectError."""
        if "\0" in path or len(path.encode("utf-8", "replace")) > MOST_PATH:
            raise ConnectError("invalid_argument", "the path has a NUL byte or is too long")
        first, _, rest = path.partition("/")
        if first == "~":
            path = rest.lstrip("/")
        elif first.startswith("~"):
            raise ConnectError("invalid_argument", "the home of another user cannot be meant by ~")
        return posixpath.normpath("/" + posixpath.join(self.home, path).lstrip("/"))


ACCOUNTS: Final = {"user": Account("user", "/home/user"), "root": Account("root", "/root")}


def account(name: str | None) -> Account:
    """The account of this name; `user` when none is given. Raises ConnectError."""
    found = ACCOUNTS.get(name or "user")
    if found is None:
        raise ConnectError("unauthenticated", f"invalid username: {name!r:.60}")
    return found


def from_basic(header: str | None, usual: str = "user") -> Account:
    """Who an Authorization header names; its password means nothing; `usual` without one. Raises ConnectError."""
    if header is None:
        return account(usual)
    scheme, _, word = header.partition(" ")
    if scheme.lower() != "basic":
        return account(usual)
    try:
        name = base64.b64decode(word.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise ConnectError("unauthenticated", "invalid username: not Basic") from None
    return account(name)
