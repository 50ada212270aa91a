"""The interpreter we carry: found in a template's root without ever leaving it, whole, and made once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.template import Image, Template
from ringfence.guest.plan import HIDDEN
from ringfence.runtimes.oci import bundle, carried
from ringfence.runtimes.oci.carried import Carried, find, within
from ringfence.templates.catalog import Catalog
from tests.support.subjects import TEMPLATES

BUILT = (TEMPLATES / "index" / "base.json").exists()
needs_base = pytest.mark.skipif(not BUILT, reason=f"no template `base` is built in {TEMPLATES}")


@pytest.mark.parametrize(
    ("link", "target", "path", "leads"),
    [
        ("lib", "usr/lib", "/lib/x", "usr/lib/x"),
        ("lib", "/usr/lib", "/lib/x", "usr/lib/x"),
        ("lib", "../../../../usr/lib", "/lib/x", "usr/lib/x"),
        ("a", "/../../etc", "/a/shadow", "etc/shadow"),
        ("plain", "plain2", "/plain", "plain2"),
    ],
)
def test_links_stay_inside(tmp_path: Path, link: str, target: str, path: str, leads: str) -> None:
    """A template's links are followed as its own programs would follow them: its root is the top."""
    os.symlink(target, tmp_path / link)
    assert within(tmp_path, path) == tmp_path / leads


def test_a_circle_ends(tmp_path: Path) -> None:
    """Links that lead to each other are an error, not a loop."""
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    with pytest.raises(OSError, match="too many links"):
        within(tmp_path, "/a")


def test_a_root_without_python_is_said(tmp_path: Path) -> None:
    """Nothing is guessed where there is none."""
    with pytest.raises(OSError, match="no /usr/bin/python3"):
        find(tmp_path)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60), b"\x7fELF\x02\x01"])
def test_what_is_no_program_is_refused(tmp_path: Path, data: bytes) -> None:
    """A file that is no 64-bit ELF never gets as far as being copied."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.13").write_bytes(data)
    os.symlink("python3.13", tmp_path / "usr/bin/python3")
    with pytest.raises((OSError, carried.struct.error)):
        find(tmp_path)


def test_without_a_base_template_it_is_refused(tmp_path: Path) -> None:
    """Who has no template to take it from is told how to get one."""
    with pytest.raises(SandboxRefused) as refusal:
        Carried(tmp_path).tree()
    assert "templates build base" in refusal.value.remediation


@needs_base
def test_it_runs_where_nothing_else_is(tmp_path: Path) -> None:
    """The tree is whole: its Python runs with its own loader and libraries only, and imports all our guest needs."""
    (tmp_path / "index").mkdir()
    base = Catalog(TEMPLATES).read("base")
    os.symlink(base.root.parent, tmp_path / base.digest)
    (tmp_path / "index/base.json").write_bytes((TEMPLATES / "index/base.json").read_bytes())
    tree = Carried(tmp_path).tree()
    assert Carried(tmp_path).tree() == tree
    code = (
        f"import sys; sys.path.insert(0, {str(tree / 'code')!r}); import ringfence.guest.boot as b\n"
        "print(all(p.startswith(sys.prefix) for p in sys.path[1:]))\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print([m for m in maps if m.startswith('/') and sys.prefix not in m])\n"
        "print(b.__cached__)"
    )
    words = [part.replace(HIDDEN, str(tree)) for part in bundle.interpreter(Template(name="t", image=Image("x", "y")))]
    command = [*words, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"LC_ALL": "C"}, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    inside, maps, cached = done.stdout.splitlines()
    assert inside == "True"
    assert maps == "[]", "nothing of the system's own is mapped: no locale, no cache, no library"
    assert Path(cached).is_file(), "a compiled file is there for it"
    assert not list((tmp_path / "carried").glob(".new-*"))
    assert all(not path.is_symlink() for path in tree.rglob("*"))


@needs_base
def test_a_half_made_tree_is_made_anew(tmp_path: Path) -> None:
    """What a killed builder left is swept by the next, and superseded trees go with it once nobody can need them."""
    (tmp_path / "index").mkdir()
    base = Catalog(TEMPLATES).read("base")
    os.symlink(base.root.parent, tmp_path / base.digest)
    (tmp_path / "index/base.json").write_bytes((TEMPLATES / "index/base.json").read_bytes())
    half, old, fresh = (tmp_path / "carried" / name for name in (".new-half", "0" * 64, "1" * 64))
    for place in (half, old, fresh):
        place.mkdir(parents=True)
    os.utime(old, (0, 0))
    tree = Carried(tmp_path).tree()
    assert {place.name for place in (tmp_path / "carried").iterdir()} == {tree.name, fresh.name, ".lock"}
