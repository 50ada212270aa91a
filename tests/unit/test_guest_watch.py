"""What a watch tells, and what it costs when much happens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.guest import watch
from tests.support.guestharness import Host, Reply, guest


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


def _watching(host: Host, path: str = ".", **fields: Any) -> Reply:
    reply = host.open("watch", path=path, **fields)
    reply.started()
    return reply


def _said(reply: Reply, home: Path) -> list[tuple[str, str]]:
    """The events so far as (type, path below home)."""
    return [(e["type"], os.path.relpath(e["path"], home) if "path" in e else "") for e in reply.events]


def _hears(reply: Reply, home: Path, *wanted: tuple[str, str]) -> None:
    """Wait until all of these were told."""
    try:
        reply.until(lambda r: set(wanted) <= set(_said(r, home)))
    except TimeoutError:
        pytest.fail(f"wanted {wanted}, heard {_said(reply, home)}")


def test_each_kind_of_change_is_told(host: Host, home: Path) -> None:
    """Creating, writing, changing permissions, renaming and removing have each their word."""
    reply = _watching(host)
    (home / "a").write_bytes(b"1")
    _hears(reply, home, ("create", "a"), ("write", "a"))
    (home / "a").chmod(0o600)
    _hears(reply, home, ("chmod", "a"))
    (home / "a").rename(home / "b")
    _hears(reply, home, ("rename", "b"))
    assert reply.events[-1] == {"type": "rename", "path": str(home / "b"), "from": str(home / "a")}
    (home / "b").unlink()
    _hears(reply, home, ("remove", "b"))
    reply.cancel()
    assert reply.answer() == {}


def test_a_flat_watch_stays_flat(host: Host, home: Path) -> None:
    """Without `recursive`, what happens in subdirectories is not told."""
    (home / "sub").mkdir()
    reply = _watching(host)
    (home / "sub/inner").touch()
    (home / "outer").touch()
    _hears(reply, home, ("create", "outer"))
    assert "sub/inner" not in [path for _, path in _said(reply, home)]


def test_a_recursive_watch_sees_everything_below(host: Host, home: Path) -> None:
    """Directories that were there, and those that come, with all that was put into them at once."""
    (home / "old/deep").mkdir(parents=True)
    reply = _watching(host, recursive=True)
    (home / "old/deep/file").touch()
    (home / "new/a/b/c").mkdir(parents=True)
    (home / "new/a/b/c/file").write_bytes(b"1")
    _hears(reply, home, ("create", "old/deep/file"), ("create", "new"), ("create", "new/a/b/c/file"))
    (home / "new/a/b/c/file").write_bytes(b"22")
    _hears(reply, home, ("write", "new/a/b/c/file"))


def test_a_renamed_directory_is_followed(host: Host, home: Path) -> None:
    """After a directory is renamed, what happens inside is told under its new name."""
    (home / "one/in").mkdir(parents=True)
    reply = _watching(host, recursive=True)
    (home / "one").rename(home / "two")
    _hears(reply, home, ("rename", "two"))
    (home / "two/in/file").touch()
    _hears(reply, home, ("create", "two/in/file"))


def test_what_leaves_is_removed_and_what_arrives_is_created(host: Host, home: Path, tmp_path: Path) -> None:
    """A directory moved out is no longer watched; one moved in is, with its contents told."""
    (home / "leaving").mkdir()
    (tmp_path / "arriving").mkdir()
    (tmp_path / "arriving/file").touch()
    reply = _watching(host, recursive=True)
    (home / "leaving").rename(tmp_path / "left")
    _hears(reply, home, ("remove", "leaving"))
    (tmp_path / "left/unseen").touch()
    (tmp_path / "arriving").rename(home / "arrived")
    _hears(reply, home, ("create", "arrived"), ("create", "arrived/file"))
    (home / "arrived/more").touch()
    _hears(reply, home, ("create", "arrived/more"))
    assert not [path for _, path in _said(reply, home) if "unseen" in path]


def test_a_file_can_be_watched(host: Host, home: Path) -> None:
    """A watch on one file tells of it, and ends with it."""
    (home / "file").touch()
    reply = _watching(host, "file")
    (home / "file").write_bytes(b"1")
    _hears(reply, home, ("write", "file"))
    (home / "file").unlink()
    assert reply.answer() == {}
    assert ("remove", "file") in _said(reply, home)


def test_a_watch_ends_with_its_directory(host: Host, home: Path) -> None:
    """There is nothing to tell of a directory that is gone."""
    (home / "dir/inner").mkdir(parents=True)
    reply = _watching(host, "dir", recursive=True)
    (home / "dir/inner").rmdir()
    (home / "dir").rmdir()
    assert reply.answer() == {}
    assert ("remove", "dir") in _said(reply, home)


def test_what_cannot_be_watched_is_refused(host: Host, home: Path) -> None:
    """A missing path and a wrong field are refused at once."""
    assert host.ask("watch", path="nothing")["error"]["code"] == "not_found"
    assert host.ask("watch", path=".", recursive=1)["error"]["code"] == "bad_request"
    assert host.ask("watch", path=5)["error"]["code"] == "bad_request"


def test_repeats_are_merged(host: Host, home: Path) -> None:
    """A program that writes ten thousand times is told of in a few events, the last of them included."""
    reply = _watching(host)
    with open(home / "busy", "wb", buffering=0) as file:
        file.writelines([b"x"] * 10_000)
    reply.until(lambda r: len(r.events) >= 2)
    host.settle(0.2)
    assert 2 <= len(reply.events) < 2_000
    assert _said(reply, home)[-1] == ("write", "busy")


def test_a_reader_that_does_not_keep_up_is_told_so(host: Host, home: Path) -> None:
    """While nothing is read the agent keeps a bounded queue; then "overflow" says that something is missing."""
    big = home / "big"
    big.write_bytes(b"x" * 3_000_000)
    reply = _watching(host)
    hogs = [host.open("read", path="big", automatic=False) for _ in range(8)]
    time.sleep(0.3)  # the window of each fills the channel: nobody reads it now
    for number in range(20_000):
        (home / f"{number}").touch()
    time.sleep(0.3)
    reply.until(lambda r: ("overflow", "") in _said(r, home))
    (home / "after").touch()
    _hears(reply, home, ("create", "after"))
    for hog in hogs:
        hog.cancel()


def test_more_directories_than_may_be_watched(host: Host, home: Path) -> None:
    """Past the bound the watch goes on with what it has, and says that it is not all."""
    for number in range(watch.MOST_WATCHED + 10):
        (home / f"{number:05}").mkdir()
    reply = _watching(host, recursive=True)
    reply.until(lambda r: ("overflow", "") in _said(r, home))
    (home / "file").touch()
    _hears(reply, home, ("create", "file"))


def test_a_watch_follows_no_link(host: Host, home: Path, tmp_path: Path) -> None:
    """A link to a directory is an entry: a loop of links is no loop of watches."""
    (tmp_path / "outside").mkdir()
    (home / "sub").mkdir()
    (home / "sub/up").symlink_to("..")
    (home / "out").symlink_to(tmp_path / "outside")
    reply = _watching(host, recursive=True)
    (tmp_path / "outside/file").touch()
    (home / "file").touch()
    _hears(reply, home, ("create", "file"))
    assert [path for _, path in _said(reply, home) if path.endswith("file")] == ["file"]


def test_a_storm_of_directories_keeps_the_loop_alive(host: Host, home: Path) -> None:
    """While thousands of directories come, move and go, other requests are answered and the watch survives."""
    reply = _watching(host, recursive=True)
    for number in range(300):
        (home / f"{number}/a/b").mkdir(parents=True)
        (home / f"{number}").rename(home / f"r{number}")
        assert "error" not in host.ask("stat", path=".")
    assert host.ask("remove", path=".", recursive=True, patience=60) is not None
    reply.until(lambda r: r.end is not None)


def test_a_cancelled_watch_gives_everything_back(host: Host, home: Path) -> None:
    """Descriptors are returned whenever the opener leaves, started or not."""
    for number in range(200):
        (home / f"{number}/x").mkdir(parents=True)
    host.ask("stat", path=".")
    before = len(os.listdir("/proc/self/fd"))
    for wait in (True, False):
        reply = host.open("watch", path=".", recursive=True)
        if wait:
            reply.started()
            (home / f"new{wait}").mkdir()
        reply.cancel()
        assert reply.answer() == {}
    host.ask("watch", path="nothing")
    assert len(os.listdir("/proc/self/fd")) == before
