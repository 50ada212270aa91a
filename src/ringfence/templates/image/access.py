"""How registries are reached, and how much is taken from them: decided by the operator, never by an image."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ringfence.domain.egress import Floor
from ringfence.domain.errors import BadRequest
from ringfence.templates.image.reference import PATH, REGISTRY

MIB: Final = 1024 * 1024
FILE_BYTES: Final = MIB
_PLAIN: Final = "http://"
# docker.io's credentials stand under this name in files that Docker writes.
_DOCKER: Final = ("https://index.docker.io/v1/", "index.docker.io")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that an image may be. What is past a bound is refused and removed."""

    layers: int = 128
    download_bytes: int = 8 * 1024 * MIB
    unpacked_bytes: int = 24 * 1024 * MIB
    file_bytes: int = 8 * 1024 * MIB
    entries: int = 600_000
    # Real layers pack to a third; a hundredth is a bomb. The first part may be anything: a file of zeros is legal.
    ratio: int = 100
    ratio_free_bytes: int = 128 * MIB
    stall_seconds: float = 30.0
    stall_bytes: int = 8 * 1024
    ask_seconds: float = 120.0
    fetch_seconds: float = 3600.0
    unpack_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class Access:
    """Registries that may be private (`host`, `host:port`, with http:// before it for one without TLS), and secrets.

    `auth` is a table as in Docker's and podman's auth.json, `ca` the text of PEM certificates, `mirror` stands in
    for the registry of every reference. `floor` is the operator's, where it is a tenant who asks: what is not allowed
    by name is then spoken to at port 443 alone, by IPv4, which is what a floor speaks of, and never if it is below
    the floor or this host's own.
    """

    allow: tuple[str, ...] = ()
    mirror: str = ""
    ca: str = field(default="", repr=False)
    auth: dict[str, Any] = field(default_factory=dict, repr=False)
    bounds: Bounds = field(default_factory=Bounds)
    floor: Floor | None = None

    @property
    def allowed(self) -> frozenset[str]:
        """The registries that may be private, without schemes."""
        return frozenset(name.removeprefix(_PLAIN) for name in self.allow)

    @property
    def plain(self) -> frozenset[str]:
        """The registries that may be spoken to without TLS."""
        return frozenset(name.removeprefix(_PLAIN) for name in self.allow if name.startswith(_PLAIN))


def _bad(what: str) -> BadRequest:
    return BadRequest(what, code="bad_image_access")


def checked_allow(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check what the operator allows. Raises BadRequest for what is no host."""
    for name in names:
        if not REGISTRY.fullmatch(name.removeprefix(_PLAIN)):
            raise _bad(f"{name!r:.80} is no registry; write HOST, HOST:PORT or http://HOST:PORT")
    return tuple(name.lower() for name in names)


def checked_mirror(text: str) -> str:
    """Check a mirror, HOST[:PORT][/PREFIX], with or without https:// before it. Raises BadRequest."""
    host, slash, prefix = text.removeprefix("https://").rstrip("/").partition("/")
    if text and (not REGISTRY.fullmatch(host) or (slash and not PATH.fullmatch(prefix))):
        raise _bad(f"{text.rpartition('@')[2]!r:.80} is no mirror; write HOST[:PORT][/PREFIX]")
    return f"{host.lower()}{slash}{prefix}"


def _read(path: str, what: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"cannot read the {what} {path}: {type(error).__name__}") from None
    if len(text) > FILE_BYTES:
        raise _bad(f"the {what} {path} is larger than 1 MiB")
    return text


def read_auth(path: str) -> dict[str, Any]:
    """Read an auth.json as `docker login` and `podman login` write it. Raises BadRequest for anything else."""
    try:
        table = json.loads(_read(path, "auth file"))["auths"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _bad(f"the auth file {path} has no table `auths`") from None
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise _bad(f"the auth file {path} has no table `auths`")
    return table


def basic_auth(registry: str, username: str, password: str) -> dict[str, Any]:
    """Return the table for one user of one registry. Raises BadRequest for a name with a colon."""
    if not username or ":" in username or "\n" in username + password or not password:
        raise _bad("a user name and a password of one line are needed, without a colon in the name")
    return {registry: {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}}


def read_ca(path: str) -> str:
    """Read the certificates of a private authority. Raises BadRequest for a file that has none, or has a key."""
    text = _read(path, "certificate file")
    if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
        raise _bad(f"{path} is no file of PEM certificates alone")
    return text


def _plain_entry(entry: dict[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in entry.items() if name in {"auth", "identitytoken"} and value}
    for value in kept.values():
        if not isinstance(value, str) or not value.isascii() or re.search(r"\s", value):
            raise _bad("the auth file has an entry that is no text")
    try:
        base64.b64decode(kept.get("auth", ""), validate=True)
    except binascii.Error:
        raise _bad("the auth file has an entry that is not base64") from None
    return kept


def auth_for(auth: dict[str, Any], registry: str, path: str) -> dict[str, dict[str, str]]:
    """Return only what one repository needs: no other registry's secret comes near the job that fetches."""
    parts = path.split("/")
    names = [f"{registry}/{'/'.join(parts[:end])}" for end in range(len(parts), 0, -1)]
    names += [registry, f"https://{registry}", *(_DOCKER if registry == "docker.io" else ())]
    found = next((name for name in names if name in auth), None)
    return {registry: _plain_entry(auth[found])} if found else {}
