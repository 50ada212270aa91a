"""What E2B's Python client must be able to do, whichever release it is: run with one of them in PYTHONPATH.

It is no test file: `test_matrix.py` runs it once for each release and reads the lines it prints. Nothing of the client
is changed; where a release lacks a call, its older spelling is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import e2b
import websockets.asyncio.client
from claims import claim, tell_all
from e2b import Sandbox

BIG = int(os.environ.get("SMOKE_BIG_MIB", "200")) << 20


VERSION = tuple(int(part) for part in metadata.version("e2b").split(".")[:3])


def create(**more):
    """A new sandbox, by this release's word."""
    return Sandbox.create(**more) if VERSION >= (2,) else Sandbox(**more)


def listed(**query):
    """Every sandbox a list shows."""
    if VERSION < (2,):
        kind = importlib.import_module("e2b.sandbox.sandbox_api").SandboxQuery
        return Sandbox.list(query=kind(**query) if query else None)
    pages, found = Sandbox.list(query=e2b.SandboxQuery(**query) if query else None, limit=1), []
    while pages.has_next:
        found += pages.next_items()
    return found


def raises(call):
    """What a call raised."""
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


# --- life ------------------------------------------------------------------------------------------------------------


@claim
def it_is_created_and_found_from_another_client(box):
    """Another client finds it with its token, and sees what the first did."""
    info = box.get_info()
    assert info.sandbox_id.partition("-")[0] == box.sandbox_id.partition("-")[0]
    assert info.metadata == {"a b": "x&y", "who": "smoke"}
    box.files.write("shared.txt", "seen")
    other = Sandbox.connect(box.sandbox_id)
    assert other.files.read("shared.txt") == "seen"
    assert other.is_running()


@claim
def lists_are_filtered_by_metadata_of_any_letters(box):
    """The filter is encoded twice on its way."""
    mine = box.sandbox_id.partition("-")[0]
    assert mine in {each.sandbox_id.partition("-")[0] for each in listed()}
    found = listed(metadata={"a b": "x&y", "who": "smoke"})
    assert mine in {each.sandbox_id.partition("-")[0] for each in found}
    assert mine not in {each.sandbox_id.partition("-")[0] for each in listed(metadata={"a b": "x"})}


@claim
def its_time_is_changed(box):
    """set_timeout counts from now."""
    box.set_timeout(90)
    end = box.get_info().end_at
    assert 60 < end.timestamp() - time.time() < 91
    box.set_timeout(300)


# --- commands --------------------------------------------------------------------------------------------------------


@claim
def a_command_is_run_to_its_end(box):
    """Output, code, variables, directory, user."""
    done = box.commands.run("echo out $X; echo err >&2; pwd", envs={"Y": "2"}, cwd="/tmp")
    assert (done.stdout, done.stderr, done.exit_code) == ("out 1\n/tmp\n", "err\n", 0)
    assert box.commands.run("whoami; echo $HOME").stdout == "user\n/home/user\n"
    assert box.commands.run("whoami", user="root").stdout == "root\n"
    assert box.commands.run("printf 'gr\\303\\274n \\360\\237\\231\\202'").stdout == "grün 🙂"


@claim
def a_failing_command_raises_with_its_code(box):
    """CommandExitException."""
    error = raises(lambda: box.commands.run("echo why >&2; exit 3"))
    assert isinstance(error, e2b.CommandExitException)
    assert error.exit_code == 3
    assert error.stderr == "why\n"


@claim
def a_directory_that_is_not_there_is_named(box):
    """Before anything runs."""
    error = raises(lambda: box.commands.run("true", cwd="/nowhere"))
    assert isinstance(error, e2b.InvalidArgumentException), type(error)


@claim
def a_command_runs_in_the_background_and_is_joined(box):
    """It is listed, joined by another connection, and killed."""
    handle = box.commands.run("echo begun; sleep 300; echo never", background=True)
    mine = [each for each in box.commands.list() if each.pid == handle.pid]
    assert mine[0].cmd == "/bin/bash"
    assert mine[0].args[-1].startswith("echo begun")
    joined = box.commands.connect(handle.pid)
    assert joined.pid == handle.pid
    handle.disconnect()
    assert [each for each in box.commands.list() if each.pid == handle.pid], "it ended with its client"
    assert box.commands.kill(handle.pid) is True
    error = raises(joined.wait)
    assert isinstance(error, e2b.CommandExitException)
    assert box.commands.kill(handle.pid) is False


