"""Who may ask: keys, hosts, origins, and tenants that do not exist for each other."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar import get
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ringfence.api.app import ROUTES, make_litestar
from ringfence.domain.errors import PlatformFault
from tests.support.fakeapi import FakeApi


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    """One api."""
    with FakeApi() as made:
        yield made


def routes() -> list[tuple[str, str]]:
    """(method, path) of every HTTP route under /v1."""
    found = []
    for handler in ROUTES:
        for path in handler.paths:
            where = path.replace("{sandbox_id:str}", "s" + "a" * 26).replace("{run_id:str}", "r" + "a" * 26)
            where = where.replace("{pid:int}", "5").replace("{subject:str}", "r" + "a" * 26).replace("{port:int}", "80")
            for method in getattr(handler, "http_methods", ()):
                if path.startswith("/v1"):
                    found += [(str(method), where)]
    return found


def keys(api: FakeApi) -> list[dict[str, str]]:
    """Every way not to have a key."""
    expired, _ = api.ring.add("ada", "old", time.time() - 1)
    revoked, made = api.ring.add("ada", "gone")
    api.ring.revoke(made.id)
    return [
        {},
        {"Authorization": f"Bearer {expired}"},
        {"Authorization": f"Bearer {revoked}"},
        {"Authorization": "Bearer rf_" + "A" * 43},
        {"Authorization": f"Basic {api.ada}"},
        {"Authorization": api.ada},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": f"Bearer {api.ada}", "X-API-Key": api.ada},
        {"X-API-Key": api.ada[:-1]},
        {"X-API-Key": ""},
    ]


def test_no_route_answers_without_a_key(api: FakeApi) -> None:
    """Missing, wrong, expired, revoked or doubled: 401 everywhere, and nothing is asked of the node."""
    before = api.node.started
    found = routes()
    assert len(found) >= 25
    with api.client(key=None) as client:
        for headers in keys(api):
            for method, path in found:
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert answer.json()["error"]["code"] == "unauthenticated"
    assert api.node.started == before


@pytest.mark.parametrize("path", ["terminal", "processes/5/attach", "tunnel/80"])
def test_no_websocket_opens_without_a_key(api: FakeApi, path: str) -> None:
    """The handshake itself is refused, with the same body."""
    url = f"ws://127.0.0.1:{api.port}/v1/sandboxes/{'s' + 'a' * 26}/{path}"
    with pytest.raises(InvalidStatus) as caught:
        connect(url, additional_headers={"Authorization": "Bearer rf_no"})
    assert caught.value.response.status_code == 401
    assert b"unauthenticated" in (caught.value.response.body or b"")


def test_both_places_for_a_key_work(api: FakeApi) -> None:
    """One at a time."""
    with api.client(key=None) as client:
        assert client.get("/v1/runs", headers={"X-API-Key": api.ada}).status_code == 200
        assert client.get("/v1/runs", headers={"authorization": f"bearer {api.ada}"}).status_code == 200


def test_a_revoked_key_stops_at_once(api: FakeApi) -> None:
    """The next request is refused."""
    secret, made = api.ring.add("ada")
    with api.client(secret) as client:
        assert client.get("/v1/runs").status_code == 200
        api.ring.revoke(made.id)
        assert client.get("/v1/runs").status_code == 401


def test_the_open_pages_tell_nothing(api: FakeApi) -> None:
    """No tenant, no version of anything below, no script, nothing from elsewhere."""
    with api.client(key=None) as client:
        for path in ("/", "/docs", "/openapi.json", "/health"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert not re.search(r"\b(ada|bob)\b", answer.text)
            assert "<script" not in answer.text
            assert "http://" not in answer.text.replace("http://127.0.0.1", "")
            assert "uvicorn" not in str(answer.headers)
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8642", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8642", 200),
        ("good.example", 200),
        ("good.example:443", 200),
        ("evil.example", 421),
        ("good.example.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example#localhost", 421),
        ("", 421),
    ],
)
def test_only_known_names_are_answered(api: FakeApi, host: str, status: int) -> None:
    """A page that rebinds its name to this address is misdirected."""
    with api.client(key=None) as client:
        assert client.get("/health", headers={"Host": host}).status_code == status


def test_two_hosts_are_none(api: FakeApi) -> None:
    """No one may choose which of them counts."""
    with api.raw() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 421 " in connection.recv(65536)


def test_no_other_origin_is_let_in(api: FakeApi) -> None:
    """No CORS for requests, the exact origin for WebSockets."""
    with api.client() as client:
        answer = client.options("/v1/runs", headers={"Origin": "http://evil", "Access-Control-Request-Method": "POST"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
    url = f"ws://127.0.0.1:{api.port}/v1/sandboxes/{'s' + 'a' * 26}/terminal"
    headers = {"Authorization": f"Bearer {api.ada}"}
    for origin, status in (
        ("http://evil.example", 403),
        ("null", 403),
        (f"http://127.0.0.1:{api.port}.evil", 403),
        (f"http://127.0.0.1:{api.port}", 404),  # the right origin, and no such sandbox
    ):
        with pytest.raises(InvalidStatus) as caught:
            connect(url, additional_headers={**headers, "Origin": origin})
        assert caught.value.response.status_code == status


@pytest.fixture
def things(api: FakeApi) -> dict[str, str]:
    """What ada has."""
    with api.client() as client:
        sandbox = client.post("/v1/sandboxes", json={"labels": {"team": "x"}}).json()["id"]
        run = client.post("/v1/runs", json={"code": "say secret"}).json()["id"]
        client.put(f"/v1/sandboxes/{sandbox}/files/content?path=f", content=b"secret")
        pid = client.post(f"/v1/sandboxes/{sandbox}/processes", json={"shell": "hang", "detach": True}).json()["pid"]
    return {"sandbox": sandbox, "run": run, "pid": str(pid)}


def every(things: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every request that names something of ada's."""
    box, run, pid = (things[name] for name in ("sandbox", "run", "pid"))
    base = f"/v1/sandboxes/{box}"
    return [
        ("GET", f"/v1/runs/{run}", {}),
        ("GET", f"/v1/why/{run}", {}),
        ("GET", f"/v1/why/{box}", {}),
        ("GET", base, {}),
        ("POST", f"{base}/extend", {"json": {"ttl_seconds": 5}}),
        ("POST", f"{base}/reset", {}),
        ("POST", f"{base}/processes", {"json": {"shell": "say x"}}),
        ("POST", f"{base}/processes", {"json": {"shell": "say x", "stream": True}}),
        ("POST", f"{base}/processes", {"json": {"shell": "say x", "detach": True}}),
        ("GET", f"{base}/processes", {}),
        ("GET", f"{base}/processes/{pid}/output", {}),
        ("POST", f"{base}/processes/{pid}/signal", {"json": {"signal": 9}}),
        ("POST", f"{base}/processes/{pid}/resize", {"json": {"cols": 1, "rows": 1}}),
        ("POST", f"{base}/processes/{pid}/input", {"content": b"x"}),
        ("GET", f"{base}/files/content?path=f", {}),
        ("PUT", f"{base}/files/content?path=f", {"content": b"x"}),
        ("GET", f"{base}/files", {}),
        ("GET", f"{base}/files/stat?path=f", {}),
        ("POST", f"{base}/files/mkdir", {"json": {"path": "d"}}),
        ("POST", f"{base}/files/move", {"json": {"source": "f", "target": "g"}}),
        ("DELETE", f"{base}/files?path=f", {}),
        ("GET", f"{base}/files/watch", {}),
        ("DELETE", base, {}),
    ]


