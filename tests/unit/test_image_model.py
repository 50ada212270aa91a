"""The merged tree: layers over layers, links followed in memory alone, and the look for tricks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ringfence.templates.image import lint, model, write
from ringfence.templates.image.entries import Entry
from ringfence.templates.image.model import Absent, File, Folder, Link, Root, Text
from ringfence.templates.image.tar import LayerError


def entries(*lines: str) -> list[Entry]:
    """Entries from words: `+x` a file, `*x` a program, `/x` a folder, `-x` gone, `x -> y` and `x = y` links."""
    found = []
    for number, line in enumerate(lines):
        if " -> " in line:
            found.append(Entry("link", *line.split(" -> ")))
        elif " = " in line:
            found.append(Entry("hard", *line.split(" = ")))
        else:
            kind = {"+": "file", "*": "file", "/": "folder", "-": "gone"}[line[0]]
            found.append(Entry(kind, line[1:], "", number, 1, line[0] == "*"))
    return found


def tree(*layers: list[Entry]) -> Root:
    """The layers merged."""
    root = Root(1000)
    for number, layer in enumerate(layers):
        root.apply(str(number), layer)
    return root


def names(root: Root) -> list[str]:
    """Every path, in order."""
    return sorted(path for path, _ in root.walk())


def test_a_later_layer_wins_and_folders_are_merged() -> None:
    """A file for a file, a folder for a file, a file for a folder, a link for a folder."""
    root = tree(entries("+a", "+f/x", "+d/x", "+l/x"), entries("+a", "+a2", "/f", "+f/y", "+d", "l -> f"))
    assert names(root) == ["a", "a2", "d", "f", "f/x", "f/y", "l"]
    assert isinstance(root.lookup("d"), File)
    assert root.lookup("l") == Link("f")


def test_removals_concern_only_what_is_below_their_layer() -> None:
    """Wherever they stand in it, plain and opaque, at the top too."""
    assert names(tree(entries("+a", "+b"), entries("+a", "-.wh.a", "-.wh.b", "-.wh.none"))) == ["a"]
    assert names(tree(entries("+d/x", "+d/y"), entries("+d/z", "-d/.wh..wh..opq"))) == ["d", "d/z"]
    assert names(tree(entries("+a", "+d/x"), entries("+b", "-.wh..wh..opq"))) == ["b"]
    assert names(tree(entries("+d/x"), entries("-.wh.d", "+d/y"))) == ["d", "d/y"]
    assert names(tree(entries("d -> real", "+real/x"), entries("-d/.wh.x"))) == ["d", "real"]


def test_links_on_the_way_lead_somewhere_in_the_image() -> None:
    """Absolute, relative, past the top, to what is not there yet, through one another."""
    root = tree(
        entries("a -> /etc", "b -> ../../../etc", "c -> a/../b/sub", "/x", "x/up -> ../..", "+a/1", "+b/2", "+c/3")
    )
    root.apply("1", entries("+x/up/etc/4"))
    assert names(root) == ["a", "b", "c", "etc", "etc/1", "etc/2", "etc/4", "etc/sub", "etc/sub/3", "x", "x/up"]


def test_a_folder_over_a_link_takes_its_place() -> None:
    """As every tool for images has it."""
    root = tree(entries("+etc/x", "a -> etc"), entries("/a", "+a/y"))
    assert names(root) == ["a", "a/y", "etc", "etc/x"]


def test_two_names_of_one_file_stay_one_file() -> None:
    """Across layers too; a link may have two names as well."""
    root = tree(entries("+a", "l -> a"), entries("b = a", "m = l"))
    assert root.lookup("a") is root.lookup("b")
    assert root.lookup("m") == Link("a")


@pytest.mark.parametrize("line", ["x = nothing", "x = d", "x = l/passwd", "x = f/y", "x = /", "x = l"])
def test_a_hard_link_to_what_is_no_file_of_the_image_is_refused(line: str) -> None:
    """Nothing outside the image has a name inside it."""
    if line == "x = l":
        assert tree(entries("l -> /etc", line)).lookup("x") == Link("/etc")
        return
    with pytest.raises(LayerError) as caught:
        tree(entries("/d", "+f", "l -> /etc", line))
    assert caught.value.code == "image_hard_link_out"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("a -> a", "+a/x"), "image_link_loop"),
        (("a -> b/c", "b -> a/d", "+a/x"), "image_link_loop"),
        (("+a", "+a/x"), "image_path_below_file"),
        (("+" + "/".join("d" * 101),), "image_name_too_long"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(lines: tuple[str, ...], code: str) -> None:
    """With the path, and soon."""
    with pytest.raises(LayerError) as caught:
        model.check_paths(tree(entries(*lines)))
    assert caught.value.code == code


def test_an_image_of_links_costs_little_time() -> None:
    """Thousands of paths, each through forty links of a thousand steps: given up after a bounded number."""
    lines = [f"l{n} -> {'./' * 1000}l{n + 1}" for n in range(39)] + ["/l39"]
    started = time.monotonic()
    with pytest.raises(LayerError) as caught:
        tree(entries(*lines, *(f"+l0/{n}" for n in range(5000))))
    assert caught.value.code == "image_too_many_links"
    assert time.monotonic() - started < 60


def test_a_path_that_grew_behind_links_is_refused() -> None:
    """Each entry's own name is short."""
    lines = ["/a"]
    for n in range(150):
        lines += [f"/{'a' if n == 0 else f'l{n - 1}'}/d", f"l{n} -> {'a' if n == 0 else f'l{n - 1}'}/d"]
    with pytest.raises(LayerError) as caught:
        model.check_paths(tree(entries(*lines)))
    assert caught.value.code in {"image_name_too_long", "image_link_loop"}