@claim
def input_is_sent_and_closed(box):
    """A program that reads what is sent later."""
    more = {"stdin": True} if "stdin" in inspect.signature(box.commands._start).parameters else {}
    handle = box.commands.run("read line; echo got $line", background=True, **more)
    box.commands.send_stdin(handle.pid, "words\n")
    assert handle.wait().stdout == "got words\n"
    if hasattr(box.commands, "close_stdin"):
        handle = box.commands.run("cat; echo end", background=True, **more)
        box.commands.send_stdin(handle.pid, "a\nb")
        box.commands.close_stdin(handle.pid)
        assert handle.wait().stdout == "a\nbend\n"


@claim
def a_command_past_its_time_is_killed(box):
    """The client says so, and nothing of it is left."""
    for seconds in (1, 5, 20):  # on a busy machine the first may not have begun by then
        error = raises(lambda: box.commands.run("echo $$ > late.pid; sleep 300", timeout=seconds))  # noqa: B023
        # The older transport counts by itself, and may be the first to say so.
        late = isinstance(error, e2b.TimeoutException) or (VERSION < (2, 35) and "Timeout" in type(error).__name__)
        assert late, error
        if box.files.exists("late.pid"):
            break
    deadline = time.time() + 60
    pid = int(box.files.read("late.pid"))
    while [each for each in box.commands.list() if each.pid == pid]:
        assert time.time() < deadline, "it still runs"
        time.sleep(0.1)


@claim
def much_output_comes_whole(box):
    """20 MB, more than the limit a run of ours has."""
    done = box.commands.run("head -c 20000000 /dev/zero | tr '\\0' x; echo end", timeout=60)
    assert len(done.stdout) == 20_000_004
    assert done.stdout.endswith("xend\n")


@claim
def a_terminal_is_used_and_resized(box):
    """Bytes both ways, and the size that a program sees."""
    seen = bytearray()
    handle = box.pty.create(e2b.sandbox.commands.command_handle.PtySize(rows=20, cols=70))
    box.pty.send_stdin(handle.pid, b"stty size; echo [$TERM]\n")
    box.pty.resize(handle.pid, e2b.sandbox.commands.command_handle.PtySize(rows=31, cols=99))
    box.pty.send_stdin(handle.pid, b"stty size; exit 7\n")
    error = raises(lambda: handle.wait(on_pty=seen.extend))
    assert error.exit_code == 7
    assert b"20 70" in seen or b"31 99" in seen
    assert b"31 99" in seen
    assert b"[xterm" in seen
    gone = box.pty.create(e2b.sandbox.commands.command_handle.PtySize(rows=20, cols=70))
    assert box.pty.kill(gone.pid) is True


# --- files -----------------------------------------------------------------------------------------------------------


@claim
def files_are_written_and_read_in_every_form(box):
    """Text, bytes, file objects, several at once; as text, bytes and a stream."""
    every = bytes(range(256)) * 100
    wrote = box.files.write("deep/er/text.txt", "grün\n")
    assert wrote.path == "/home/user/deep/er/text.txt"
    assert box.files.read("deep/er/text.txt") == "grün\n"
    box.files.write("/tmp/bytes", every)
    assert bytes(box.files.read("/tmp/bytes", format="bytes")) == every
    box.files.write("object", io.BytesIO(every))
    assert b"".join(box.files.read("object", format="stream")) == every
    box.files.write("~/tilde", "")
    assert box.files.read("tilde") == ""
    entries = [{"path": "many/one", "data": "1"}, {"path": "/tmp/many two", "data": b"2"}]
    (box.files.write_files if hasattr(box.files, "write_files") else box.files.write)(entries)
    assert (box.files.read("many/one"), box.files.read("/tmp/many two")) == ("1", "2")
    if VERSION < (2,):
        box.files.write("/tmp/roots", "r", "root")
    else:
        box.files.write("/tmp/roots", "r", user="root")
    assert box.commands.run("stat -c %U /tmp/roots").stdout == "root\n"


@claim
def two_hundred_megabytes_go_up_and_down(box):
    """As streams: neither side holds them whole."""
    block = os.urandom(1 << 20)

    class Source(io.RawIOBase):
        left = BIG

        def readable(self):
            return True

        def read(self, size=-1):
            take = min(self.left, len(block) if size < 0 else min(size, len(block)))
            self.left -= take
            return block[:take]

        def readinto(self, buffer):
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    box.files.write("big", Source() if VERSION >= (2, 38) else io.BytesIO(block * (BIG >> 20)))
    assert int(box.commands.run("stat -c %s big").stdout) == BIG
    assert sum(len(chunk) for chunk in box.files.read("big", format="stream", request_timeout=120)) == BIG
    box.files.remove("big")


