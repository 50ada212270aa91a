"""What a hostile sandbox or caller tries with the file ops: nothing blocks, nothing leaks, nothing grows."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from ringfence.guest import files
from ringfence.guest.context import CODES
from tests.support.guestharness import Host, guest

RENAME_EXCHANGE = 2
AT_FDCWD = -100
CANARY = b"nobody may touch this"


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


def _code(answer: dict[str, Any]) -> str:
    return str(answer.get("error", {}).get("code"))


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["stat", "ls", "read", "write", "mkdir", "remove"])
@pytest.mark.parametrize("path", ["", "a\0b", 7, None, ["a"], {}, True, "x" * 5000, "a/" * 50_000, "\ud800"])
def test_a_path_that_is_none_is_refused(host: Host, op: str, path: object) -> None:
    """Empty, with NUL, no text, too long, or text no file system can hold: refused, and the next is served."""
    assert _code(host.ask(op, path=path)) == "bad_request"
    assert "error" not in host.ask("stat", path=".")


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("read", {"offset": -1}),
        ("read", {"offset": 2**63}),
        ("read", {"offset": 1.5}),
        ("read", {"length": True}),
        ("read", {"length": "9"}),
        ("ls", {"depth": 0}),
        ("ls", {"depth": 9}),
        ("write", {"mode": 0o10000}),
        ("write", {"mode": -1}),
        ("write", {"append": 1}),
        ("write", {"parents": "yes"}),
        ("mkdir", {"parents": 1}),
        ("remove", {"recursive": "true"}),
        ("move", {"source": "a"}),
        ("move", {"source": "a", "target": 5}),
        ("write", {"path": "/"}),
        ("write", {"path": "a/.."}),
        ("remove", {"path": "/", "recursive": True}),
        ("remove", {"path": "..", "recursive": True}),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(host: Host, home: Path, op: str, fields: dict[str, Any]) -> None:
    """Wrong types and values past their bounds are refused before anything is touched."""
    (home / "a").write_bytes(b"")
    assert _code(host.ask(op, **{"path": "a", **fields})) == "bad_request"
    assert (home / "a").exists()


@pytest.mark.parametrize(
    "path",
    ["../../etc/hostname-x", "..%2f", "%2e%2e/", "..;/", "..\\", "//x//", "\uff0e\uff0e/x", "A/../../../../../x"],
)
def test_path_tricks_are_only_names(host: Host, path: str) -> None:
    """Encoded, doubled and look-alike dots mean nothing here: the kernel is asked for that name, and has none."""
    assert _code(host.ask("stat", path=path)) == "not_found"


def test_every_code_is_one_of_the_documented() -> None:
    """The kernel's errors are told in the agent's own few words."""
    documented = {"not_found", "not_a_file", "exists", "permission", "bad_request", "no_space", "io", "busy"}
    assert set(CODES.values()) <= documented


# -- things that are not files ----------------------------------------------------------------------------------


def test_nothing_that_is_not_a_file_is_opened_for_long(host: Host, home: Path) -> None:
    """A FIFO without a writer, a socket, a device and a directory are refused at once; none of them blocks."""
    os.mkfifo(home / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "socket"))
    (home / "null").symlink_to("/dev/null")
    (home / "tty").symlink_to("/dev/tty")
    for name in ("pipe", "socket", "null", "."):
        assert _code(host.ask("read", path=name)) == "not_a_file"
    for name in ("pipe", "socket", "null"):
        assert _code(host.put(name, b"x", append=True)) == "not_a_file"
    assert _code(host.ask("read", path="tty")) != "None"
    assert {e["name"]: e["type"] for e in host.ask("ls", path=".")["entries"]} == {
        "pipe": "other",
        "socket": "other",
        "null": "symlink",
        "tty": "symlink",
    }
    listener.close()


def test_a_write_replaces_a_fifo_and_a_link(host: Host, home: Path) -> None:
    """Every name the host will write may be a trap: the name is replaced, what it led to is not touched."""
    canary = home.parent / "canary"
    canary.write_bytes(CANARY)
    os.mkfifo(home / "pipe")
    (home / "link").symlink_to(canary)
    os.link(canary, home / "hard")
    for name in ("pipe", "link", "hard"):
        assert host.put(name, b"mine") == {"size": 4}
        assert (home / name).read_bytes() == b"mine"
        assert stat.S_ISREG((home / name).lstat().st_mode)
    assert canary.read_bytes() == CANARY
    (home / "dir").mkdir()
    assert _code(host.put("dir", b"mine")) == "not_a_file"


@pytest.mark.parametrize("name", ["self/environ", "self/mem", "1/environ", "meminfo", "self/maps"])
def test_the_agents_own_state_is_not_a_file(host: Host, home: Path, name: str) -> None:
    """Links into /proc lead to this agent, not to a program: its environment and memory are not handed out."""
    (home / "p").symlink_to(f"/proc/{name}")
    assert _code(host.ask("read", path="p", length=100)) in {"not_a_file", "permission"}
    assert _code(host.put("p", b"x", append=True)) in {"not_a_file", "permission", "bad_request"}


# -- sizes ------------------------------------------------------------------------------------------------------


def test_a_sparse_file_is_read_no_further_than_asked(host: Host, home: Path) -> None:
    """Of a tebibyte that is not there, the reader gets what it asked for, and learns the size."""
    with open(home / "sparse", "wb") as file:
        file.truncate(1 << 40)
    reply = host.open("read", path="sparse", length=1_000_000)
    assert reply.answer() == {"size": 1_000_000, "total": 1 << 40}
    assert len(reply.out) == 1_000_000


def test_a_sparse_file_does_not_fill_the_agent(host: Host, home: Path) -> None:
    """A reader that does not read gets one window; the rest stays on the disk."""
    with open(home / "sparse", "wb") as file:
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = host.open("read", path="sparse", automatic=False)
    host.settle()
    assert len(reply.out) == 256 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
    reply.cancel()
    assert reply.answer() == {}


def test_a_growing_file_ends(host: Host, home: Path) -> None:
    """A file that grows while it is read ends where it ended when it was opened."""
    (home / "log").write_bytes(b"a" * 600_000)
    reply = host.open("read", path="log", automatic=False)
    host.settle()
    with open(home / "log", "ab") as file:
        file.write(b"b" * 600_000)
    reply.grant(1_000_000)
    assert reply.answer() == {"size": 600_000, "total": 600_000}
    assert bytes(reply.out) == b"a" * 600_000


def test_a_shrinking_file_ends(host: Host, home: Path) -> None:
    """A file cut while it is read ends early, and says how much was sent."""
    (home / "log").write_bytes(b"a" * 600_000)
    reply = host.open("read", path="log", automatic=False)
    host.settle()
    os.truncate(home / "log", 10)
    reply.grant(1_000_000)
    assert reply.answer() == {"size": 256 * 1024, "total": 600_000}


def test_many_entries_are_cut(host: Host, home: Path) -> None:
    """A listing stops at its bound of entries and says so."""
    for number in range(files.MOST_ENTRIES + 5):
        os.close(os.open(home / f"{number}", os.O_CREAT | os.O_WRONLY))
    answer = host.ask("ls", path=".")
    assert len(answer["entries"]) == files.MOST_ENTRIES
    assert answer["truncated"] is True


def test_long_names_are_cut(host: Host, home: Path) -> None:
    """A listing stops before it outgrows a frame: names that JSON makes six times as long included."""
    deep = home / ("\x01" * 250) / ("\x01" * 250) / ("\x01" * 250)
    deep.mkdir(parents=True)
    for number in range(1200):
        (deep / (f"{number:04}" + "\x01" * 240)).touch()
    answer = host.ask("ls", path=".", depth=8)
    assert answer["truncated"] is True
    assert 100 < len(answer["entries"]) < 1200
    assert len(json.dumps(answer)) < 4 * 1024 * 1024


@contextmanager
def _files_no_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_leaves_nothing_behind(host: Host, home: Path) -> None:
    """A write the disk refuses answers no_space, keeps the old file and removes the new one."""
    (home / "file").write_bytes(b"old")
    with _files_no_larger_than(100_000):
        reply = host.open("write", path="file")
        reply.send(b"x" * 1_000_000)
        assert _code(reply.answer()) == "no_space"
    assert [entry.name for entry in home.iterdir()] == ["file"]
    assert (home / "file").read_bytes() == b"old"


ON_A_FULL_DISK = """
import ctypes, os, sys
from tests.support.guestharness import guest

