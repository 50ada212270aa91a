"""TLS as the edge speaks it: one context for all connections, whose certificate can be exchanged while it serves."""

from __future__ import annotations

import os
import ssl
import sys
from typing import Final

import msgspec

from ringfence.domain.errors import BadRequest, RingfenceError

LONGEST_FILE: Final = 64 * 1024  # bytes of a chain, or of a key; both fit into one datagram of a socket pair
# Forward secrecy and authenticated encryption alone; TLS 1.3 has nothing else.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Pair(msgspec.Struct, frozen=True):
    """A certificate with its chain, and its key, both in PEM."""

    certificate: bytes
    key: bytes


class Named(ssl.SSLObject):
    """A connection's TLS, with the name its client asked for; None when it named nobody."""

    asked: str | None = None


class BadCertificate(BadRequest):
    """A certificate or key that cannot be used."""

    default_code = "bad_certificate"


def read_pair(certificate: str, key: str) -> Pair:
    """Both files, which belong together. Raises BadCertificate."""
    pair = Pair(_read(certificate), _read(key))
    try:
        _load(_context(), pair)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise BadCertificate(
            f"{certificate} and {key} are no certificate with its key: {error}",
            remediation="both are PEM, the key without a passphrase, and the chain stands behind the certificate",
        ) from None
    return pair


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise BadCertificate(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > LONGEST_FILE:
        raise BadCertificate(f"{path} is larger than {LONGEST_FILE} bytes")
    return data


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = Named
    return context


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    """OpenSSL reads files; these are nameless and never touch a disk. No passphrase is asked for at a terminal."""
    files = []
    try:
        for data in (pair.certificate, pair.key):
            file = os.memfd_create("ringfence-tls", os.MFD_CLOEXEC)
            files.append(file)
            os.write(file, data)
        certificate, key = (f"/proc/self/fd/{file}" for file in files)
        context.load_cert_chain(certificate, key, password=lambda: b"")
    finally:
        for file in files:
            os.close(file)


class Secure:
    """The edge's TLS. The name a client asks for is only remembered: whether it is ours, its request's Host decides."""

    def __init__(self, pair: Pair) -> None:
        self.context = _context()
        self.context.sni_callback = _asked
        _load(self.context, pair)

    def replace(self, pair: Pair) -> None:
        """Show another certificate from the next handshake on; open connections keep theirs. Raises RingfenceError."""
        try:
            _load(_context(), pair)  # a half-loaded one must not meet a client
            _load(self.context, pair)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise RingfenceError(f"the new certificate cannot be used: {error}", code="bad_certificate") from None


def _asked(tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(tls, Named):
        tls.asked = name


def quiet(unraisable: sys.UnraisableHookArgs) -> None:
    """A sys.unraisablehook that says nothing of strangers who ask for names past ASCII: a line for each fills a disk.

    Python's ssl decodes the name before anybody could catch the error.
    """
    if not (isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes)):
        sys.__unraisablehook__(unraisable)
