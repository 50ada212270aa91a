"""What image is meant: a reference read by a strict grammar, before anything is asked of anyone."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from ringfence.domain.errors import BadRequest

TEXT_BYTES: Final = 512
DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
REGISTRY: Final = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?")
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
PATH: Final = re.compile(rf"{_PART}(?:/{_PART})*")
TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
# RFC 6052, RFC 3056, RFC 4380: each holds an IPv4 address, and leads to it where a gateway translates.
_HOLDS_IPV4: Final = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32"))


@dataclass(frozen=True, slots=True)
class Reference:
    """One image: where, which repository, and which of its versions. A digest decides over a tag."""

    text: str
    registry: str
    path: str
    tag: str
    digest: str

    def at(self, digest: str = "", mirror: str = "") -> str:
        """The same repository for skopeo, at another digest, perhaps as a mirror keeps it."""
        place = f"{mirror or self.registry}/{self.path}"
        digest = digest or self.digest
        return f"docker://{place}@{digest}" if digest else f"docker://{place}:{self.tag}"


def bad(text: str, why: str) -> BadRequest:
    """Return the refusal of a reference; the text is shown only as far as it can hold no password."""
    shown = text.rpartition("@")[2] if "@" in text else text
    return BadRequest(
        f"image reference {shown!r:.120}: {why}",
        code="bad_image_reference",
        remediation="write it as registry.example/name:tag or registry.example/name@sha256:...",
    )


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and not a way back into this machine or its networks."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _HOLDS_IPV4):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _is_address(host: str) -> bool:
    """Whether a host is an address in one of the spellings that resolvers take: 127.1, 0x7f000001, 2130706433."""
    return all(re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", label) for label in host.split("."))


def _split_registry(text: str, body: str) -> tuple[str, str]:
    """Tell a registry from the first part of a path the way every client of registries does."""
    first, slash, rest = body.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = DEFAULT_REGISTRY, body
    found = REGISTRY.fullmatch(first)
    if not found or (found["port"] and not 0 < int(found["port"]) < 65536):
        raise bad(text, "its registry is no host name")
    official = first.lower() == DEFAULT_REGISTRY and "/" not in rest
    return first.lower(), f"library/{rest}" if official else rest


def parse(text: str, allowed: frozenset[str] = frozenset()) -> Reference:
    """Read a reference. Raises BadRequest for credentials, options, private addresses and anything unusual.

    `allowed` names registries, as host or host:port, that the operator lets be private.
    """
    if not text or len(text) > TEXT_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise bad("", "it is empty, too long or not plain text")
    if text.startswith("-"):
        raise bad("", "it looks like an option")
    if "://" in text:
        raise bad(text, "it is no URL; leave out the scheme")
    body, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        credentials = "/" in digest or ":" in body.partition("/")[0]
        why = "it holds credentials; give them by --auth-file or --username" if credentials else "its digest is none"
        raise bad(text, why)
    if text.startswith("["):
        raise BadRequest("an IPv6 address cannot be a registry here", code="bad_image_reference")
    registry, path = _split_registry(text, body)
    path, colon, tag = path.partition(":")
    if not PATH.fullmatch(path) or (colon and not TAG.fullmatch(tag)):
        raise bad(text, "its name or tag has characters that none has")
    check_registry(registry, allowed)
    return Reference(text, registry, path, tag or DEFAULT_TAG, digest)


def check_registry(registry: str, allowed: frozenset[str]) -> None:
    """Raise BadRequest for a registry that says by its name alone that it is private, unless it is allowed."""
    host = registry.partition(":")[0]
    if registry in allowed or host in allowed:
        return
    if host == "localhost" or host.endswith(".localhost") or (_is_address(host) and not is_public(host)):
        raise private(registry)


def beyond(address: str) -> BadRequest:
    """Return the refusal to let a tenant have an address spoken to."""
    return BadRequest(
        f"{address} is not spoken to for an image: it is private, this server's own, or not at port 443",
        code="image_address_refused",
        remediation="have the operator name the registry in e2b.builds.registries",
    )


def private(address: str) -> BadRequest:
    """Return the refusal to speak to an address inside this machine or its networks."""
    return BadRequest(
        f"{address} is a private address; images come from public registries",
        code="image_address_refused",
        remediation="an operator may allow a registry of one's own: --allow HOST:PORT",
    )