NEWUSER, NEWNS, PRIVATE = 0x10000000, 0x20000, 0x44000
root, place, libc = os.geteuid() == 0, sys.argv[1], ctypes.CDLL(None, use_errno=True)
uid = os.getuid()
if libc.unshare(NEWNS if root else NEWUSER | NEWNS):
    sys.exit(77)
if not root:
    open("/proc/self/uid_map", "w").write(f"{uid} {uid} 1")
if libc.mount(b"none", b"/", None, PRIVATE, None) or libc.mount(b"none", place.encode(), b"tmpfs", 0, b"size=256k"):
    sys.exit(77)
with guest(place) as host:
    reply = host.open("write", path="a/file")
    reply.send(b"x" * 1_000_000)
    assert reply.answer()["error"]["code"] == "no_space", reply.end
    assert os.listdir(place + "/a") == [], os.listdir(place + "/a")
    assert host.put("a/file", b"x" * 100_000) == {"size": 100_000}
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The same on a file system that is really full, and there is room again afterwards."""
    argv = [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    if done.returncode == 77:
        pytest.skip("no mount namespace to be had here")
    assert (done.returncode, done.stderr) == (0, "")


# -- deep and moving trees --------------------------------------------------------------------------------------


def _dig(top: Path, levels: int) -> None:
    """A chain of directories deeper than any path."""
    os.mkdir(top)
    here = os.open(top, os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_tree_deeper_than_any_path_is_removed(host: Host, home: Path) -> None:
    """5,000 levels go without recursion, on two descriptors, while other requests are answered."""
    _dig(home / "deep", 5000)
    before = _descriptors()
    reply = host.open("remove", path="deep", recursive=True)
    assert "error" not in host.ask("stat", path="/")
    assert _descriptors() <= before + 4
    assert reply.answer(60) == {}
    assert not (home / "deep").exists()


def test_a_wide_tree_is_removed(host: Host, home: Path) -> None:
    """More subdirectories than are remembered at once, each with something inside."""
    for number in range(700):
        (home / "wide" / str(number) / "x").mkdir(parents=True)
        (home / "wide" / str(number) / "f").touch()
    assert host.ask("remove", path="wide", recursive=True, patience=60) == {}
    assert not (home / "wide").exists()


def test_a_removal_follows_no_link(host: Host, home: Path) -> None:
    """Links to directories and files outside are unlinked; what they lead to stays."""
    outside = home.parent / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "canary").write_bytes(CANARY)
    for number in range(20):
        (home / "tree" / str(number)).mkdir(parents=True)
        (home / "tree" / str(number) / "dir").symlink_to(outside)
        (home / "tree" / str(number) / "file").symlink_to(outside / "canary")
    (home / "alias").symlink_to(home / "tree")
    assert host.ask("remove", path="alias", recursive=True) == {}
    assert (home / "tree").exists()
    assert host.ask("remove", path="tree", recursive=True) == {}
    assert (outside / "canary").read_bytes() == CANARY
    assert (outside / "inner").exists()


def test_a_removal_can_be_abandoned(host: Host, home: Path) -> None:
    """CANCEL stops a long removal where it is, and gives its descriptors back."""
    for number in range(300):
        (home / "tree" / str(number) / "a" / "b").mkdir(parents=True)
    before = _descriptors()
    reply = host.open("remove", path="tree", recursive=True)
    reply.cancel()
    assert reply.answer() == {}
    host.ask("stat", path=".")
    assert _descriptors() == before


def test_a_directory_of_another_is_not_removed(host: Host, home: Path) -> None:
    """What may not be removed is answered with its reason, and no descriptor is kept."""
    (home / "locked/inner").mkdir(parents=True)
    (home / "locked/inner/file").touch()
    os.chmod(home / "locked/inner", 0o500)
    expected = "None" if os.access(home / "locked/inner", os.W_OK) else "permission"
    before = _descriptors()
    assert _code(host.ask("remove", path="locked", recursive=True)) == expected
    assert _descriptors() == before
    if (home / "locked").exists():
        os.chmod(home / "locked/inner", 0o700)


class Swapper:
    """Exchanges a directory with a link to somewhere else, over and over."""

    def __init__(self, one: Path, other: Path) -> None:
        self._names = os.fsencode(one), os.fsencode(other)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.swaps = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            self.swaps += not self._libc.renameat2(AT_FDCWD, self._names[0], AT_FDCWD, self._names[1], RENAME_EXCHANGE)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_directory_that_is_swapped_for_a_link_leaves_no_debris(host: Host, home: Path) -> None:
    """However often a directory and a link change places, every upload is whole in one of them, and none is left half.

    The sandbox's own root confines; what is asked of the ops is that they neither break nor forget a file.
    """
    (home / "dir").mkdir()
    (home / "target").mkdir()
    (home / "link").symlink_to("target")
    data = b"0123456789" * 10
    with Swapper(home / "dir", home / "link") as swapper:
        for number in range(300):
            assert host.put(f"dir/{number}", data) == {"size": len(data)}
            assert host.open("read", path=f"dir/{number}").answer().get("size", len(data)) == len(data)
            assert _code(host.ask("ls", path=".", depth=3)) == "None"
    assert swapper.swaps > 0
    found = [entry for place in (home / "dir", home / "link", home / "target") for entry in os.scandir(place)]
    assert {entry.stat().st_size for entry in found} == {len(data)}
    assert not [entry.name for entry in found if entry.name.startswith(".ringfence-")]


def test_a_removal_under_a_swap_never_reaches_the_other_side(host: Host, home: Path) -> None:
    """A subdirectory exchanged with a link to a precious one while its parent is removed: the precious one stays."""
    outside = home.parent / "outside"
    outside.mkdir()
    (outside / "canary").write_bytes(CANARY)
    for _ in range(30):
        for number in range(20):
            (home / "tree/dir" / str(number) / "x").mkdir(parents=True, exist_ok=True)
        (home / "tree/link").symlink_to(outside)
        with Swapper(home / "tree/dir", home / "tree/link"):
            host.ask("remove", path="tree", recursive=True)
        assert (outside / "canary").read_bytes() == CANARY
        host.ask("remove", path="tree", recursive=True)
        assert not (home / "tree").exists()


def test_a_tree_that_moves_while_it_is_removed(host: Host, home: Path) -> None:
    """A directory moved elsewhere during its removal never makes the removal climb into its new neighbourhood."""
    (home / "elsewhere").mkdir()
    (home / "elsewhere/canary").write_bytes(CANARY)
    _dig(home / "tree", 3000)
    reply = host.open("remove", path="tree", recursive=True)
    os.rename(home / "tree/d/d", home / "elsewhere/d")
    assert _code(reply.answer(60)) in {"busy", "None", "not_found"}
    assert (home / "elsewhere/canary").read_bytes() == CANARY
    host.ask("remove", path="elsewhere", recursive=True, patience=60)


def test_parents_of_a_long_path_are_made_without_recursion(host: Host) -> None:
    """A path of two thousand directories is made, and removed again."""
    path = "d/" * 1900 + "file"
    assert host.put(path, b"deep") == {"size": 4}
    assert host.get(path) == b"deep"
    assert host.ask("remove", path="d", recursive=True, patience=60) == {}


def test_no_descriptor_is_left(host: Host, home: Path) -> None:
    """Success, refusal and CANCEL of every op give back what they opened."""
    (home / "dir").mkdir()
    os.mkfifo(home / "pipe")
    (home / "big").write_bytes(b"x" * 1_000_000)
    before = _descriptors()
    for _ in range(3):
        host.put("a/b", b"1")
        host.put("a/b", b"1", append=True)
        host.put("dir", b"1")
        host.put("pipe/x", b"1")
        host.put("pipe", b"1", append=True)
        host.ask("read", path="pipe")
        host.ask("read", path="big", offset=2**63 - 1)
        host.ask("ls", path=".", depth=4)
        host.ask("ls", path="big")
        host.ask("mkdir", path="p/q/r", parents=True)
        host.ask("mkdir", path="big/q/r", parents=True)
        host.ask("move", source="a", target="big")
        host.ask("remove", path="a", recursive=True)
        for op, fields in (("read", {"path": "big"}), ("write", {"path": "w"}), ("ls", {"path": "/usr", "depth": 8})):
            reply = host.open(op, automatic=False, **fields)
            reply.cancel()
            reply.answer()
    assert _descriptors() == before
