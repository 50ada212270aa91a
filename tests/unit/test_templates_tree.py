"""A root as a tree of files: what sealing takes away, and what a manifest notices."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from ringfence.domain.errors import PlatformFault
from ringfence.templates import tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small root with a file, a program, a link and the two shared folders."""
    root = tmp_path / "root"
    for folder in ("etc", "usr/bin", "tmp", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0\n")
    (root / "usr/bin/tool").write_bytes(b"\x7fELF")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    return root


def _manifest(root: Path) -> str:
    return tree.manifest_text(tree.manifest(root))


def test_sealing_takes_every_power_from_a_root(root: Path) -> None:
    """Set-id bits, strangers' write permission, pipes, sockets and extended attributes are gone afterwards."""
    (root / "usr/bin/tool").chmod(0o6777)
    (root / "etc").chmod(0o2777)
    os.mkfifo(root / "etc/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "etc/socket"))
    os.setxattr(root / "etc/passwd", "user.note", b"x")
    tree.normalise(root)
    assert stat.S_IMODE((root / "usr/bin/tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert sorted(os.listdir(root / "etc")) == ["passwd"]
    assert os.listxattr(root / "etc/passwd") == []


def test_sealing_makes_private_files_readable(root: Path) -> None:
    """A sandbox's user is never root on the host, so what root alone may read would be lost to it."""
    (root / "etc/passwd").chmod(0o600)
    (root / "usr/bin").chmod(0o700)
    tree.normalise(root)
    assert stat.S_IMODE((root / "etc/passwd").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "usr/bin").stat().st_mode) == 0o755


def test_a_digest_ignores_times_and_the_order_of_creation(root: Path, tmp_path: Path) -> None:
    """Equal content has an equal digest, however and whenever it was written."""
    twin = tmp_path / "twin"
    for folder in ("var/tmp", "tmp", "usr/bin", "etc"):
        (twin / folder).mkdir(parents=True)
    (twin / "bin").symlink_to("usr/bin")
    (twin / "usr/bin/tool").write_bytes(b"\x7fELF")
    (twin / "usr/bin/tool").chmod(0o755)
    (twin / "etc/passwd").write_text("root:x:0:0\n")
    os.utime(twin / "etc/passwd", (1, 1))
    assert tree.digest_of(_manifest(root)) == tree.digest_of(_manifest(twin))


def test_one_changed_byte_one_mode_one_path_more_and_one_less_are_all_named(root: Path) -> None:
    """Comparing names exactly the paths that differ."""
    before = _manifest(root)
    (root / "etc/passwd").write_text("root:x:0:1\n")
    (root / "usr/bin/tool").chmod(0o744)
    (root / "tmp/new").touch()
    (root / "bin").unlink()
    assert tree.differing(before, root) == ["bin", "etc/passwd", "tmp/new", "usr/bin/tool"]


def test_names_that_are_no_text_and_names_with_line_breaks_are_listed(root: Path) -> None:
    """A path is bytes: a manifest can say any of them, one line each."""
    with open(os.fsencode(root) + b'/etc/\xff\n\t"', "wb"):
        pass
    text = _manifest(root)
    assert all(len(json.loads(line)) == 5 for line in text.splitlines())
    assert tree.differing(text, root) == []
    assert len(tree.digest_of(text)) == 64


@pytest.mark.parametrize("act", [tree.remove, tree.empty])
def test_nothing_behind_a_link_is_removed(root: Path, tmp_path: Path, act: object) -> None:
    """A folder of the root that is a link to the host leads the builder nowhere."""
    outside = tmp_path / "outside"
    (outside / "lib").mkdir(parents=True)
    (outside / "lib/keep").touch()
    (root / "opt").symlink_to(outside)
    with pytest.raises(PlatformFault):
        act(root, "opt/lib")  # type: ignore[operator]
    tree.empty(root, "opt")
    assert (outside / "lib/keep").exists()


def test_merging_replaces_a_shared_file_instead_of_writing_into_it(root: Path, tmp_path: Path) -> None:
    """The other template that shares the file keeps its content."""
    twin, fresh = tmp_path / "twin", tmp_path / "fresh"
    tree.share(root, twin)
    assert (twin / "etc/passwd").stat().st_ino == (root / "etc/passwd").stat().st_ino
    (fresh / "etc").mkdir(parents=True)
    (fresh / "etc/passwd").write_text("new")
    (fresh / "etc/more").mkdir()
    tree.merge(fresh, twin)
    assert (twin / "etc/passwd").read_text() == "new"
    assert (root / "etc/passwd").read_text() == "root:x:0:0\n"
    assert (twin / "etc/more").is_dir()


def test_merging_over_a_link_does_not_follow_it(root: Path, tmp_path: Path) -> None:
    """A file that lands on a link takes its place; what the link points to, on the host, is untouched."""
    victim, fresh = tmp_path / "victim", tmp_path / "fresh"
    victim.write_text("host")
    (root / "usr/bin/python").symlink_to(victim)
    fresh.mkdir()
    (fresh / "python").write_text("wheel")
    tree.merge(fresh, root / "usr/bin")
    assert victim.read_text() == "host"
    assert (root / "usr/bin/python").read_text() == "wheel"