def without_id(answer: httpx.Response, *ids: str) -> tuple[int, str]:
    """An answer with the id it repeats taken out."""
    text = answer.text
    for one in ids:
        text = text.replace(one, "ID")
    return answer.status_code, text


def test_anothers_things_do_not_exist(api: FakeApi, things: dict[str, str]) -> None:
    """The same 404 as for a random id, on every route, and nothing of it changes."""
    unknown = {"sandbox": "s" + "b" * 26, "run": "r" + "b" * 26, "pid": things["pid"]}
    with api.client(api.bob) as bob:
        for (method, path, more), (_, nowhere, _) in zip(every(things), every(unknown), strict=True):
            foreign, random = bob.request(method, path, **more), bob.request(method, nowhere, **more)
            assert foreign.status_code == 404, (method, path, foreign.text)
            ids = (*things.values(), *unknown.values())
            assert without_id(foreign, *ids) == without_id(random, *ids)
        assert bob.get("/v1/runs").json()["runs"] == []
        assert bob.get("/v1/sandboxes?label=team=x").json()["sandboxes"] == []
    with api.client() as ada:
        assert ada.get(f"/v1/sandboxes/{things['sandbox']}").json()["state"] == "running"
        assert ada.get(f"/v1/sandboxes/{things['sandbox']}/files/content?path=f").content == b"secret"


@pytest.mark.parametrize("path", ["terminal", "processes/3/attach", "tunnel/80"])
def test_anothers_sandbox_has_no_websockets(api: FakeApi, things: dict[str, str], path: str) -> None:
    """Refused as one that does not exist."""
    url = f"ws://127.0.0.1:{api.port}/v1/sandboxes/{things['sandbox']}/{path}"
    with pytest.raises(InvalidStatus) as caught:
        connect(url, additional_headers={"Authorization": f"Bearer {api.bob}"})
    assert caught.value.response.status_code == 404


def test_status_shows_ones_own_numbers(api: FakeApi, things: dict[str, str]) -> None:
    """Another tenant's pools and counts are not shown."""
    with api.client() as ada, api.client(api.bob) as bob:
        assert ada.get("/v1/status").json()["sandboxes"] >= 1
        status = bob.get("/v1/status").json()
    assert things
    assert (status["sandboxes"], [pool["tenant"] for pool in status["pools"]]) == (0, ["bob"])


def test_a_route_that_forgot_to_declare_does_not_start(api: FakeApi) -> None:
    """The server is not made with it."""

    @get("/v1/forgotten")
    async def forgotten() -> None:
        """Nobody said who may ask."""

    with pytest.raises(PlatformFault, match="forgotten"):
        make_litestar(api.engine, api.store, "x", [*ROUTES, forgotten])
