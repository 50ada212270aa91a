"""Sandboxes that stay, through the SDK, against a real server."""

from __future__ import annotations

import asyncio
import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import AsyncClient, AsyncSandbox, Client, Sandbox
from ringfence.client import DeadlineExceeded
from ringfence.domain.errors import Conflict, NotFound, RingfenceError
from ringfence.domain.process import How
from ringfence.domain.sandbox import State
from tests.support.served import served


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of the session's server."""
    with served().client() as made:
        yield made


@pytest.fixture(scope="module")
def sb(client: Client) -> Iterator[Sandbox]:
    """A sandbox for the tests that leave it as they found it."""
    with Sandbox.create(ttl=1200, client=client) as made:
        yield made


def test_a_sandbox_lives_from_create_to_stop(client: Client) -> None:
    """It can be found by its id and its labels while it lives, and is gone after."""
    with Sandbox.create(labels={"case": "life"}, client=client) as place:
        assert place.info.state is State.RUNNING
        assert Sandbox.connect(place.id, client=client).info.id == place.id
        assert [found.id for found in Sandbox.list({"case": "life"}, client=client)] == [place.id]
        later = place.extend(600).expires_at
        assert later is not None
    assert place.info.state is State.STOPPED
    with pytest.raises(Conflict, match="ended"):
        place.run("1")


def test_a_reset_sandbox_is_the_same_and_new(client: Client) -> None:
    """Id, labels, limits and expiry stay; programs hear that it was reset; memory kills of before are not its own."""
    limits = {"memory_bytes": 64 * 2**20, "processes": 20}
    start = {"code": "import time; time.sleep(600)", "env": {"A": "b"}}
    with Sandbox.create(labels={"case": "reset"}, limits=limits, start=start, client=client) as place:
        before = place.info
        place.files.write("kept", "k")
        running = place.start(["sleep", "600"])
        assert place.run("x = bytearray(2**27)").exit.how is How.OUT_OF_MEMORY
        after = place.reset()
        same = ("id", "labels", "limits", "expires_at", "created_at", "template_digest", "layers", "state")
        assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
        assert "kept" not in [entry.name for entry in place.files.list(".").entries]
        assert [(each.tag, each.running) for each in place.processes()] == [("start", True)]
        with pytest.raises(NotFound):
            running.kill()
        assert place.run("import os; os.kill(os.getpid(), 9)").exit.how is How.SIGNALLED
        assert place.run("x = bytearray(2**27)").exit.how is How.OUT_OF_MEMORY
        assert [event.type for event in client.why(place.id).events].count("sandbox.reset") == 1
    with pytest.raises(Conflict, match="ended"):
        place.reset()


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({}, "bad_program"),
        ({"code": "1", "shell": "true"}, "bad_program"),
        ({"argv": []}, "bad_program"),
        ({"argv": ["a\0b"]}, "bad_program"),
        ({"shell": "true", "cwd": "../x"}, "bad_path"),
        ({"code": "#" * 70_000}, "too_large"),
        ({"shell": "true", "cwd": "/nowhere"}, "guest_not_found"),
    ],
)
def test_a_program_that_cannot_begin_is_refused(client: Client, start: dict[str, object], code: str) -> None:
    """Before or after it was tried; either way no sandbox stays."""
    with pytest.raises(RingfenceError) as refused:
        Sandbox.create(labels={"case": "refused"}, start=start, client=client)
    assert refused.value.code == code
    assert list(Sandbox.list({"case": "refused"}, client=client)) == []


def test_programs_share_files_and_nothing_else(sb: Sandbox) -> None:
    """Each call is a program of its own in the same place."""
    sb.run("x = 1; open('kept', 'w').write('k')").check()
    assert sb.run("print(open('kept').read(), 'x' in globals())").stdout == "k False\n"


def test_exec_takes_shell_text_or_a_list(sb: Sandbox) -> None:
    """Text is the shell's, a list is taken as it is."""
    assert sb.exec("echo a; echo b >&2").stderr == "b\n"
    assert sb.exec(["printf", "%s|", "a b", ";"]).stdout == "a b|;|"
    assert sb.exec("exit 4").exit.code == 4


def test_a_process_outlives_its_call(sb: Sandbox) -> None:
    """A background process is fed, heard again from another handle, and ended."""
    process = sb.start(
        code="import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)", stdin_open=True
    )
    process.send_input("one\n")
    again = sb.process(process.pid)
    heard = next(iter(again.output()))
    assert heard.text == "ONE\n"
    assert again.info().running
    process.close_input()
    assert process.wait().exit.ok


