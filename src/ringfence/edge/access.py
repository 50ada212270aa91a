"""Who may pass: link tokens and the cookies made from them, signed with the published port's own secret.

A token names the link it came from and when it expires. It is good only while that link is, so revoking a link ends
every cookie made from it. Secrets are per published port: a token says nothing to any other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "rfl_"
_BODY: Final = struct.Struct(">B8sQ")  # kind, link, the second it expires
_LONGEST: Final = 128
LINK: Final = 1
SESSION: Final = 2


@dataclass(frozen=True, slots=True)
class Pass:
    """What a good signature says."""

    kind: int
    link: str
    expires: int


def _mac(secret: bytes, label: str, body: bytes) -> bytes:
    return hmac.digest(secret, b"ringfence edge 1\0" + label.encode() + b"\0" + body, hashlib.sha256)


def signed(secret: bytes, label: str, grant: Pass) -> str:
    """A pass as text, for the port of this label alone."""
    body = _BODY.pack(grant.kind, bytes.fromhex(grant.link), grant.expires)
    return PREFIX + base64.urlsafe_b64encode(body + _mac(secret, label, body)).decode().rstrip("=")


def opened(secret: bytes, label: str, text: bytes) -> Pass | None:
    """The pass, when its signature is good and it is written in the one way it can be; None otherwise."""
    if len(text) > _LONGEST or not text.startswith(PREFIX.encode()):
        return None
    rest = text[len(PREFIX) :]
    try:
        raw = base64.urlsafe_b64decode(rest + b"=" * (-len(rest) % 4))
    except (binascii.Error, ValueError):
        return None
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    if len(body) != _BODY.size or not hmac.compare_digest(mac, _mac(secret, label, body)):
        return None
    kind, link, expires = _BODY.unpack(body)
    found = Pass(kind, link.hex(), expires)
    return found if signed(secret, label, found).encode() == text else None
