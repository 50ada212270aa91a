"""What a client says, cut at every byte of it: each time the documented answer or none, and nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringfence.bench.processes import command_line, tree
from tests.e2b.server import Served, api_of
from tests.e2b.wire import START, Box, envelope, make

STREAM, RAW, JSON = "application/connect+json", "application/octet-stream", "application/json"
FORM = "multipart/form-data; boundary=b"
AT_ONCE = 8
STREAMS = 24  # begun, and left by their clients


@dataclass(frozen=True)
class Said:
    """A whole request of a client's."""

    path: str
    kind: str
    body: bytes
    port: str = "49983"
    told: bytes = b" 400 "  # what is answered to a body that ends early; nothing where a shorter one is whole, too
    first: int = 0  # bytes from which on it is not whole


def streamed(path: str, *messages: object) -> Said:
    """A stream's request; its failure is told at the end of an answer that is 200."""
    return Said(path, STREAM, b"".join(envelope(message) for message in messages), told=b'"invalid_argument"')


def form(path: str) -> bytes:
    """One file, as browsers send it."""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{path}"\r\n\r\n'
    return head.encode() + b"contents\r\n--b--"


SAID = {
    "Start": streamed(START, {"process": {"cmd": "/bin/sleep", "args": ["77"]}}),
    "Connect": streamed("/process.Process/Connect", {"process": {"tag": "fed"}}),
    "WatchDir": streamed("/filesystem.Filesystem/WatchDir", {"path": "/tmp"}),
    "a unary call": Said("/filesystem.Filesystem/MakeDir", JSON, b'{"path": "/tmp/made"}', first=1),
    "a file": Said("/files?path=/tmp/cut", RAW, b"contents", told=b""),
    "a form": Said("/files", FORM, form("/tmp/cut")),
    "a cell": Said("/execute", JSON, b'{"code": "open(1)"}', port="49999"),
    "a context": Said("/contexts", JSON, b'{"language": "bash"}', port="49999", first=1),
}
FED = streamed(
    "/process.Process/StreamInput",
    {"start": {"process": {"tag": "fed"}}},
    {"data": {"input": {"stdin": "YWJj"}}},
    {"keepalive": {}},
)


@pytest.fixture(scope="module")
def box(server: Served) -> Iterator[Box]:
    """A sandbox in which `cat` waits for input."""
    made = make(server)
    sent = {"process": {"cmd": "/bin/bash", "args": ["-c", "cat >> /home/user/fed"]}, "stdin": True, "tag": "fed"}
    with (
        made.client(**{"Content-Type": STREAM}) as client,
        client.stream("POST", START, content=envelope(sent)) as answer,
    ):
        next(answer.iter_raw())
        yield made
    made.kill()


def head(box: Box, said: Said, *lines: str) -> bytes:
    """What stands before a body."""
    routed = [f"{name}: {value}" for name, value in box.routed(**{"E2b-Sandbox-Port": said.port}).items()]
    named = [f"POST {said.path} HTTP/1.1", f"Host: 127.0.0.1:{box.server.port}", f"Content-Type: {said.kind}"]
    return "\r\n".join([*named, *routed, "Connection: close", *lines, "", ""]).encode()


def exchanged(box: Box, data: bytes, leave: str = "") -> bytes:
    """Send it, and all that comes back; `leave` by ending our side, or by a reset."""
    with socket.create_connection(("127.0.0.1", box.server.port), timeout=90) as line:
        line.sendall(data)
        if leave == "reset":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        if leave:
            line.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := line.recv(65536):
                found += piece
        return found


def ended(box: Box, said: Said, at: int) -> bytes:
    """A body that says it is over there."""
    return exchanged(box, head(box, said, f"Content-Length: {at}") + said.body[:at])


def left(box: Box, said: Said, at: int) -> bytes:
    """A body that promised more, by a client that ends its side."""
    return exchanged(box, head(box, said, f"Content-Length: {len(said.body)}") + said.body[:at], "end")


def slammed(box: Box, said: Said, at: int) -> bytes:
    """The same by one that is gone."""
    return exchanged(box, head(box, said, f"Content-Length: {len(said.body)}") + said.body[:at], "reset")


def unchunked(box: Box, said: Said, at: int) -> bytes:
    """A body in chunks, cut in the middle of one."""
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in said.body[: at + 1])[:-3]
    return exchanged(box, head(box, said, "Transfer-Encoding: chunked") + framed, "end")


