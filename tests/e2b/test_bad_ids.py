"""Every route with an id that is no running sandbox of one's own, and with every token that is not its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ringfence.api.compat.e2b import plane
from ringfence.api.compat.e2b.routes import ANY, _absent, table_of
from tests.e2b.server import DOMAIN, Served
from tests.e2b.test_bad_input import CONTROL, NOBODY, STREAMS, UNARY
from tests.e2b.wire import Box, envelope, make

STREAM = {"Content-Type": "application/connect+json"}
RAW = {"Content-Type": "application/octet-stream"}
CELLS = {"E2b-Sandbox-Port": "49999"}
NOT_FOUND = "The sandbox was not found"
# Every route of a sandbox's own services: (method, path, what is sent with it).
Route = tuple[str, str, dict[str, Any]]
DAEMON: list[Route] = [
    *(("POST", path, {"json": body}) for path, body in UNARY.items()),
    *(("POST", path, {"content": envelope(body), "headers": STREAM}) for path, body in STREAMS.items()),
    ("GET", "/files?path=/tmp/x", {}),
    ("HEAD", "/files?path=/tmp/x", {}),
    ("POST", "/files?path=/tmp/stranger", {"content": b"x", "headers": RAW}),
    ("POST", "/files", {"files": {"file": ("/tmp/stranger", b"x")}}),
    ("GET", "/envs", {}),
    ("GET", "/metrics", {}),
    ("POST", "/init", {"json": {}}),
]
INTERPRETER: list[Route] = [
    ("POST", "/execute", {"json": {"code": "1"}, "headers": CELLS}),
    ("GET", "/contexts", {"headers": CELLS}),
    ("POST", "/contexts", {"json": {}, "headers": CELLS}),
    ("DELETE", "/contexts/x", {"headers": CELLS}),
    ("POST", "/contexts/x/restart", {"headers": CELLS}),
]
HEALTH: list[Route] = [("GET", "/health", {}), ("GET", "/health", {"headers": CELLS})]
# What the control plane says of a paused sandbox; those not here leave it as it is, and are below.
PAUSED = {
    ("GET", "/sandboxes/{id}"): 200,
    ("POST", "/sandboxes/{id}/timeout"): 409,
    ("POST", "/sandboxes/{id}/refreshes"): 409,
    ("POST", "/sandboxes/{id}/pause"): 409,
    ("GET", "/sandboxes/{id}/metrics"): 200,
    ("GET", "/sandboxes/{id}/logs"): 200,
    ("GET", "/v2/sandboxes/{id}/logs"): 200,
    ("PUT", "/sandboxes/{id}/network"): 409,
}
WAKES = {
    "/sandboxes/{id}/connect": 201,
    "/v2/sandboxes/{id}/connect": 201,
    "/sandboxes/{id}/resume": 201,
}


def test_every_route_is_tried() -> None:
    """These lists name all that the server serves by a sandbox's id: a new route fails here until it is added."""
    absent: Any = NoControl()
    table = table_of(absent, absent)
    served = {
        (method, "/" + "/".join("{id}" if part == ANY else part for part in pattern))
        for pattern, methods in table.items()
        for method, handler in methods.items()
        if ANY in pattern and handler is not _absent  # what this server does not have is a 501, whatever the id
    }
    assert served == {(method, path) for method, path, _ in CONTROL}
    assert {path for _, path, _ in DAEMON if path.count(".") > 0} == {*plane.UNARY, *plane.STREAMING}


class NoControl:
    """Has every handler."""

    def __getattr__(self, name: str) -> str:
        return name


def paused(server: Served, **more: Any) -> Box:
    """A sandbox that sleeps."""
    box = make(server, **more)
    with server.client() as client:
        assert client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).status_code == 204
    return box


def expired(server: Served) -> Box:
    """A sandbox whose time is over."""
    box = make(server)
    with server.client() as client:
        client.post(f"/sandboxes/{box.id}/timeout", json={"timeout": 0}).raise_for_status()
        deadline = time.monotonic() + 60
        while client.get(f"/sandboxes/{box.id}").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return box


