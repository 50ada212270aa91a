"""What every runtime promises about files, watches and tunnels: the guest's own view, spoken over its channel.

The finer points of the real agent are in tests/unit/test_guest_*.py; here is what all runtimes share.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.conformance.conftest import Box
from tests.support.guestharness import Host, Reply


def test_what_is_written_is_read_back(host: Host) -> None:
    """Every byte of a file larger than the window survives, and programs find it too."""
    data = os.urandom(1_000_000)
    assert host.put("data.bin", data) == {"size": len(data)}
    assert host.get("data.bin") == data
    reply = host.open("exec", shell="cat data.bin | wc -c")
    reply.answer()
    assert reply.out.strip() == b"1000000"


def test_what_a_program_writes_is_read(host: Host) -> None:
    """Files are the same to programs and to requests."""
    host.open("exec", shell="echo from a program > made; echo more >> made").answer()
    assert host.get("made") == b"from a program\nmore\n"


def test_a_piece_is_read(host: Host) -> None:
    """`offset` and `length` cut; past the end there is nothing."""
    host.put("digits", b"0123456789")
    assert host.get("digits", offset=3, length=4) == b"3456"
    assert host.get("digits", offset=99) == b""


def test_an_entry_tells_what_it_is(host: Host) -> None:
    """`stat` gives type, size, owner and permissions; paths are absolute in the answer."""
    host.put("note", b"12345", mode=0o600)
    entry = host.ask("stat", path="note")["entry"]
    known = {"name": "note", "path": "/home/user/note", "type": "file", "size": 5, "mode": 0o600, "uid": 1000}
    assert {key: entry[key] for key in known} == known
    assert host.ask("stat", path="/tmp")["entry"]["type"] == "dir"


def test_a_listing_goes_as_deep_as_asked(host: Host) -> None:
    """`ls` lists what is inside, sorted by path, one level or more."""
    for path in ("top/b", "top/a/inner", "top/c"):
        host.put(path, b"")
    assert [e["name"] for e in host.ask("ls", path="top")["entries"]] == ["a", "b", "c"]
    deep = host.ask("ls", path="top", depth=2)["entries"]
    assert [e["path"].removeprefix("/home/user/top/") for e in deep] == ["a", "a/inner", "b", "c"]


def test_appending_and_replacing(host: Host) -> None:
    """Writing replaces; `append` adds."""
    host.put("log", b"first version, longer")
    host.put("log", b"one\n")
    host.put("log", b"two\n", append=True)
    assert host.get("log") == b"one\ntwo\n"


def test_an_upload_that_is_cancelled_leaves_nothing(host: Host) -> None:
    """A file appears whole or not at all."""
    reply = host.open("write", path="half")
    reply.send(b"only a part")
    reply.cancel()
    reply.answer()
    assert host.ask("stat", path="half")["error"]["code"] == "not_found"


def test_directories_are_made_moved_and_removed(host: Host) -> None:
    """mkdir, move and remove, with the refusals that protect what is there."""
    assert host.ask("mkdir", path="a/b/c")["error"]["code"] == "not_found"
    assert host.ask("mkdir", path="a/b/c", parents=True)["entry"]["type"] == "dir"
    assert host.ask("mkdir", path="a")["error"]["code"] == "exists"
    host.put("a/b/c/file", b"1")
    assert host.ask("move", source="a/b", target="moved")["entry"]["path"] == "/home/user/moved"
    assert host.get("moved/c/file") == b"1"
    assert host.ask("remove", path="moved")["error"]["code"] == "exists"
    assert host.ask("remove", path="moved", recursive=True) == {}
    assert host.ask("stat", path="moved/c/file")["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("op", "fields", "code"),
    [
        ("stat", {"path": "nowhere"}, "not_found"),
        ("read", {"path": "nowhere"}, "not_found"),
        ("read", {"path": "/tmp"}, "not_a_file"),
        ("ls", {"path": "nowhere"}, "not_found"),
        ("remove", {"path": "nowhere"}, "not_found"),
        ("move", {"source": "nowhere", "target": "x"}, "not_found"),
        ("stat", {"path": ""}, "bad_request"),
        ("stat", {"path": "a\0b"}, "bad_request"),
        ("stat", {"path": 7}, "bad_request"),
        ("stat", {}, "bad_request"),
        ("watch", {"path": "nowhere"}, "not_found"),
        ("tunnel", {"port": 9}, "not_listening"),
    ],
)
def test_a_refusal_has_a_code(host: Host, op: str, fields: dict[str, Any], code: str) -> None:
    """What cannot be done is refused with a code a program can act on."""
    answer = host.ask(op, **fields)
    assert answer["error"]["code"] == code
    assert answer["error"]["cause"]


def test_a_full_scratch_is_said(box: Box) -> None:
    """More than the scratch holds is refused as that, and what was there stays readable."""
    box.host.put("small", b"kept")
    reply = box.host.open("write", path="huge")
    reply.send(bytes(40 * 1024 * 1024))
    reply.close_input()
    assert reply.error == "no_space" or reply.answer()["error"]["code"] == "no_space"
    assert box.host.get("small") == b"kept"
    assert box.host.put("after", b"there is room again") == {"size": 19}


def _hears(reply: Reply, *wanted: tuple[str, str]) -> None:
    reply.until(lambda r: set(wanted) <= {(e["type"], e.get("path", "")) for e in r.events})


def test_a_watch_tells(host: Host) -> None:
    """Changes by programs and by requests are told until the watcher leaves."""
    host.ask("mkdir", path="seen")
    reply = host.open("watch", path="seen", recursive=True)
    reply.started()
    host.put("seen/a", b"1")
    host.open("exec", shell="echo 2 > seen/b").answer()
    host.ask("remove", path="seen/b")
    _hears(reply, ("remove", "/home/user/seen/b"))
    assert {e["path"] for e in reply.events if "path" in e} >= {"/home/user/seen/a", "/home/user/seen/b"}
    reply.cancel()
    assert "error" not in reply.answer()


def test_a_tunnel_carries_both_ways(box: Box) -> None:
    """Bytes to a port inside and back, more than the window, each direction ending on its own."""
    server = box.host.open("exec", shell=box.bench.subject.echo_server)
    server.until(lambda r: b"listening" in r.out)
    data = os.urandom(700_000)
    tunnel = box.host.open("tunnel", port=7000)
    tunnel.started()
    tunnel.send(data)
    tunnel.close_input()
    assert "error" not in tunnel.answer()
    assert bytes(tunnel.out) == data
    server.cancel()
