"""What a registry says an image is: read with distrust, bounded, and held against the digests that name it."""

from __future__ import annotations

import hashlib
import json
import platform
import posixpath
import re
from dataclasses import dataclass
from typing import Any, Final

from ringfence.domain.errors import BadRequest
from ringfence.domain.template import ENV_NAME, USER, WORDS, Image
from ringfence.templates.image.access import Bounds
from ringfence.templates.image.reference import DIGEST

MANIFEST_BYTES: Final = 4 * 1024 * 1024
INDEXES: Final = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_WORD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Blob:
    """One part of an image, as its manifest names it."""

    digest: str
    size: int

    @property
    def name(self) -> str:
        """Its hexadecimal digits: what files are called after it."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image's parts, the lowest layer first."""

    digest: str
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def download_bytes(self) -> int:
        """How much all its parts are, each counted once."""
        return sum(blob.size for blob in {self.config, *self.layers})


@dataclass(frozen=True, slots=True)
class Config:
    """What an image's configuration says: its words for the template, and its layers' uncompressed digests."""

    image: Image
    diff_ids: tuple[str, ...]


def bad(what: str, code: str = "bad_image") -> BadRequest:
    """Return the refusal of an image that is not made as images are."""
    return BadRequest(f"the image {what}", code=code)


def digest_of(raw: bytes) -> str:
    """Return the digest that names some bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def check_digest(raw: bytes, digest: str, what: str) -> None:
    """Raise BadRequest when bytes are not what their name says."""
    if digest_of(raw) != digest:
        raise lying(what, digest, digest_of(raw))


def lying(what: str, digest: str, found: str) -> BadRequest:
    """Return the refusal of a part that is not what its digest says."""
    return BadRequest(
        f"{what} {digest} is not what was sent: that is {found}",
        code="image_digest_mismatch",
        remediation="the registry, or something on the way to it, sends something else; do not trust it",
    )


def _table(raw: bytes, what: str) -> dict[str, Any]:
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad(f"has a {what} that is not JSON") from None
    if not isinstance(table, dict):
        raise bad(f"has a {what} that is no table")
    return table


def _digest(value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise bad("names a part by something that is no sha256 digest")
    return value


def architecture() -> str:
    """This machine's kind, in images' words."""
    return _MACHINES.get(platform.machine(), platform.machine())


def is_index(raw: bytes) -> bool:
    """Whether the bytes are a list of manifests, one for each kind of machine."""
    table = _table(raw, "manifest")
    return table.get("mediaType") in INDEXES or ("manifests" in table and "layers" not in table)


def choose(raw: bytes) -> str:
    """Return the digest of the manifest for this machine out of a list. Raises BadRequest when there is none."""
    entries = _table(raw, "manifest list").get("manifests")
    if not isinstance(entries, list):
        raise bad("has a manifest list without manifests")
    offered = []
    for entry in entries[:1000]:
        kind = entry.get("platform") if isinstance(entry, dict) else None
        if isinstance(kind, dict):
            if (kind.get("os"), kind.get("architecture")) == ("linux", architecture()):
                return _digest(entry.get("digest"))
            offered.append(f"{kind.get('os')}/{kind.get('architecture')}"[:40])
    raise bad(f"is not made for linux/{architecture()}, but for {', '.join(offered[:10])}", "image_wrong_platform")


def _blob(value: object) -> Blob:
    if not isinstance(value, dict):
        raise bad("has a part that is no table")
    size = value.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise bad("has a part without a size")
    if value.get("urls"):
        # CVE-2020-15157: such a layer makes a client carry its credentials to whatever host the image names.
        raise bad("has a layer that is kept on another server", "image_foreign_layer")
    return Blob(_digest(value.get("digest")), size)


def read_manifest(raw: bytes, bounds: Bounds) -> Manifest:
    """Read a manifest. Raises BadRequest for an old or strange one, or one past the bounds."""
    table = _table(raw, "manifest")
    layers = table.get("layers")
    if table.get("schemaVersion") != 2 or not isinstance(layers, list):
        raise bad("is in a form older than Docker's of 2016")
    if not layers or len(layers) > bounds.layers:
        raise bad(f"has {len(layers)} layers; between 1 and {bounds.layers} are taken", "image_too_many_layers")
    found = Manifest(digest_of(raw), _blob(table.get("config")), tuple(_blob(layer) for layer in layers))
    if found.config.size > MANIFEST_BYTES:
        raise bad("has a configuration larger than 4 MiB", "image_too_large")
    if found.download_bytes > bounds.download_bytes:
        mebibytes = f"{found.download_bytes >> 20} MiB; at most {bounds.download_bytes >> 20} are taken"
        raise bad(f"is {mebibytes}", "image_too_large")
    return found


def _texts(value: object, what: str) -> tuple[str, ...]:
    values = [] if value is None else value
    if not isinstance(values, list) or len(values) > WORDS:
        raise bad(f"has {what} that is no list, or too long a one", "bad_image_config")
    for text in values:
        if not isinstance(text, str) or "\0" in text or len(text) > _WORD_BYTES:
            raise bad(f"has {what} with something that is no text", "bad_image_config")
    return tuple(values)


def _env(value: object) -> tuple[tuple[str, str], ...]:
    """Variables by name; what no shell could set is left out, as is all but the last of each name."""
    pairs = (text.partition("=") for text in _texts(value, "Env"))
    return tuple({name: text for name, equals, text in pairs if equals and ENV_NAME.fullmatch(name)}.items())


def _workdir(value: object) -> str:
    if value is None or value == "":
        return "/"
    if not isinstance(value, str) or "\0" in value or len(value) > 1024 or ".." in value.split("/"):
        raise bad("has a WorkingDir that is no path", "bad_image_config")
    return re.sub(r"\A/+", "/", posixpath.normpath(f"/{value}"))


def read_config(raw: bytes, manifest: Manifest, reference: str) -> Config:
    """Read an image's configuration. Raises BadRequest for one that does not fit, or is for another machine."""
    table = _table(raw, "configuration")
    kind = (table.get("os"), table.get("architecture"))
    if kind != ("linux", architecture()):
        raise bad(f"is made for {kind[0]}/{kind[1]}, not for linux/{architecture()}"[:200], "image_wrong_platform")
    rootfs, said = table.get("rootfs"), table.get("config") or {}
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(manifest.layers) or not isinstance(said, dict):
        raise bad("has a configuration that does not fit its manifest", "bad_image_config")
    user = said.get("User") or ""
    if not isinstance(user, str) or not USER.fullmatch(user):
        raise bad("has a User that is none", "bad_image_config")
    image = Image(
        reference=reference,
        digest=manifest.digest,
        entrypoint=_texts(said.get("Entrypoint"), "Entrypoint"),
        cmd=_texts(said.get("Cmd"), "Cmd"),
        env=_env(said.get("Env")),
        workdir=_workdir(said.get("WorkingDir")),
        user=user,
    )
    return Config(image, tuple(_digest(each) for each in diff_ids))