@claim
def names_are_listed_made_moved_and_removed(box):
    """And what is not there is a client's NotFoundException."""
    assert box.files.make_dir("dir/sub") is True
    assert box.files.make_dir("dir/sub") is False
    box.files.write("dir/file", "x")
    assert sorted(each.name for each in box.files.list("dir")) == ["file", "sub"]
    kinds = {each.name: each.type.value for each in box.files.list("dir")}
    assert kinds == {"file": "file", "sub": "dir"}
    moved = box.files.rename("dir/file", "/tmp/else/where")
    assert moved.path == "/tmp/else/where"
    box.files.rename("dir", "/tmp/carried")
    assert box.files.exists("/tmp/carried/sub")
    assert not box.files.exists("dir")
    box.files.remove("/tmp/carried")
    assert isinstance(raises(lambda: box.files.read("dir/file")), e2b.NotFoundException)
    assert isinstance(raises(lambda: box.files.list("nowhere")), e2b.NotFoundException)
    if hasattr(box.files, "get_info"):
        box.commands.run("ln -s /tmp/else/where link")
        info = box.files.get_info("link")
        assert (info.type.value, info.symlink_target, info.owner) == ("file", "/tmp/else/where", "user")
        assert info.permissions == "-rw-r--r--"


@claim
def an_unknown_user_is_refused(box):
    """Before anything is done."""
    error = raises(lambda: box.commands.run("true", user="nobody-here"))
    assert "username" in str(error), error
    assert raises(lambda: box.files.read("shared.txt", user="nobody-here"))


@claim
def changes_are_seen(box):
    """A watch, below too."""
    box.files.make_dir("seen/below")
    handle = box.files.watch_dir("seen", recursive=True)
    box.files.write("seen/below/new.txt", "1")
    box.commands.run("touch seen/touched; mv seen/touched seen/renamed; rm seen/renamed")
    found, deadline = set(), time.time() + 60
    wanted = {("below/new.txt", "create"), ("below/new.txt", "write"), ("renamed", "remove"), ("touched", "rename")}
    while not wanted <= found:
        found |= {(each.name, each.type.value) for each in handle.get_new_events()}
        assert time.time() < deadline, found
        time.sleep(0.05)
    handle.stop()
    assert isinstance(raises(lambda: box.files.watch_dir("not/there")), e2b.NotFoundException)
    assert isinstance(raises(lambda: box.files.watch_dir("shared.txt")), e2b.SandboxException)


@claim
def signed_urls_work_without_a_client(box):
    """Down and up, until they expire."""
    box.files.write("signed.txt", "by url")
    if VERSION < (2,):
        down = box.download_url("signed.txt", use_signature=True, use_signature_expiration=60)
    else:
        down = box.download_url("signed.txt", use_signature_expiration=60)
    assert urllib.request.urlopen(down, timeout=60).read() == b"by url"
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(down.replace("signature=v1_", "signature=v1_x"), timeout=60)
        raise AssertionError("a wrong signature was taken")
    if VERSION < (2,):
        return
    late = raises(
        lambda: urllib.request.urlopen(box.download_url("signed.txt", use_signature_expiration=-1), timeout=60)
    )
    assert late.code == 401
    assert json.loads(late.read())["message"] == "signature is already expired"
    up = box.upload_url("up.txt")
    head = 'Content-Disposition: form-data; name="file"; filename="up.txt"'
    body = f"--b\r\n{head}\r\n\r\nfrom a form\r\n--b--\r\n".encode()
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    urllib.request.urlopen(urllib.request.Request(up, body, kind, method="POST"), timeout=60)
    assert box.files.read("up.txt") == "from a form"


@claim
def what_is_used_is_told(box):
    """Metrics, where this release asks for them."""
    if hasattr(box, "get_metrics"):
        found = box.get_metrics()
        assert found[-1].mem_total > 0
        assert found[-1].disk_used > 0


async def spoken(url, *messages):
    """Each comes back. Not by threads: OpenSSL as Python 3.11 has it may be used by one at a time."""
    trust = ssl.create_default_context()  # which reads SSL_CERT_FILE
    async with websockets.asyncio.client.connect(url, ssl=trust, proxy=None, open_timeout=60) as line:
        for words in messages:
            await line.send(words)
            assert await asyncio.wait_for(line.recv(), 60) == words