@pytest.fixture(scope="module")
def boxes(server: Served) -> Iterator[dict[str, Box]]:
    """One of each kind: not ada's, or not running."""
    made = {
        "running": make(server),
        "other": make(server),
        "foreign": make(server, server.other_key),
        "killed": make(server),
        "expired": expired(server),
        "never": make(server),
        "paused": paused(server),
    }
    made["killed"].kill()
    made["never"].kill()
    made["never"].made = {**made["never"].made, "sandboxID": NOBODY}
    yield made
    for name in ("running", "other", "paused"):
        made[name].kill()
    with server.client(server.other_key) as client:
        client.delete(f"/sandboxes/{made['foreign'].id}")


def tokens(boxes: dict[str, Box], of: Box) -> dict[str, str | None]:
    """Whom a stranger could try to be, and who it should be."""
    others = {name: boxes[name].made["envdAccessToken"] for name in ("other", "foreign") if boxes[name] is not of}
    return {"none": None, "wrong": "x", "own": of.made["envdAccessToken"], **others}


def asked(client: httpx.Client, route: Route) -> httpx.Response:
    """The answer to one route."""
    method, path, sent = route
    return client.request(method, path, **sent)


@pytest.mark.parametrize("kind", ["killed", "expired", "never", "paused"])
def test_no_service_of_a_sandbox_that_does_not_run(boxes: dict[str, Box], kind: str) -> None:
    """502 in the words that clients look for, whoever asks with whatever token, on every route, the cells' included."""
    box = boxes[kind]
    expected = {"sandboxId": box.id, "message": NOT_FOUND, "code": 502}
    for who, token in tokens(boxes, box).items():
        with box.client(token) as client:
            for route in DAEMON + INTERPRETER + HEALTH:
                answer = asked(client, route)
                assert answer.status_code == 502, (who, route, answer.text)
                assert route[0] == "HEAD" or answer.json() == expected, (who, route)


def test_a_token_opens_its_own_sandbox_alone(boxes: dict[str, Box]) -> None:
    """401 on every route for none, a wrong one, a neighbour's, another tenant's, and nothing is done."""
    for box in (boxes["running"], boxes["foreign"]):
        strangers = {who: token for who, token in tokens(boxes, box).items() if who != "own"}
        for who, token in strangers.items():
            with box.client(token) as client:
                for route in DAEMON:
                    answer = asked(client, route)
                    assert answer.status_code == 401, (who, route, answer.text)
                    assert route[0] == "HEAD" or answer.json()["code"] == 401
                for route in INTERPRETER:
                    if token is None and route[1] != "/execute":
                        continue  # no client shows a token for its contexts: their ids are what one must know
                    assert asked(client, route).status_code == 401, (who, route)
                for dressed in ("/execute/", "//execute", "/%65xecute"):
                    sent = {"json": {"code": "1"}, "headers": CELLS}
                    assert asked(client, ("POST", dressed, sent)).status_code in {401, 404}, (who, dressed)
        assert box.run("ls -A /tmp") == ""


def test_the_control_plane_of_a_paused_sandbox(server: Served, boxes: dict[str, Box]) -> None:
    """Each route answers or says 409; it goes on sleeping, but for those that wake it and the one that ends it."""
    box = boxes["paused"]
    with server.client() as client:
        for method, path, body in CONTROL:
            if (method, path) in PAUSED:
                answer = client.request(method, path.format(id=box.id), json=body)
                assert answer.status_code == PAUSED[method, path], (method, path, answer.text)
            elif path in WAKES:
                answer = client.request(method, path.format(id=box.id), json=body)
                assert answer.status_code == WAKES[path], (path, answer.text)
                client.post(f"/sandboxes/{box.id}/pause", json={"memory": False}).raise_for_status()
            assert client.get(f"/sandboxes/{box.id}").json()["state"] == "paused", path
        with server.client(server.other_key) as stranger:
            for method, path, body in CONTROL:
                answer = stranger.request(method, path.format(id=box.id), json=body)
                assert answer.status_code == 404, (method, path, answer.text)
        assert client.get(f"/sandboxes/{box.id}").json()["state"] == "paused"
        ending = paused(server)
        assert client.delete(f"/sandboxes/{ending.id}").status_code == 204
        assert client.delete(f"/sandboxes/{ending.id}").status_code == 404


