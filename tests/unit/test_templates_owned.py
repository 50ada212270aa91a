"""What a build left, made into a template: whatever its sandbox sent, the host meets names of its own choice alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.template import Template
from ringfence.guest import furnishing
from ringfence.templates import owned
from ringfence.templates.catalog import Built, Catalog, Owned

TENANT, NAME = "ada", "built-0123456789abcdef"


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """A template of the operator's, as small as one can be."""
    directory = tmp_path / "templates"
    root = directory / ("a" * 64) / "root"
    for folder in ("usr/bin", "usr/share", "etc/skel", "home/user", "mnt", "opt", "tmp", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / "usr/bin/python3.13").write_text("python")
    (root / "usr/bin/python3.13").chmod(0o755)
    (root / "usr/bin/python3").symlink_to("python3.13")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "opt/kept").write_text("kept")
    (root / "opt/taken").write_text("taken")
    Catalog(directory).record(Built(Template("base", preload=("json",)), "a" * 64, root, 1, 0.0, "recipe"))
    return directory


def layer(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """A tar, as a build's sandbox sends one, or as a hostile one does."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size, info.mode = len(data), 0o6777
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def publish(tmp_path: Path, trusted: Path, *blobs: bytes, base: str = "base", name: str = NAME, **more: Any) -> Any:
    """Have it made, as the node does."""
    place, work = tmp_path / "built", tmp_path / "built" / f"building-{name}"
    work.mkdir(parents=True)
    told = []
    for number, blob in enumerate(blobs):
        (work / f"blob-{number}").write_bytes(blob)
        told.append({"sha256": hashlib.sha256(blob).hexdigest(), "size": len(blob)})
    catalog = Owned(place, trusted)
    source = catalog.read(base) if base != "base" else Catalog(trusted).read(base)
    key = hashlib.sha256(json.dumps([base, told]).encode()).hexdigest()
    job = {
        "job": "publish", "directory": str(place), "work": str(work), "tenant": TENANT, "name": name, "key": key,
        "base": str(source.root), "trusted": str(source.trusted_root or source.root), "blobs": told,
        "template": {"env": {"A": "1"}, "description": "x"}, "limits": {"processes": 7},
        "bounds": {"unpacked_bytes": 1 << 20, "file_bytes": 1 << 20, "entries": 200, "unpack_seconds": 20.0},
        "home": {"files": 3, "bytes": 1000}, "from": base, "from_owned": base != "base",
        "foreign": False, "base_bytes": 0, **more,
    }  # fmt: skip
    return owned._done(job)


def test_layers_are_laid_over_what_was_built_upon(tmp_path: Path, trusted: Path) -> None:
    """Files come, change and go; the home is put aside; no right, owner or place of a sandbox's own is kept."""
    told = publish(
        tmp_path,
        trusted,
        layer(("opt/new", b"new"), ("home/user/app", b"app"), ("tmp/x", b"x"), ("etc/skel/x", b"x"), ("dev/x", b"x")),
        layer(("opt/.wh.taken", b""), ("opt/kept", b"changed"), odd("opt/link", tarfile.SYMTYPE, "/etc/shadow")),
    )
    assert "error" not in told, told
    built = Owned(tmp_path / "built", trusted).read(NAME)
    root = built.root
    assert {path.name for path in (root / "opt").iterdir()} == {"new", "kept", "link"}
    assert (root / "opt/kept").read_text() == "changed"
    assert os.readlink(root / "opt/link") == "/etc/shadow"
    assert (root / furnishing.SEED[1:] / "app").read_text() == "app"
    assert not list((root / "home/user").iterdir()) + list((root / "tmp").iterdir()) + list((root / "dev").iterdir())
    assert not list((root / "etc/skel").iterdir())
    assert (root / "opt/new").stat().st_mode & 0o7777 == 0o755
    assert (trusted / ("a" * 64) / "root/opt/kept").read_text() == "kept"
    assert (built.owner, built.trusted_root) == (TENANT, trusted / ("a" * 64) / "root")
    assert (built.template.preload, built.template.limits.processes, dict(built.template.env)) == (
        ("json",),
        7,
        {"A": "1"},
    )


def test_a_template_is_built_upon_a_tenant_s_own(tmp_path: Path, trusted: Path) -> None:
    """Its home is there again to be changed; what its agent runs on is still ours."""
    publish(tmp_path, trusted, layer(("home/user/one", b"1"), ("home/user/two", b"2")))
    second = "built-fedcba9876543210"
    told = publish(tmp_path, trusted, layer(("home/user/.wh.one", b"")), base=NAME, name=second)
    assert "error" not in told, told
    built = Owned(tmp_path / "built", trusted).read(second)
    assert [path.name for path in (built.root / furnishing.SEED[1:]).iterdir()] == ["two"]
    assert built.trusted_root == trusted / ("a" * 64) / "root"


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a path that climbs": (lambda: layer(("../../out", b"x")), "image_path_escapes"),
    "a link at a mount point": (lambda: layer(odd("mnt", tarfile.SYMTYPE, "/etc")), "image_unsafe_path"),
    "a link at home": (
        lambda: layer(("home/.wh.user", b""), odd("home/user", tarfile.SYMTYPE, "/")),
        "image_unsafe_path",
    ),
    "a link on the way to what fills homes": (
        lambda: layer(("usr/.wh.share", b""), odd("usr/share", tarfile.SYMTYPE, "/proc")),
        "image_unsafe_path",
    ),
    "a file in the way of what fills homes": (lambda: layer(("usr/share/ringfence", b"x")), "image_unsafe_path"),
    "a hard link out": (lambda: layer(odd("opt/x", tarfile.LNKTYPE, "../../etc/shadow")), "image_path_escapes"),
    "a resolver that is a link": (lambda: layer(odd("etc/resolv.conf", tarfile.SYMTYPE, "/x")), "image_unsafe_path"),
    "no Python": (lambda: layer(("usr/bin/.wh.python3", b"")), "template_unusable"),
    "a home with too much in it": (lambda: layer(*[(f"home/user/{n}", b"") for n in range(5)]), "home_too_large"),
    "a home too large": (lambda: layer(("home/user/x", bytes(2000))), "home_too_large"),
    "too many files": (lambda: layer(*[(f"opt/{n}", b"") for n in range(300)]), "image_too_many_entries"),
    "too much": (lambda: layer(("opt/x", bytes(2 << 20))), "image_too_large"),
    "cut short": (lambda: layer(("opt/x", bytes(100_000)))[:50_000], "image_layer_damaged"),
    "no archive": (lambda: b"none of that" * 1000, "image_layer_damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_hostile_build_left_is_refused(kind: str, tmp_path: Path, trusted: Path) -> None:
    """With its reason; there is no such template then, and nothing outside was touched."""
    make, code = HOSTILE[kind]
    before = sorted(str(path) for path in trusted.rglob("*"))
    told = publish(tmp_path, trusted, make())
    assert told["error"]["code"] == code, told
    assert told["error"]["status"] == 400
    assert not (tmp_path / "built/index").exists()
    assert sorted(str(path) for path in trusted.rglob("*")) == before


def test_only_its_tenant_has_a_template_forgotten(tmp_path: Path, trusted: Path) -> None:
    """And with the last name goes the root."""
    publish(tmp_path, trusted, layer(("opt/new", b"new")))
    words = {"job": "remove", "directory": str(tmp_path / "built"), "names": [NAME]}
    owned._done({**words, "tenant": "bob"})
    root = Owned(tmp_path / "built", trusted).read(NAME).root
    owned._done({**words, "tenant": TENANT})
    assert not root.exists()
    assert not list((tmp_path / "built/index").iterdir())


def test_what_fills_homes_is_not_reached_through_links(tmp_path: Path) -> None:
    """Were a template ever to have one there, nothing would be copied from behind it."""
    (tmp_path / "elsewhere/ringfence/home").mkdir(parents=True)
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/usr/share").symlink_to(tmp_path / "elsewhere")
    assert not furnishing.has_home(str(tmp_path / "root"))
    (tmp_path / "root/usr/share").unlink()
    (tmp_path / "root/usr/share/ringfence/home").mkdir(parents=True)
    assert furnishing.has_home(str(tmp_path / "root"))