@claim
def a_server_inside_is_reached_by_its_name(box):
    """By HTTP and by WebSocket, where names are known; a port that nobody listens at says so."""
    if not os.environ.get("E2B_DOMAIN"):
        return
    box.files.write("echo.py", (Path(__file__).parent / "echo.py").read_text())
    box.commands.run("python3 echo.py 8000", background=True)
    knock = "import socket; socket.create_connection(('localhost', 8000))"
    box.commands.run(f'until python3 -c "{knock}" 2>/dev/null; do sleep 0.05; done')
    assert urllib.request.urlopen(f"https://{box.get_host(8000)}/by/name", timeout=60).read() == b"/by/name"
    asyncio.run(spoken(f"wss://{box.get_host(8000)}/", "grün", b"\0\xff"))
    closed = raises(lambda: urllib.request.urlopen(f"https://{box.get_host(8001)}/", timeout=60))
    assert closed.code == 502
    assert "port is not open" in closed.read().decode()
    if VERSION >= (2, 20):
        private = create(timeout=60, network={"allow_public_traffic": False})
        denied = raises(lambda: urllib.request.urlopen(f"https://{private.get_host(8000)}/", timeout=60))
        assert denied.code == 403
        let_in = {"E2b-Traffic-Access-Token": private.traffic_access_token}
        asked = urllib.request.Request(f"https://{private.get_host(8000)}/", headers=let_in)
        assert raises(lambda: urllib.request.urlopen(asked, timeout=60)).code == 502
        private.kill()


@claim
def files_outlive_a_pause(box):
    """Where this release can ask for files alone: paused it is not running, and connect brings its files back."""
    if VERSION < (2, 60):  # the word for it came late
        return
    other = create(timeout=60)
    other.files.write("kept.txt", "over a pause")
    assert other.pause(mode="filesystem") is True
    assert other.is_running() is False
    assert other.get_info().state.value == "paused"
    mine = {each.sandbox_id for each in listed(state=[e2b.SandboxState.PAUSED])}
    assert other.sandbox_id in mine
    assert other.pause(mode="filesystem") is False
    again = Sandbox.connect(other.sandbox_id)
    assert again.files.read("kept.txt") == "over a pause"
    assert other.is_running() is True
    again.kill()


@claim
def options_that_cannot_be_honoured_are_refused(box):
    """Never ignored."""
    if VERSION >= (2, 51):
        error = raises(lambda: Sandbox.create(allow_internet_access=True))
        assert "400" in str(error), error
        assert "internet" in str(error)
    if VERSION >= (2,):
        assert "pause" in str(raises(box.pause if hasattr(box, "pause") else box.beta_pause)), "pause"
    assert raises(lambda: create(template="no-such-template"))


# --- ends ------------------------------------------------------------------------------------------------------------


@claim
def a_kill_under_a_stream_is_told(box):
    """The stream breaks, and the sandbox is known to be gone."""
    other = create(timeout=60)
    handle = other.commands.run("sleep 300", background=True)
    threading.Timer(0.3, other.kill).start()
    error = raises(handle.wait)
    assert not isinstance(error, e2b.CommandExitException), error
    if VERSION >= (2, 35):  # before, their transport's own error came through
        assert isinstance(error, e2b.SandboxException), (type(error), error)
    assert other.is_running() is False
    assert isinstance(raises(lambda: other.commands.run("true")), e2b.SandboxException)
    if VERSION >= (2,):
        assert other.kill() is False


@claim
def an_expiry_under_a_stream_is_told(box):
    """The same, when its time is over."""
    other = create(timeout=60)
    handle = other.commands.run("sleep 300", background=True)
    other.set_timeout(1)
    error = raises(handle.wait)
    if VERSION >= (2, 35):
        assert isinstance(error, e2b.SandboxException), (type(error), error)
    assert other.is_running() is False
    gone = raises(other.get_info)
    assert isinstance(gone, (e2b.NotFoundException, e2b.SandboxException)), type(gone)


def main() -> int:
    """Every claim on one sandbox."""
    if VERSION < (2, 35):
        gc.disable()  # an abandoned stream collected at the wrong moment locks their httpcore's pool against itself
    box = create(timeout=300, request_timeout=120, metadata={"a b": "x&y", "who": "smoke"}, envs={"X": "1"})
    wrong = tell_all(box)
    box.kill()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
