"""A sandbox's own services as they are on the wire: what the clients' own tests do not look at."""

from __future__ import annotations

import gzip
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2b.server import Served, api_of
from tests.e2b.wire import START, Box, envelope, envelopes, make

RAW = {"Content-Type": "application/octet-stream"}
STREAM = {"Content-Type": "application/connect+json"}


@pytest.fixture(scope="module")
def box(server: Served) -> Iterator[Box]:
    """A sandbox."""
    made = make(server, envVars={"OF": "sandbox"}, metadata={"kind": "test", "odd name!": "x"})
    yield made
    made.kill()


def begun(line: str, **more: object) -> bytes:
    """A message that starts a shell line."""
    return envelope({"process": {"cmd": "/bin/bash", "args": ["-c", line]}, "stdin": False, **more})


def test_silence_is_broken_by_keepalives(box: Box) -> None:
    """As often as the client asks; on a program's stream and on a watch's."""
    ping = {**STREAM, "Keepalive-Ping-Interval": "1"}
    events = [message for _, message in box.stream(START, begun("sleep 3.5"), **ping)]
    assert events.count({"event": {"keepalive": {}}}) >= 1
    watched = box.stream(
        "/filesystem.Filesystem/WatchDir", envelope({"path": "/tmp"}), **ping, **{"Connect-Timeout-Ms": "3500"}
    )
    assert watched[0] == (0, {"start": {}})
    assert (0, {"keepalive": {}}) in watched
    assert watched[-1][1]["error"]["code"] == "deadline_exceeded"


def test_who_leaves_ends_nothing_and_a_deadline_ends_everything(box: Box) -> None:
    """A stream that breaks off leaves the program; Connect-Timeout-Ms kills it whoever listens."""
    with (
        box.client(**STREAM) as client,
        client.stream("POST", START, content=begun("sleep 400", tag="stays")) as answer,
    ):
        next(answer.iter_raw())
    late = box.client(**STREAM, **{"Connect-Timeout-Ms": "700"})
    with late as client, client.stream("POST", START, content=begun("sleep 400", tag="goes")) as answer:
        next(answer.iter_raw())
    deadline = time.time() + 60
    while (tags := {each.get("tag") for each in box.call("/process.Process/List", {}).json()["processes"]}) != {
        "stays"
    }:
        assert time.time() < deadline, tags
        time.sleep(0.05)
    assert (
        box.call("/process.Process/SendSignal", {"process": {"tag": "stays"}, "signal": "SIGNAL_SIGTERM"}).status_code
        == 200
    )


def test_how_a_program_ended_is_told(box: Box) -> None:
    """A code, or the signal's name; the end is told to who joins late, too."""
    events = [message["event"] for flags, message in box.stream(START, begun("exit 4")) if not flags]
    assert events[-1]["end"] == {"exitCode": 4, "exited": True, "status": "exit status 4", "error": "exit status 4"}
    events = [message["event"] for flags, message in box.stream(START, begun("kill -9 $$")) if not flags]
    assert events[-1]["end"] == {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}
    joined = box.stream("/process.Process/Connect", envelope({"process": {"pid": events[0]["start"]["pid"]}}))
    assert joined[-2][1]["event"]["end"]["status"] == "signal: killed"
    assert joined[-1] == (2, {})


def test_input_is_streamed(box: Box) -> None:
    """In one request of many envelopes, to a program chosen by its tag."""
    sent = envelope({"process": {"cmd": "/bin/cat"}, "tag": "cat"})
    with box.client(**STREAM) as client, client.stream("POST", START, content=sent) as answer:
        pieces = answer.iter_raw()
        seen = next(pieces)
        words = envelope({"start": {"process": {"tag": "cat"}}})
        words += envelope({"data": {"input": {"stdin": "b25l"}}}) + envelope({"keepalive": {}})
        words += envelope({"data": {"input": {"stdin": "dHdv"}}})
        assert box.stream("/process.Process/StreamInput", words) == [(0, {}), (2, {})]
        assert box.call("/process.Process/CloseStdin", {"process": {"tag": "cat"}}).json() == {}
        seen += b"".join(pieces)
    data = "".join(m["event"]["data"]["stdout"] for f, m in envelopes(seen) if not f and "data" in m["event"])
    assert data == "b25ldHdv"


