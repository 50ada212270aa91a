"""What seals values before they are stored: one key in a file of its own, beside the store and not in it.

A copy of the database, a backup or a page that was freed shows nothing. Whoever reads both files reads the values.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ringfence.domain.errors import PlatformFault

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12  # drawn at random: good for 2**32 values under one key (NIST SP 800-38D, 8.3)


class Vault:
    """Seals and opens."""

    def __init__(self, path: Path) -> None:
        """Read the key at `path`; made, for its owner alone, where there is none. Raises PlatformFault."""
        self._cipher = AESGCM(_key(path))

    def seal(self, data: bytes, about: str) -> bytes:
        """Bytes that only open() of the same vault, asked about the same thing, gives back."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """What was sealed. Raises PlatformFault for what another key sealed, or for something else."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about.encode())
        except (InvalidTag, ValueError):
            raise PlatformFault(
                f"what was kept for {about.replace(chr(0), ' ')!r:.120} cannot be opened",
                code="vault_mismatch",
                remediation="put back the key file that belongs to this store, or set the secret anew",
            ) from None


def _key(path: Path) -> bytes:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlatformFault(f"{path}: {error.strerror}", code="vault_unusable") from None
    with os.fdopen(file, "r+b") as opened:
        key = opened.read(KEY_BYTES + 1)
        if not key:
            key = secrets.token_bytes(KEY_BYTES)
            opened.write(key)
            opened.flush()
            os.fsync(opened.fileno())
    if len(key) != KEY_BYTES:
        raise PlatformFault(
            f"{path} is not a key of ours", code="vault_unusable", remediation="restore it from a backup"
        )
    return key