def test_only_who_may_use_it_wakes_it(server: Served, boxes: dict[str, Box]) -> None:
    """A sandbox that wakes when it is used sleeps on under strangers' calls."""
    options = {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}
    box = paused(server, **options, network={"allowPublicTraffic": False})
    try:
        strangers = {who: token for who, token in tokens(boxes, box).items() if who != "own"}
        with server.client() as control:
            for who, token in strangers.items():
                with box.client(token) as client:
                    for route in DAEMON:
                        assert asked(client, route).status_code == 401, (who, route)
                    for route in INTERPRETER:
                        assert asked(client, route).status_code == 403, (who, route)
            assert [by_name(box, 8000, token) for token in ("", "x", "x" * 40)] == [403] * 3
            assert control.get(f"/sandboxes/{box.id}").json()["state"] == "paused"
            assert box.run("echo awake") == "awake\n"
            assert control.get(f"/sandboxes/{box.id}").json()["state"] == "running"
    finally:
        box.kill()


def by_name(box: Box, port: int, traffic: str = "") -> int:
    """The status of a GET to a port by its name, over TLS."""
    name = f"{port}-{box.id}.{DOMAIN}"
    trust = ssl.create_default_context(cafile=str(box.server.state / "dev" / DOMAIN / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", box.server.edge_port), timeout=20) as plain,
        trust.wrap_socket(plain, server_hostname=name) as line,
    ):
        head = f"GET / HTTP/1.1\r\nHost: {name}:{box.server.edge_port}\r\nConnection: close\r\n"
        head += f"E2B-Traffic-Access-Token: {traffic}\r\n" if traffic else ""
        line.sendall(f"{head}\r\n".encode())
        found = b""
        with contextlib.suppress(ssl.SSLEOFError):
            while data := line.recv(65536):
                found += data
    return int(found.split(b" ")[1])


def test_a_users_port(server: Served, boxes: dict[str, Box]) -> None:
    """502 of what does not run; of what does, 502 for a closed port, and 403 first without the traffic token."""
    for kind in ("killed", "expired", "paused"):
        assert by_name(boxes[kind], 8000) == 502, kind
    assert by_name(boxes["never"], 8000) == 404
    assert by_name(boxes["running"], 8000) == 502
    closed = make(server, network={"allowPublicTraffic": False})
    neighbour = make(server, network={"allowPublicTraffic": False})
    try:
        wrong = ["", "x" * 40, neighbour.made["trafficAccessToken"], closed.made["envdAccessToken"]]
        assert [by_name(closed, 8000, token) for token in wrong] == [403] * 4
        assert by_name(closed, 8000, closed.made["trafficAccessToken"]) == 502
        with closed.client() as client:
            for route in INTERPRETER:
                assert asked(client, route).status_code == 403, route
    finally:
        closed.kill()
        neighbour.kill()


def test_the_services_ports_by_name(boxes: dict[str, Box]) -> None:
    """A sandbox's own services are behind its name as they are behind headers."""
    for port, told in ((49983, 401), (49999, 404)):
        for kind in ("killed", "expired", "paused", "never"):
            assert by_name(boxes[kind], port) == 502, (port, kind)
        for kind in ("running", "foreign"):
            assert by_name(boxes[kind], port) == told, (port, kind)


def test_by_header_only_the_services_ports_are_there(boxes: dict[str, Box]) -> None:
    """In URL mode a user's port is refused in words, whatever the sandbox is."""
    for kind in ("running", "killed", "paused", "never"):
        with boxes[kind].client(**{"E2b-Sandbox-Port": "8000"}) as client:
            assert client.get("/").status_code in {400, 502}, kind
