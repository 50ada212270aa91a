"""Container images made by hand, honest ones and others: layers as tar bytes, configurations, manifests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

BUSYBOX = Path("/bin/busybox")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
APPLETS = ("sh", "ls", "cat", "echo", "id", "env", "sleep", "pwd", "true", "false", "head", "wc", "grep", "mkdir")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"


def digest(data: bytes) -> str:
    """What a registry calls some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file(name: str, content: bytes = b"", mode: int = 0o644, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file's member."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, 1_700_000_000
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """A folder's member."""
    return file(name, mode=mode, type=tarfile.DIRTYPE)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link's member."""
    return file(name, mode=0o777, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A hard link's member."""
    return file(name, type=tarfile.LNKTYPE, linkname=target)


def device(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """A device's member: the kernel's memory."""
    return file(name, mode=0o666, type=tarfile.CHRTYPE, devmajor=1, devminor=1)


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass(frozen=True)
class Made:
    """An image: its manifest and the blobs that it names."""

    manifest: bytes
    blobs: dict[str, bytes]
    media: str = MANIFEST

    @property
    def digest(self) -> str:
        """What it is pulled by."""
        return digest(self.manifest)


@dataclass
class Recipe:
    """What to make an image of; every field can be wrong on purpose."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    packed: list[bytes] | None = None
    diff_ids: list[str] | None = None
    sizes: dict[int, int] = field(default_factory=dict)
    architecture: str = ARCHITECTURE

    def make(self) -> Made:
        """Put it together."""
        packed = self.packed or [gzip.compress(layer, 1, mtime=0) for layer in self.layers]
        diff_ids = self.diff_ids or [digest(layer) for layer in self.layers]
        config = json.dumps(
            {
                "architecture": self.architecture, "os": "linux", "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        ).encode()  # fmt: skip
        parts = [
            {"mediaType": LAYER, "digest": digest(blob), "size": self.sizes.get(number, len(blob))}
            for number, blob in enumerate(packed)
        ]
        head = {"schemaVersion": 2, "mediaType": MANIFEST}
        ours = {"mediaType": CONFIG, "digest": digest(config), "size": len(config)}
        manifest = json.dumps({**head, "config": ours, "layers": parts}).encode()
        return Made(manifest, {digest(config): config, **{digest(blob): blob for blob in packed}})


def made_of(*members: tuple[tarfile.TarInfo, bytes], **config: Any) -> Made:
    """An image of one layer."""
    return Recipe([tar(members)], config=config).make()


def listed(made: Made, **other: str) -> Made:
    """A list of manifests that has an image for this machine, after one for another."""
    entries = [
        {
            "mediaType": MANIFEST, "digest": digest(b"another"), "size": 7,
            "platform": {"os": "linux", "architecture": "s390x"},
        },
        {
            "mediaType": MANIFEST, "digest": made.digest, "size": len(made.manifest),
            "platform": {"os": "linux", "architecture": ARCHITECTURE, **other},
        },
    ]  # fmt: skip
    return Made(json.dumps({"schemaVersion": 2, "mediaType": LIST, "manifests": entries}).encode(), {}, LIST)


def busybox_layer() -> bytes:
    """Debian's static busybox and its usual names, in the folders of a small distribution."""
    members = [folder(name) for name in ("bin", "etc", "home", "root", "tmp", "usr", "usr/bin", "var", "var/tmp")]
    members.append(file("bin/busybox", BUSYBOX.read_bytes(), 0o755))
    members += [link(f"bin/{name}", "busybox") for name in APPLETS[:7]]
    members += [hard(f"bin/{name}", "bin/busybox") for name in APPLETS[7:]]
    members.append(file("etc/passwd", PASSWD))
    return tar(members)


def busybox(*more: bytes) -> Made:
    """An Alpine-like image: busybox, and layers above it."""
    config = {
        "Entrypoint": ["/bin/echo"], "Cmd": ["hello", "there"], "Env": ["PATH=/bin:/usr/bin", "GREETING=hi=there"],
        "WorkingDir": "/srv/app", "User": "node:1000",
    }  # fmt: skip
    return Recipe([busybox_layer(), *more], config=config).make()


def without_shell() -> Made:
    """A distroless-like image: one static program under its own name, no shell, no list of users."""
    program = file("app/hello", BUSYBOX.read_bytes(), 0o755)
    return made_of(program, Entrypoint=["/app/hello"], Cmd=None, User="65532")


SPARED: Final = ("usr/share", "usr/lib/git-core", "usr/sbin", "usr/lib/x86_64-linux-gnu/perl")


def slim(root: Path, **config: Any) -> Made:
    """A Debian image with bash and Python and not much beside, of a template's own root, in one layer as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if not name.startswith(SPARED) and "perl" not in name:
                layer.add(path, name, recursive=False)
    return Recipe([out.getvalue()], packed=[out.getvalue()], config=config).make()


def debian_like(root: Path) -> Made:
    """A Debian image: a template's own root in two layers, one of them with Python's library."""
    lower, upper = io.BytesIO(), io.BytesIO()
    with (
        tarfile.open(fileobj=lower, mode="w", format=tarfile.PAX_FORMAT) as low,
        tarfile.open(fileobj=upper, mode="w", format=tarfile.PAX_FORMAT) as high,
    ):
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            (high if name.startswith("usr/lib/python3") else low).add(path, name, recursive=False)
    layers = [lower.getvalue(), upper.getvalue()]
    return Recipe(layers, config={"Cmd": ["bash"], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}).make()
