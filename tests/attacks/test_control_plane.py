"""Attacks on the public door with a key of one's own: another tenant's things, paths out, the node's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.attack.own_server import OwnServer
from tests.attacks.conftest import Box, Run, output

NOWHERE = "s" + "a" * 26

# What each route needs besides its id, so that a request is refused for whose it is and not for what it says.
BODIES: dict[str, dict[str, Any]] = {
    "egress": {"egress": "none"},
    "ports": {"port": 8000},
    "links": {"ttl_seconds": 60},
    "extend": {"ttl_seconds": 60},
    "processes": {"argv": ["true"]},
    "signal": {"signal": "TERM"},
    "resize": {"cols": 80, "rows": 24},
    "mkdir": {"path": "x", "parents": True},
    "move": {"source": "a", "target": "b"},
    "pause": {},
    "resume": {},
    "any": {},
}


def requests_on(document: dict[str, Any], values: dict[str, str]) -> list[tuple[str, str]]:
    """Every method and path of the OpenAPI document that names a sandbox, a run or a subject, filled in."""
    found = []
    for path, methods in document["paths"].items():
        # A secret's name is its tenant's own: the same one of another tenant is another (tests/network has that).
        if "{" in path and "{name}" not in path:
            filled = path
            for name, value in values.items():
                filled = filled.replace("{" + name + "}", value)
            query = "?path=secret.txt" if "/files" in path and "mkdir" not in path and "move" not in path else ""
            found += [(method.upper(), filled + query) for method in methods]
    return found


def asked(client: httpx.Client, method: str, path: str) -> tuple[int, bytes]:
    """Status and body; the ids in a body are blanked, so that two answers can be compared."""
    word = path.partition("?")[0].rpartition("/")[2]
    body = BODIES.get(word) if method == "POST" or word == "egress" else None
    content = b"" if method == "PUT" or word == "input" else None
    words: dict[str, Any] = {"content": content} if body is None else {"json": body}
    answer = client.request(method, path, **words)
    return answer.status_code, answer.content


@pytest.mark.row(117)
def test_another_tenants_things_do_not_exist(
    http: httpx.Client, stranger: httpx.Client, boxes: Callable[..., Box], run: Run
) -> None:
    """Every route with another tenant's ids answers as with ids that never existed; its owner loses nothing."""
    mine = boxes()
    mine.put("secret.txt", b"mine")
    pid = str(mine.start({"argv": ["sleep", "60"], "detach": True}).json()["pid"])
    ran = run("print(1)")["id"]
    document = http.get("/openapi.json").json()
    ports = {"port": "8000", "link": "l" + NOWHERE[1:]}
    theirs = {"sandbox_id": mine.info["id"], "run_id": ran, "pid": pid, **ports, "subject": mine.info["id"]}
    nobodys = {"sandbox_id": NOWHERE, "run_id": "r" + NOWHERE[1:], "pid": pid, **ports, "subject": NOWHERE}
    for (method, path), (_, other) in zip(requests_on(document, theirs), requests_on(document, nobodys), strict=True):
        status, body = asked(stranger, method, path)
        expected, blank = asked(stranger, method, other)
        assert (status, method, path) == (404, method, path)
        assert status == expected
        for value in (mine.info["id"], ran):
            body = body.replace(value.encode(), b"ID")
        for value in (NOWHERE, "r" + NOWHERE[1:]):
            blank = blank.replace(value.encode(), b"ID")
        assert body == blank
    assert mine.get("secret.txt").content == b"mine"
    assert mine.http.get(mine.at).json()["state"] == "running"


@pytest.mark.row(117)
def test_lists_and_events_hold_only_ones_own(stranger: httpx.Client, box: Box) -> None:
    """No list of another tenant names this sandbox."""
    for path in ("/v1/sandboxes", "/v1/runs", "/v1/status"):
        assert box.info["id"] not in stranger.get(path).text


PATHS = [
    "../../../etc/shadow", "..%2f..%2fetc/shadow", "%2e%2e/%2e%2e/etc/shadow", "..;/etc/shadow",
    "..\\..\\etc\\shadow", "/etc/shadow",
    "//etc/shadow", "/proc/self/root/etc/shadow", "/proc/1/root/etc/shadow", "/proc/1/environ", "/proc/1/mem",
    "/proc/self/mem",
    "/dev/mem", "/var/lib/ringfence", "\u2025/etc/shadow", "/run/ringfence/stage/etc/shadow",
    "/proc/1/cwd/../../etc/shadow",
    "/proc/self/fd/3", "/proc/1/fd/3", "/dev/fd/3", ".", "/", "",
]  # fmt: skip


@pytest.mark.row(120)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_never_leads_out(box: Box, path: str) -> None:
    """Reading such a path is refused; nothing of the host and nothing of the agent's comes back."""
    answer = box.get(path)
    assert answer.status_code in {400, 403, 404, 409, 422}
    assert b"root:" not in answer.content


@pytest.mark.row(120)
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/usr/bin/x", "/proc/self/oom_score_adj", "/proc/1/mem", "/dev/null/x", "a\0b"]
)
def test_a_path_outside_the_scratch_cannot_be_written(box: Box, path: str) -> None:
    """Writing outside the places that may be written is refused."""
    answer = box.put(path, b"x")
    assert answer.status_code in {400, 403, 404, 409, 422}
    assert output(box.run("print(6 * 7)")) == b"42\n"


@pytest.mark.row(147)
def test_the_nodes_socket_is_shut_to_other_users(server: OwnServer) -> None:
    """The socket between api and node has mode 0600 and lies where only its owner can go."""
    sockets = [path for path in server.state.rglob("*") if path.is_socket()]
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.row(147)
def test_the_node_survives_rubbish_on_its_socket(server: OwnServer, run: Run) -> None:
    """Lies about length, unknown types, unknown verbs and half a frame end that connection and nothing else."""
    path = next(path for path in server.state.rglob("*.sock") if path.is_socket())
    for rubbish in (
        b"\xff" * 64,
        b"\x00\x00\x00\x04\x01\x00\x00\x00\x01" + b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x63\x00\x00\x00\x01",
        b"\x00\x00\x10",
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(relative(path))
            client.sendall(rubbish)
    assert output(run("print(6 * 7)")) == b"42\n"


def relative(path: Path) -> str:
    """A socket's address has room for about a hundred bytes."""
    return str(path)