def test_a_process_is_waited_for_only_so_long(sb: Sandbox) -> None:
    """A deadline ends the waiting, not the process; kill ends the process."""
    process = sb.start("sleep 60")
    with pytest.raises(DeadlineExceeded):
        process.wait(deadline=0.3)
    process.kill()
    assert process.wait().exit.how is How.SIGNALLED


def test_files_are_written_read_listed_moved_and_removed(sb: Sandbox) -> None:
    """A file system as a client expects it, bytes intact."""
    data = bytes(range(256)) * 4
    assert sb.files.write("d/a.bin", data).size == 1024
    assert sb.files.read("d/a.bin") == data
    sb.files.write("d/t.txt", "grün")
    assert sb.files.read_text("d/t.txt") == "grün"
    assert {entry.name for entry in sb.files.list("d").entries} == {"a.bin", "t.txt"}
    assert sb.files.stat("d/a.bin").type == "file"
    sb.files.move("d/a.bin", "d/b.bin")
    sb.files.mkdir("d/e/f")
    sb.files.remove("d", recursive=True)
    with pytest.raises(NotFound):
        sb.files.stat("d/b.bin")


def test_large_files_are_streamed_both_ways(sb: Sandbox, tmp_path: Path) -> None:
    """Twenty megabytes go in and out unchanged, to a path or to an open file."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bytes(range(256)) * 80_000)
    assert sb.files.upload(source, "big").size == 256 * 80_000
    assert sb.files.download("big", target) == 256 * 80_000
    assert target.read_bytes() == source.read_bytes()
    buffer = io.BytesIO()
    sb.files.download("big", buffer)
    assert buffer.getvalue() == source.read_bytes()


def test_a_download_that_fails_leaves_what_was_there(sb: Sandbox, tmp_path: Path) -> None:
    """A missing file does not empty a local one."""
    target = tmp_path / "kept"
    target.write_text("before")
    with pytest.raises(NotFound):
        sb.files.download("no-such-file", target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_changes_are_seen(sb: Sandbox) -> None:
    """What happens after `watch` returned is told."""
    sb.files.mkdir("watched")
    with sb.files.watch("watched") as changes:
        sb.files.write("watched/new", "x")
        assert any(change.path.endswith("/new") for change in changes)


def test_a_terminal_is_a_terminal(sb: Sandbox) -> None:
    """The shell has a tty of the given size, is resized, and tells its exit."""
    with sb.terminal(100, 30) as terminal:
        terminal.send("stty size; tty; exit 7\n")
        seen = b"".join(terminal)
        assert b"30 100" in seen
        assert b"/dev/pts/" in seen
        assert terminal.exit is not None
        assert terminal.exit.code == 7


def test_a_port_inside_is_reached_through_a_tunnel(sb: Sandbox) -> None:
    """A web server without any network answers a browser here, several times over."""
    sb.files.write("site/index.html", "inside")
    server = sb.start(["python3", "-m", "http.server", "8123", "--bind", "127.0.0.1", "--directory", "site"])
    sb.exec("for n in $(seq 100); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8123))' "
            "2>/dev/null && break; sleep 0.1; done")  # fmt: skip
    with sb.tunnel(8123) as tunnel:
        for _ in range(3):
            assert urllib.request.urlopen(tunnel.url, timeout=60).read() == b"inside"
    server.kill()


def test_the_asynchronous_sdk_does_the_same() -> None:
    """One program through every asynchronous part."""

    async def session() -> tuple[str, list[str], int | None, bytes]:
        async with AsyncClient(served().url, served().key) as client:
            async with await AsyncSandbox.create(client=client) as place:
                await place.files.write("f", "data")
                async with place.stream("print(open('f').read())") as stream:
                    text = "".join([chunk.text async for chunk in stream])
                async with await place.terminal() as terminal:
                    await terminal.send("exit 5\n")
                    async for _ in terminal:
                        pass
                    code = terminal.exit.code if terminal.exit else None
                process = await place.start("cat", stdin_open=True)
                await process.send_input("x", close=True)
                echoed = (await process.wait()).stdout_bytes
            runs = await asyncio.gather(*(client.run(f"print({n})") for n in range(5)))
            return text, [run.stdout for run in runs], code, echoed

    assert asyncio.run(session()) == ("data\n", ["0\n", "1\n", "2\n", "3\n", "4\n"], 5, b"x")
