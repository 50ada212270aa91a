"""A tenant's own certificate authority, and the certificates it gives to the hosts of secrets, as they are asked for.

Only sandboxes of that tenant, and only those with secrets, are told to trust it. Its key is known to the server, which
keeps it sealed, and to the tenant's opener.
"""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringfence.domain.secrets import Authority

AUTHORITY_DAYS: Final = 3650
HOST_DAYS: Final = 30
AGAIN_SECONDS: Final = 86_400.0  # a certificate is made anew after this, long before it ends
MOST_HOSTS: Final = 256  # whose certificates are kept at once
_CURVE: Final = ec.SECP256R1()  # what every client of the last fifteen years can verify
_PLAIN: Final = serialization.NoEncryption()
_PKCS8: Final = serialization.PrivateFormat.PKCS8


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _built(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # clocks differ
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, _PKCS8, _PLAIN)


def make_authority() -> Authority:
    """A new one. Its name says nothing of its tenant: strangers' code reads it."""
    key, name = ec.generate_private_key(_CURVE), _named("ringfence secrets")
    certificate = (
        _built(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key).decode())


class Issuer:
    """Gives hosts their certificates."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        """`folder` is where a certificate lies for a moment: the TLS library takes them from files alone.

        Raises ValueError or TypeError for an authority that is none.
        """
        key = serialization.load_pem_private_key(authority.key.encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("an authority with a key of another kind")
        self.authority = authority
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(authority.certificate.encode())
        self._host_key = ec.generate_private_key(_CURVE)
        self._folder = folder
        self._made: OrderedDict[str, tuple[float, ssl.SSLContext]] = OrderedDict()

    def context(self, host: str) -> ssl.SSLContext:
        """What a server for this host needs: its certificate, HTTP/1.1 and nothing older than TLS 1.2."""
        known = self._made.get(host)
        if known is not None and time.monotonic() - known[0] < AGAIN_SECONDS:
            self._made.move_to_end(host)
            return known[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        place = self._folder / "host.pem"
        try:
            place.write_bytes(_pem(self._host_key) + self._signed(host))
            context.load_cert_chain(place)
        finally:
            place.unlink(missing_ok=True)
        self._made[host] = time.monotonic(), context
        while len(self._made) > MOST_HOSTS:
            self._made.popitem(last=False)
        return context

    def _signed(self, host: str) -> bytes:
        issuer = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = (
            _built(_named(host), self._certificate.subject, self._host_key.public_key(), HOST_DAYS)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def onward_context(roots: str) -> ssl.SSLContext:
    """How hosts are known: by the authorities in a file, or by the system's. Raises OSError for a file that is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks the host's name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if roots:
        context.load_verify_locations(roots)
    else:
        context.set_default_verify_paths()
        context.load_default_certs()
    if not context.cert_store_stats()["x509_ca"]:
        raise FileNotFoundError("no certificate authority is known on this host: install Debian's ca-certificates")
    return context