def every(box: Box, said: Said, way: Callable[[Box, Said, int], bytes]) -> list[bytes]:
    """Cut at every byte."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda at: way(box, said, at), range(said.first, len(said.body))))


def descriptors(box: Box) -> dict[str, int]:
    """How many the api, the node and everything in the sandbox have open, as far as we may look."""
    found: dict[str, int] = {}
    serve = int(Path(f"/proc/{api_of(box.server)}/stat").read_text().rpartition(")")[2].split()[1])  # the api's parent
    for pid in tree(serve):
        words = command_line(pid)
        part = next((name for name in ("ringfence.api", "ringfence.node") if f"-m {name}" in words), "")
        with contextlib.suppress(OSError):
            if box.id in Path(f"/proc/{pid}/cgroup").read_text():
                part = f"inside, {pid}"
            if part:
                found[part] = found.get(part, 0) + len(os.listdir(f"/proc/{pid}/fd"))
    return found


def programs(box: Box) -> list[list[str]]:
    """What runs inside."""
    listed = box.call("/process.Process/List", {}).json()["processes"]
    return [each["config"].get("args", []) for each in listed]


@contextlib.contextmanager
def nothing_left(box: Box) -> Iterator[None]:
    """Programs, files and descriptors afterwards are those from before."""
    box.run("true")
    running, before = programs(box), descriptors(box)
    yield
    deadline = time.monotonic() + 60
    while True:
        after = descriptors(box)
        more = {part: count for part, count in after.items() if count > before.get(part, 0)}
        new = [each for each in programs(box) if each not in running]
        if not more and not new:
            break
        assert time.monotonic() < deadline, (more, before, new)
        time.sleep(0.1)
    assert box.run("ls -A /tmp; echo alive") == "alive\n"


@pytest.mark.parametrize("name", SAID)
def test_cut_at_any_byte(box: Box, name: str) -> None:
    """A body that ends early is told so; one that breaks off is not answered as if it had not."""
    said = SAID[name]
    with nothing_left(box):
        for at, answer in enumerate(every(box, said, ended) if said.told else []):
            assert said.told in answer, (at, answer)
        for way in (left, unchunked):
            for at, answer in enumerate(every(box, said, way)):
                assert b" 200 " not in answer or (said.told and said.told in answer), (way.__name__, at, answer)
                assert b" 500 " not in answer, (way.__name__, at, answer)
                assert b'"event"' not in answer, (way.__name__, at, answer)
        every(box, said, slammed)


def test_input_cut_at_any_byte(box: Box) -> None:
    """Whole messages before the cut are fed, what is cut is not, and the program goes on waiting for more."""
    first = len(envelope({"start": {"process": {"tag": "fed"}}}))
    second = first + len(envelope({"data": {"input": {"stdin": "YWJj"}}}))
    with nothing_left(box):
        for at, answer in enumerate(every(box, FED, ended)):
            whole = at in {first, second}
            assert (b'"error"' in answer) != whole, (at, answer)
        for way in (left, unchunked, slammed):
            for answer in every(box, FED, way):
                assert b" 500 " not in answer, answer
    deadline = time.monotonic() + 60
    while not (fed := box.run("cat fed")):
        assert time.monotonic() < deadline
    assert fed == "abc" * fed.count("abc")
    assert box.call("/process.Process/SendInput", {"process": {"tag": "fed"}, "input": {"stdin": "eA=="}}).json() == {}


def test_clients_that_leave_their_streams_leave_nothing(box: Box) -> None:
    """Watches and joined programs are followed for nobody; a program that was started goes on, which is E2B's rule."""
    asked = {
        "/filesystem.Filesystem/WatchDir": {"path": "/tmp"},
        "/process.Process/Connect": {"process": {"tag": "fed"}},
    }
    with nothing_left(box):
        for path, message in asked.items():
            lines = []
            for _ in range(STREAMS):
                line = socket.create_connection(("127.0.0.1", box.server.port), timeout=90)
                said = streamed(path, message)
                line.sendall(head(box, said, f"Content-Length: {len(said.body)}") + said.body)
                lines.append(line)
            for line in lines:
                found = b""
                while b'"start"' not in found:
                    piece = line.recv(4096)
                    assert piece, (path, found)
                    found += piece
            for line in lines:
                line.close()


def test_a_create_cut_at_any_byte_makes_nothing(server: Served, box: Box) -> None:
    """400, or no answer; and the list of sandboxes is what it was."""
    body = json.dumps({"templateID": "base", "timeout": 60}).encode()
    lines = ["POST /v2/sandboxes HTTP/1.1", f"Host: 127.0.0.1:{server.port}", f"X-API-Key: {server.key}"]
    lines += ["Content-Type: application/json", "Connection: close"]

    def cut(at: int) -> tuple[bytes, bytes]:
        heads = ["\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode() for size in (at, len(body))]
        return exchanged(box, heads[0] + body[:at]), exchanged(box, heads[1] + body[:at], "end")

    with server.client() as client, ThreadPoolExecutor(AT_ONCE) as pool:

        def there() -> set[str]:
            return {each["sandboxID"] for each in client.get("/v2/sandboxes").json()}

        before = there()
        for at, (short, broken) in enumerate(pool.map(cut, range(1, len(body))), 1):
            assert b" 400 " in short, (at, short)
            assert b" 201 " not in broken, (at, broken)
        assert there() <= before