# -- the look for tricks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*lint.FOLDERS, *lint.FILES, "proc/self", "proc/1", "sys/fs"])
@pytest.mark.parametrize("target", ["/", "/etc", "../../..", "nowhere", "/proc/1/root", ".", "/proc/self/root/etc"])
def test_a_link_where_we_mount_is_refused_with_its_path(place: str, target: str) -> None:
    """Every place that any runtime mounts on, writes to, or passes on the way there."""
    with pytest.raises(LayerError) as caught:
        lint.check(tree(entries(f"{place} -> {target}")))
    assert caught.value.code == "image_unsafe_path"
    assert repr(f"/{place}") in caught.value.cause


@pytest.mark.parametrize("place", lint.FOLDERS)
def test_a_file_where_a_folder_is_mounted_is_refused(place: str) -> None:
    """It could not be mounted on."""
    with pytest.raises(LayerError, match=place):
        lint.check(tree(entries(f"+{place}")))


@pytest.mark.parametrize(
    "line", ["bin -> usr/bin", "lib -> usr/lib", "var/run -> /run", "etc/mtab -> /proc/mounts", "dev/ptmx -> pts/ptmx"]
)
def test_links_that_every_distribution_has_are_kept(line: str) -> None:
    """They are not where anything is mounted."""
    lint.check(tree(entries(line)))


def _prepared(*lines: str, workdir: str = "/", text: bytes = b"") -> Root:
    root = tree(entries(*lines))
    lint.check(root)
    lint.prepare(root, workdir, lambda _: text)
    return root


def test_a_prepared_tree_has_every_mount_point_and_nothing_below_it() -> None:
    """What an image has where a sandbox has its own would never be seen."""
    root = _prepared("+proc/x", "+sys/x", "+dev/x", "+run/secrets/x", "+tmp/x", "+etc/shadow", "+home/other/x")
    for place in ("dev", "home/user", "mnt", "proc", "run", "sys", "tmp", "var/tmp"):
        node = root.lookup(place)
        assert isinstance(node, Folder), place
        assert not node.children
    assert root.lookup("etc/shadow") is None
    assert root.lookup("home/other/x")


