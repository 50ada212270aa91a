"""What an honest caller can do with a sandbox's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guestharness import Host, guest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory."""
    place = tmp_path / "home"
    place.mkdir()
    return place


@pytest.fixture
def host(home: Path) -> Iterator[Host]:
    """A served channel."""
    with guest(home) as served:
        yield served


def test_what_is_written_is_read_back(host: Host) -> None:
    """Every byte of a file larger than the window survives the way in and out."""
    data = os.urandom(3_000_000)
    assert host.put("data.bin", data) == {"size": len(data)}
    reply = host.open("read", path="data.bin")
    assert reply.answer() == {"size": len(data), "total": len(data)}
    assert bytes(reply.out) == data


def test_an_empty_file_is_a_file(host: Host, home: Path) -> None:
    """EOF without a byte makes an empty file."""
    assert host.put("empty", b"") == {"size": 0}
    assert (home / "empty").read_bytes() == b""
    assert host.get("empty") == b""


def test_a_part_is_read(host: Host) -> None:
    """`offset` and `length` cut a piece; past the end there is nothing."""
    host.put("digits", b"0123456789")
    assert host.get("digits", offset=3, length=4) == b"3456"
    assert host.get("digits", offset=8, length=99) == b"89"
    assert host.get("digits", offset=99) == b""
    assert host.ask("read", path="digits", length=2) == {"size": 2, "total": 10}


def test_paths_start_at_home_or_at_the_root(host: Host, home: Path, tmp_path: Path) -> None:
    """Relative and absolute paths are both taken, and dots and doubled slashes mean what they always do."""
    host.put("a/./b//c.txt", b"1")
    assert (home / "a/b/c.txt").read_bytes() == b"1"
    host.put(str(tmp_path / "elsewhere"), b"2")
    assert (tmp_path / "elsewhere").read_bytes() == b"2"
    assert host.get("../elsewhere") == b"2"


def test_missing_directories_are_made_unless_told_otherwise(host: Host, home: Path) -> None:
    """`parents` is true for a write unless the caller says no."""
    host.put("x/y/z/file", b"")
    assert (home / "x/y/z/file").exists()
    assert host.open("write", path="no/file", parents=False).answer()["error"]["code"] == "not_found"
    assert not (home / "no").exists()


def test_a_mode_is_honoured(host: Host, home: Path) -> None:
    """The permissions asked for are those it gets, whatever the umask."""
    host.put("script.sh", b"#!/bin/sh\n", mode=0o777)
    assert stat.S_IMODE((home / "script.sh").stat().st_mode) == 0o777


def test_a_replaced_file_keeps_its_permissions(host: Host, home: Path) -> None:
    """Writing over a script leaves it executable; a new file is readable by all."""
    host.put("script.sh", b"old", mode=0o751)
    host.put("script.sh", b"new")
    assert stat.S_IMODE((home / "script.sh").stat().st_mode) == 0o751
    host.put("plain", b"")
    assert stat.S_IMODE((home / "plain").stat().st_mode) == 0o644


def test_a_file_appears_whole(host: Host, home: Path) -> None:
    """Until EOF the old contents stand, and nothing of the new remains when the writer gives up."""
    host.put("page", b"old")
    reply = host.open("write", path="page")
    reply.send(b"new" * 1000)
    host.settle()
    assert (home / "page").read_bytes() == b"old"
    reply.cancel()
    assert reply.answer() == {}
    assert [entry.name for entry in home.iterdir()] == ["page"]
    assert (home / "page").read_bytes() == b"old"


def test_appending_adds(host: Host, home: Path) -> None:
    """`append` makes the file when needed, adds after what is there, and follows a link."""
    host.put("log", b"one\n", append=True)
    (home / "link").symlink_to("log")
    host.put("link", b"two\n", append=True, mode=0o600)
    assert (home / "log").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((home / "log").stat().st_mode) == 0o600


def test_stat_describes_without_following(host: Host, home: Path) -> None:
    """A link is a link, with its target."""
    host.put("file", b"12345", mode=0o640)
    (home / "link").symlink_to("/etc/passwd")
    (home / "dir").mkdir()
    os.mkfifo(home / "pipe")
    entry = host.ask("stat", path="file")["entry"]
    assert (entry["name"], entry["path"], entry["type"]) == ("file", str(home / "file"), "file")
    assert (entry["size"], entry["mode"]) == (5, 0o640)
    assert (entry["uid"], entry["gid"]) == (os.getuid(), os.getgid())
    assert entry["mtime"] == pytest.approx((home / "file").stat().st_mtime)
    assert "target" not in entry
    link = host.ask("stat", path="link")["entry"]
    assert (link["type"], link["target"]) == ("symlink", "/etc/passwd")
    assert host.ask("stat", path="dir")["entry"]["type"] == "dir"
    assert host.ask("stat", path="pipe")["entry"]["type"] == "other"
    assert host.ask("stat", path="/")["entry"]["name"] == "/"