def test_a_file_comes_in_the_part_asked_for(box: Box) -> None:
    """One range; what is no range is the whole file, and what lies outside it is refused."""
    with box.client() as client:
        assert client.post("/files?path=/tmp/part", content=bytes(range(100)), headers=RAW).status_code == 200
        for asked, status, expected in (
            ("bytes=10-19", 206, bytes(range(10, 20))),
            ("bytes=90-", 206, bytes(range(90, 100))),
            ("bytes=-5", 206, bytes(range(95, 100))),
            ("bytes=50-900", 206, bytes(range(50, 100))),
            ("bytes=1-2,5-6", 200, bytes(range(100))),
            ("lines=1-2", 200, bytes(range(100))),
        ):
            answer = client.get("/files?path=/tmp/part", headers={"Range": asked})
            assert (answer.status_code, answer.content) == (status, expected), asked
        assert client.get("/files?path=/tmp/part", headers={"Range": "bytes=100-"}).status_code == 416
        head = client.head("/files?path=/tmp/part")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "100", b"")
        assert head.headers["content-security-policy"].startswith("sandbox")


def test_a_packed_upload_is_unpacked_and_a_file_stays_itself(box: Box) -> None:
    """gzip by piece and by part; written in place, so that links and open files see it."""
    with box.client() as client:
        packed = gzip.compress(b"x" * 3_000_000)
        sent = {**RAW, "Content-Encoding": "gzip"}
        assert client.post("/files?path=/tmp/packed", content=packed, headers=sent).status_code == 200
        assert box.run("stat -c %s /tmp/packed") == "3000000\n"
        box.run("echo old > /tmp/target; ln -s /tmp/target /tmp/link; ln /tmp/target /tmp/hard; chmod 600 /tmp/target")
        assert client.post("/files?path=/tmp/link", content=b"new\n", headers=RAW).json()[0]["path"] == "/tmp/link"
        assert box.run("cat /tmp/hard; stat -c %a /tmp/target; readlink /tmp/link") == "new\n600\n/tmp/target\n"


def test_what_root_owns_is_roots(box: Box) -> None:
    """A file request as root is root's through all its steps, and the next one is the user's again."""
    with box.client() as client:
        query = "/files?path=/tmp/rooted/deep/file&username=root"
        assert client.post(query, content=b"r" * 700_000, headers=RAW).status_code == 200
        assert box.run("stat -c %U /tmp/rooted /tmp/rooted/deep/file") == "root\nroot\n"
        box.call("/process.Process/List", {})
        assert client.post("/files?path=/tmp/rooted/no", content=b"", headers=RAW).status_code == 400
        gone = {"Authorization": "Basic cm9vdDo="}
        assert box.call("/filesystem.Filesystem/Remove", {"path": "/tmp/rooted"}).json()["code"] == "invalid_argument"
        assert box.call("/filesystem.Filesystem/Remove", {"path": "/tmp/rooted"}, **gone).json() == {}
        assert box.run("ls /tmp | grep rooted; id -un") == "user\n"


def test_everything_outlives_the_api(server: Served) -> None:
    """Killed, it comes back knowing tokens, metadata and variables; the sandbox and its programs never noticed."""
    box = make(server, envVars={"OF": "sandbox"}, metadata={"odd name!": "kept"})
    try:
        with (
            box.client(**STREAM) as client,
            client.stream("POST", START, content=begun("sleep 600", tag="old")) as answer,
        ):
            next(answer.iter_raw())
            with server.client() as other:
                other.get("/v2/sandboxes").raise_for_status()  # what was queued for the store is durable by then
            os.kill(api_of(server), signal.SIGKILL)
        deadline = time.time() + 60
        while True:
            try:
                if box.run("echo $OF") == "sandbox\n":
                    break
            except Exception:  # noqa: BLE001 - not back yet
                assert time.time() < deadline, "it did not come back"
                time.sleep(0.1)
        with server.client() as client:
            info = client.get(f"/sandboxes/{box.id}").json()
            assert info["metadata"] == {"odd name!": "kept"}
            assert info["envdAccessToken"] == box.made["envdAccessToken"]
        assert "old" in {each.get("tag") for each in box.call("/process.Process/List", {}).json()["processes"]}
    finally:
        box.kill()