def test_our_user_is_added_to_the_images_own() -> None:
    """Nobody else's line is changed, an own `user` is replaced, what is no text stays as it is."""
    own = b"root:x:0:0::/root:/bin/ash\nuser:x:500:500::/:/bin/x\n\xff:x:7:7::/:\nnode:x:1000:1000::/home/node:"
    node = _prepared("+etc/passwd", "+etc/group", text=own).lookup("etc/passwd")
    assert isinstance(node, Text)
    assert node.content.split(b"\n") == [
        b"root:x:0:0::/root:/bin/ash", b"\xff:x:7:7::/:", b"node:x:1000:1000::/home/node:",
        b"user:x:1000:1000:user:/home/user:/bin/sh", b"",
    ]  # fmt: skip


def test_the_working_directory_is_made() -> None:
    """Through the image's own links; refused where a file is in the way."""
    assert isinstance(_prepared("srv -> data", workdir="/srv/app").lookup("data/app"), Folder)
    with pytest.raises(LayerError):
        _prepared("+srv", workdir="/srv/app")


@pytest.mark.parametrize(
    ("lines", "search", "python"),
    [
        (("*usr/bin/python3.11", "usr/bin/python3 -> python3.11", "+usr/lib/python3.11/os.py"), "", "/usr/bin/python3"),
        (("*usr/local/bin/python3", "+usr/local/lib/python3.8/os.py"), "", "/usr/local/bin/python3"),
        (("*opt/conda/bin/python3", "+opt/conda/lib/python3.12/os.py"), "/opt/conda/bin:/a", "/opt/conda/bin/python3"),
        (("bin -> usr/bin", "*usr/bin/python3", "+usr/lib64/python3.9/os.py"), "/bin", "/bin/python3"),
        (("*usr/bin/python", "+usr/lib/python3.9/os.py"), "", "/usr/bin/python"),
        (("*usr/bin/python3.7", "usr/bin/python3 -> python3.7", "+usr/lib/python3.7/os.py"), "", ""),
        (("*usr/bin/python3",), "", ""),
        (("+usr/bin/python3", "+usr/lib/python3.9/os.py"), "", ""),
        (("usr/bin/python3 -> /nowhere", "+usr/lib/python3.9/os.py"), "", ""),
        (("usr/bin/python3 -> python3", "+usr/lib/python3.9/os.py"), "", ""),
        (("*usr/bin/python3.13", "usr/bin/python3 -> python3.13", "+usr/lib/python3.9/os.py"), "", ""),
        (("*usr/bin/python2.7", "usr/bin/python -> python2.7", "+usr/lib/python2.7/os.py"), "", ""),
        (("*evil/python3", "+lib/python3.9/os.py"), "evil:../evil:.", ""),
    ],
)  # fmt: skip
def test_a_usable_python_is_found(lines: tuple[str, ...], search: str, python: str) -> None:
    """Version 3.8 or newer, executable, its library beside it; the image's own search path first."""
    assert lint.python_in(tree(entries(*lines)), search) == python


def test_looking_for_what_is_not_there_says_so() -> None:
    """Circles included."""
    root = tree(entries("a -> b", "b -> a", "+f"))
    for path in ("a", "none", "none/x"):
        with pytest.raises(Absent):
            root.find(path)
    assert root.find("f")[0] == "f"


# -- writing --------------------------------------------------------------------------------------------------------


def test_a_tree_is_written_by_hard_links_and_nothing_is_followed(tmp_path: Path) -> None:
    """A link to the host is a link, no more; what stands at the place already is not written into."""
    files, victim = tmp_path / "files", tmp_path / "victim"
    files.mkdir()
    victim.mkdir()
    for number in range(3):
        (files / str(number)).write_text(str(number))
    root = tree(entries("+a/one", f"out -> {victim}", "+b"))
    root.put("etc/hosts", Text(b"ours"))
    fd = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
    write.write(root, tmp_path / "root", {"0": fd}, lambda _: None)
    assert (tmp_path / "root/a/one").stat().st_ino == (files / "0").stat().st_ino
    assert (tmp_path / "root/out").readlink() == victim
    assert (tmp_path / "root/etc/hosts").read_text() == "ours"
    with pytest.raises(FileExistsError):
        write.write(root, tmp_path / "root", {"0": fd}, lambda _: None)
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write.write(root, tmp_path / "link", {"0": fd}, lambda _: None)
    os.close(fd)
    assert os.listdir(victim) == []