def test_ls_lists_sorted(host: Host, home: Path) -> None:
    """One level by default, more on request, always in the order of paths."""
    for path in ("b/two", "b/deep/three", "a", "c"):
        host.put(path, b"")
    answer = host.ask("ls", path=".")
    assert [entry["name"] for entry in answer["entries"]] == ["a", "b", "c"]
    assert answer["truncated"] is False
    paths = [entry["path"] for entry in host.ask("ls", path=str(home), depth=2)["entries"]]
    assert paths == [str(home / p) for p in ("a", "b", "b/deep", "b/two", "c")]
    assert len(host.ask("ls", path=".", depth=8)["entries"]) == 6


def test_ls_of_a_link_lists_what_it_leads_to(host: Host, home: Path) -> None:
    """The directory asked for may be a link; links inside it are entries, never entered."""
    host.put("real/file", b"")
    (home / "real/loop").symlink_to("..")
    (home / "link").symlink_to("real")
    entries = host.ask("ls", path="link", depth=8)["entries"]
    assert [(entry["name"], entry["type"]) for entry in entries] == [("file", "file"), ("loop", "symlink")]


def test_mkdir(host: Host, home: Path) -> None:
    """A directory is made; with `parents` it may exist and those above are made too."""
    assert host.ask("mkdir", path="one")["entry"]["type"] == "dir"
    assert host.ask("mkdir", path="one")["error"]["code"] == "exists"
    assert host.ask("mkdir", path="two/three")["error"]["code"] == "not_found"
    assert host.ask("mkdir", path="two/three", parents=True)["entry"]["path"] == str(home / "two/three")
    assert host.ask("mkdir", path="two/three", parents=True)["entry"]["type"] == "dir"


def test_move(host: Host, home: Path) -> None:
    """A file is renamed, replacing another; a directory moves with its contents."""
    host.put("a", b"new")
    host.put("b", b"old")
    assert host.ask("move", source="a", target="b")["entry"]["size"] == 3
    assert not (home / "a").exists()
    host.put("d/inside", b"")
    host.ask("move", source="d", target="e")
    assert (home / "e/inside").exists()
    assert host.ask("move", source="a", target="c")["error"]["code"] == "not_found"


def test_move_to_another_mount(host: Host, home: Path) -> None:
    """Between mounts a file is copied with its permissions and its time, a link as a link; a directory is refused."""
    other = Path("/dev/shm")
    if other.stat().st_dev == home.stat().st_dev:
        pytest.skip("one mount only")
    target = other / f"ringfence-test-{os.getpid()}"
    data = os.urandom(1_000_000)
    host.put("file", data, mode=0o750)
    os.utime(home / "file", (1, 2))
    try:
        entry = host.ask("move", source="file", target=str(target))["entry"]
        assert (entry["size"], entry["mode"], entry["mtime"]) == (len(data), 0o750, 2)
        assert target.read_bytes() == data
        assert not (home / "file").exists()
        (home / "link").symlink_to("/nowhere")
        assert host.ask("move", source="link", target=str(target))["entry"]["target"] == "/nowhere"
        (home / "dir").mkdir()
        assert host.ask("move", source="dir", target=str(target) + "d")["error"]["code"] == "bad_request"
        assert [left.name for left in other.glob(".ringfence-*")] == []
    finally:
        target.unlink(missing_ok=True)


def test_remove(host: Host, home: Path) -> None:
    """Files, links and empty directories go; a full one only with `recursive`."""
    host.put("file", b"")
    (home / "link").symlink_to("/etc")
    (home / "empty").mkdir()
    host.put("full/a/b/c", b"")
    for path in ("file", "link", "empty"):
        assert host.ask("remove", path=path) == {}
    assert host.ask("remove", path="full")["error"]["code"] == "exists"
    assert host.ask("remove", path="full", recursive=True) == {}
    assert list(home.iterdir()) == []
    assert host.ask("remove", path="full", recursive=True)["error"]["code"] == "not_found"


def test_names_that_are_not_text_are_shown_and_can_be_used(host: Host, home: Path) -> None:
    """A name that is not UTF-8 comes with its bytes, and JSON that any reader takes."""
    raw = b"caf\xe9"
    with open(os.path.join(os.fsencode(home), raw), "wb"):
        pass
    (entry,) = host.ask("ls", path=".")["entries"]
    assert entry["name"] == "caf\ufffd"
    assert entry["name_base64"] == "Y2Fm6Q=="
    entry["path"].encode()
    assert host.ask("remove", path="caf\udce9") == {}
    host.put("naïve ☃ \n name", b"")
    assert host.ask("ls", path=".")["entries"][0]["name"] == "naïve ☃ \n name"


def test_several_streams_share_the_channel(host: Host) -> None:
    """A slow reader holds back nobody else."""
    host.put("big", b"x" * 2_000_000)
    slow = host.open("read", path="big", automatic=False)
    host.settle()
    assert len(slow.out) == 256 * 1024
    assert host.put("small", b"quick") == {"size": 5}
    assert host.get("small") == b"quick"
    slow.grant(10)
    slow.until(lambda reply: len(reply.out) == 256 * 1024 + 10)
    slow.cancel()
    assert slow.answer() == {}
