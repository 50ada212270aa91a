"""A certificate authority for the development domain: made once, kept beside the state, good for that domain alone.

Who trusts it trusts this machine for names below the domain and for this machine's own addresses. A constraint in its
certificate says so to every client, so a stolen key opens nothing else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.edge.tls import Pair

# Endings that nobody can own (RFC 2606, 6761, 6762, 8375; .internal: ICANN 2024): no CA here vouches for a real site.
ENDINGS: Final = ("test", "localhost", "example", "internal", "local", "home.arpa")
LOOPBACK: Final = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
CA_DAYS: Final = 3650
SERVER_DAYS: Final = 90
RENEW_DAYS: Final = 30  # left, when a server is started


def check_ending(domain: str) -> None:
    """Refuse a name that could be somebody's. Raises BadRequest."""
    if not any(domain == ending or domain.endswith("." + ending) for ending in ENDINGS):
        raise BadRequest(
            f"{domain} could be somebody's name, and a certificate authority for it is not made here",
            code="bad_dev_domain",
            remediation=f"choose one below {', '.join(ENDINGS)}; for a real one give a certificate in [edge]",
        )


class Authority:
    """The files of one domain's authority, in a directory of their own."""

    def __init__(self, place: Path, domain: str) -> None:
        self.place = place
        self.domain = domain
        self.certificate = place / "ca.crt"
        self.bundle = place / "bundle.crt"  # this machine's authorities and ours: for who can be told of one file only
        self.server = place / "server.crt"
        self.server_key = place / "server.key"
        self._key = place / "ca.key"

    @property
    def names(self) -> list[str]:
        """What the server's certificate is for."""
        return [self.domain, f"api.{self.domain}", f"*.{self.domain}", "localhost"]

    def ensure(self) -> None:
        """Make what is missing, and a new server's certificate when the old one ends soon. Raises BadRequest."""
        check_ending(self.domain)
        try:
            self.place.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not self._key.exists() or not self.certificate.exists():
                self._make()
            if not self._good():
                pair = self.issue(self.names)
                _write(self.server_key, pair.key, 0o600)
                _write(self.server, pair.certificate, 0o644)
            _write(self.bundle, _system() + self.certificate.read_bytes(), 0o644)
        except OSError as error:
            raise PlatformFault(
                f"the authority in {self.place} cannot be made: {error.strerror or error}", code="no_authority"
            ) from None

    def issue(self, names: list[str]) -> Pair:
        """A certificate for names and this machine's own addresses, signed by the authority. Nothing is written."""
        signer, key = self._load(), ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.DNSName(name) for name in names]
        addresses = [x509.IPAddress(address) for address in LOOPBACK]
        made = (
            _named(f"ringfence {names[0]}", key, SERVER_DAYS)
            .issuer_name(signer[0].subject)
            .add_extension(x509.SubjectAlternativeName([*alternatives, *addresses]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer[1].public_key()), critical=False)
            .sign(signer[1], hashes.SHA256())
        )
        return Pair(made.public_bytes(serialization.Encoding.PEM), _pem(key))

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"ringfence development CA for {self.domain}")
        permitted: list[x509.GeneralName] = [x509.DNSName(self.domain), x509.DNSName("localhost")]
        permitted += [x509.IPAddress(ipaddress.ip_network(address)) for address in LOOPBACK]
        made = (
            _named(f"ringfence development CA for {self.domain}", key, CA_DAYS)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.NameConstraints(permitted, None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self._key, _pem(key), 0o600)
        _write(self.certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = serialization.load_pem_private_key(self._key.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise self._spoilt(str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise self._spoilt("the key is another's")
        return certificate, key

    def _spoilt(self, why: str) -> PlatformFault:
        return PlatformFault(
            f"the authority in {self.place} cannot be used: {why}",
            code="no_authority",
            remediation=f"remove {self.place}; a new one is made, and has to be trusted anew",
        )

    def _good(self) -> bool:
        """Whether the server's certificate is ours, is for the right names, and lasts."""
        signer, _ = self._load()
        with contextlib.suppress(OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
            found = x509.load_pem_x509_certificate(self.server.read_bytes())
            key = serialization.load_pem_private_key(self.server_key.read_bytes(), None)
            found.verify_directly_issued_by(signer)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            left = found.not_valid_after_utc - dt.datetime.now(dt.UTC)
            fits = set(names.get_values_for_type(x509.DNSName)) == set(self.names)
            return fits and left.days >= RENEW_DAYS and key.public_key() == found.public_key()
        return False


_SIGNS: Final = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _named(common: str, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))  # clocks of clients differ
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _system() -> bytes:
    """The authorities this machine trusts, as far as they lie in one file."""
    file = ssl.get_default_verify_paths().openssl_cafile
    for place in (file, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"):
        with contextlib.suppress(OSError):
            return Path(place).read_bytes().rstrip() + b"\n"
    return b""


def _write(file: Path, data: bytes, mode: int) -> None:
    """All of it or nothing, never readable by more than it should be, not even for a moment."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
