"""What a stranger sends to E2B's face: ids of nobody, tokens of others, streams cut anywhere. Each has its answer."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2b.server import DOMAIN, Served
from tests.e2b.wire import START, Box, envelope, envelopes, make

NOBODY = "s" + "a" * 26
UNARY = {
    "/process.Process/List": {},
    "/process.Process/SendInput": {"process": {"pid": 1}, "input": {"stdin": ""}},
    "/process.Process/CloseStdin": {"process": {"pid": 1}},
    "/process.Process/SendSignal": {"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"},
    "/process.Process/Update": {"process": {"pid": 1}, "pty": {"size": {"cols": 1, "rows": 1}}},
    "/filesystem.Filesystem/Stat": {"path": "/tmp"},
    "/filesystem.Filesystem/MakeDir": {"path": "/tmp/x"},
    "/filesystem.Filesystem/Move": {"source": "/tmp/a", "destination": "/tmp/b"},
    "/filesystem.Filesystem/ListDir": {"path": "/tmp"},
    "/filesystem.Filesystem/Remove": {"path": "/tmp/none"},
    "/filesystem.Filesystem/CreateWatcher": {"path": "/tmp"},
    "/filesystem.Filesystem/GetWatcherEvents": {"watcherId": "x"},
    "/filesystem.Filesystem/RemoveWatcher": {"watcherId": "x"},
}
STREAMS = {
    START: {"process": {"cmd": "/bin/true"}},
    "/process.Process/Connect": {"process": {"pid": 1}},
    "/process.Process/StreamInput": {"start": {"process": {"pid": 1}}},
    "/filesystem.Filesystem/WatchDir": {"path": "/tmp"},
}
CONTROL = [
    ("GET", "/sandboxes/{id}", None),
    ("DELETE", "/sandboxes/{id}", None),
    ("POST", "/sandboxes/{id}/timeout", {"timeout": 10}),
    ("POST", "/sandboxes/{id}/refreshes", {"duration": 10}),
    ("POST", "/sandboxes/{id}/connect", {"timeout": 10}),
    ("POST", "/v2/sandboxes/{id}/connect", {}),
    ("POST", "/sandboxes/{id}/resume", {"timeout": 10}),
    ("POST", "/sandboxes/{id}/pause", {"memory": False}),
    ("GET", "/sandboxes/{id}/metrics", None),
    ("GET", "/sandboxes/{id}/logs", None),
    ("GET", "/v2/sandboxes/{id}/logs", None),
    ("PUT", "/sandboxes/{id}/network", {}),
]


@pytest.fixture(scope="module")
def box(server: Served) -> Iterator[Box]:
    """A sandbox of ada's."""
    made = make(server)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def ended(server: Served) -> dict[str, Box]:
    """Sandboxes that are no more, or that never were."""
    killed, expired, never = make(server), make(server), make(server)
    killed.kill()
    with server.client() as client:
        assert client.post(f"/sandboxes/{expired.id}/timeout", json={"timeout": 0}).status_code == 204
        deadline = time.time() + 60
        while client.get(f"/sandboxes/{expired.id}").status_code == 200:
            assert time.time() < deadline
            time.sleep(0.05)
    never.kill()
    never.made = {**never.made, "sandboxID": NOBODY}
    return {"killed": killed, "expired": expired, "never": never}


@pytest.mark.parametrize("which", ["killed", "expired", "never"])
def test_a_sandbox_that_is_no_more_is_not_found_on_any_route(server: Served, ended: dict[str, Box], which: str) -> None:
    """The control plane says 404; its own services say 502 in the words that clients look for."""
    gone = ended[which]
    with server.client() as client:
        for method, path, body in CONTROL:
            answer = client.request(method, path.format(id=gone.id), json=body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["code"] == 404
    expected = {"sandboxId": gone.id, "message": "The sandbox was not found", "code": 502}
    with gone.client() as client:
        for path, body in UNARY.items():
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()) == (502, expected), path
        for path in ("/health", "/files?path=/tmp/x", "/envs", "/metrics"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (502, expected), path
        for path, body in STREAMS.items():
            answer = client.post(path, content=envelope(body), headers={"Content-Type": "application/connect+json"})
            assert (answer.status_code, answer.json()) == (502, expected), path
        answer = client.post("/execute", json={"code": "1"}, headers={"E2b-Sandbox-Port": "49999"})
        assert answer.status_code == 502


def test_a_foreign_sandbox_is_not_found(server: Served, box: Box) -> None:
    """Another tenant's key sees what it would see of an id that never was."""
    with server.client(server.other_key) as client:
        for method, path, body in CONTROL:
            answer = client.request(method, path.format(id=box.id), json=body)
            nobody = client.request(method, path.format(id=NOBODY), json=body)
            assert answer.status_code == nobody.status_code == 404, path
            assert answer.text.replace(box.id, NOBODY) == nobody.text
        assert client.get("/v2/sandboxes").json() == []
    with box.client() as client:
        assert client.get("/health").status_code == 204


@pytest.mark.parametrize("bad", ["", "rf_x", "e2b_" + "0" * 40, "e2b_" + "0" * 64, "x" * 300, "e2b_" + "g" * 64])
def test_a_wrong_key_is_told_so(server: Served, bad: str) -> None:
    """401 on every route, there or not."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": bad}, trust_env=False) as client:
        for path in ("/v2/sandboxes", f"/sandboxes/{NOBODY}", "/templates/aliases/x"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, 401)


def test_a_wrong_token_opens_nothing(server: Served, box: Box) -> None:
    """None, a wrong one, another sandbox's, another tenant's: 401 on every service, and nothing is done."""
    other, foreign = make(server), make(server, server.other_key)
    try:
        for token in (None, "x", other.made["envdAccessToken"], foreign.made["envdAccessToken"]):
            with box.client(token) as client:
                for path, body in UNARY.items():
                    answer = client.post(path, json=body)
                    assert (answer.status_code, answer.json()["code"]) == (401, 401), path
                for path in STREAMS:
                    kind = {"Content-Type": "application/connect+json"}
                    assert client.post(path, content=envelope({}), headers=kind).status_code == 401
                for path in ("/envs", "/metrics", "/files?path=/tmp", "/init"):
                    assert client.get(path).status_code == 401, path
                assert client.post("/files?path=/tmp/no", content=b"x").status_code == 401
                assert client.get("/health").status_code == 204
    finally:
        other.kill()
        foreign.kill()
    assert box.run("ls /tmp") == ""


def signature(box: Box, path: str, operation: str, user: str = "", expiry: str = "", token: str | None = None) -> str:
    """A file URL's signature, made as E2B's clients make it."""
    words = [path, operation, user, token or box.made["envdAccessToken"], *([expiry] if expiry else [])]
    digest = hashlib.sha256(":".join(words).encode()).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def test_a_signature_is_for_one_path_one_way_one_user_and_its_time(server: Served, box: Box) -> None:
    """Anything else is 401; a wrong token beside a good signature is, too."""
    with box.client() as client:
        assert (
            client.post(
                "/files?path=/tmp/s", content=b"it", headers={"Content-Type": "application/octet-stream"}
            ).status_code
            == 200
        )
    later, before = str(int(time.time()) + 60), str(int(time.time()) - 1)
    good = {
        "path": "/tmp/s",
        "signature": signature(box, "/tmp/s", "read", expiry=later),
        "signature_expiration": later,
    }
    bad: list[dict[str, Any]] = [
        {**good, "path": "/tmp/t"},
        {**good, "username": "root"},
        {**good, "signature_expiration": str(int(later) + 1)},
        {**good, "signature_expiration": ""},
        {**good, "signature": good["signature"][:-1]},
        {**good, "signature": signature(box, "/tmp/s", "write", expiry=later)},
        {**good, "signature": signature(box, "/tmp/s", "read", expiry=later, token="x")},
        {**good, "signature": ""},
    ]
    for named in (box.routed(None), {}):
        with httpx.Client(base_url=server.url, headers=named, trust_env=False) as client:
            assert client.get("/files", params=good).content == b"it"
            for params in bad:
                assert client.get("/files", params=params).status_code == 401, params
            for moment in (before, "never", "9" * 40 + "x", "-1"):
                late = {
                    **good,
                    "signature": signature(box, "/tmp/s", "read", expiry=moment),
                    "signature_expiration": moment,
                }
                answer = client.get("/files", params=late)
                assert (answer.status_code, answer.json()["message"]) == (401, "signature is already expired"), moment
    with box.client("wrong") as client:
        assert client.get("/files", params=good).status_code == 401


def test_a_stream_cut_at_any_byte_of_an_envelope_starts_nothing(box: Box) -> None:
    """With its side closed, the client is told, or hung up on; nothing runs, and the next call is served."""
    whole = envelope({"process": {"cmd": "/bin/sleep", "args": ["77"]}})

    def cut(at: int) -> tuple[bytes, bytes]:
        return box.raw(START, whole[:at]), box.raw(START, whole[:at], length=len(whole))

    with ThreadPoolExecutor(8) as pool:
        for at, (ended, broken) in enumerate(pool.map(cut, range(len(whole)))):
            head, _, body = ended.partition(b"\r\n\r\n")
            assert b" 200 " in head, head
            end = envelopes(_unchunked(body))[-1]
            assert (end[0], end[1]["error"]["code"]) == (2, "invalid_argument"), (at, end)
            assert b"HTTP" not in broken[8:]
    listed = box.call("/process.Process/List", {}).json()["processes"]
    assert not [each for each in listed if each["config"]["args"] == ["77"]]


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (envelope(b"{"), "invalid_argument"),
        (envelope(b"[]"), "invalid_argument"),
        (envelope(b'{"process": {"cmd": 7}}'), "invalid_argument"),
        (envelope(b"\xff\xfe"), "invalid_argument"),
        (envelope({"process": {}}), "invalid_argument"),
        (envelope({"process": {"cmd": "a\0b"}}), "invalid_argument"),
        (envelope({"process": {"cmd": "/bin/true", "cwd": "/nowhere"}}), "invalid_argument"),
        (envelope({"process": {"cmd": "/bin/true", "cwd": "~other/x"}}), "invalid_argument"),
        (envelope({"process": {"cmd": "/bin/true", "envs": {"A=B": ""}}}), "invalid_argument"),
        (envelope({}, flags=1), "internal"),
        (b"\x00\xff\xff\xff\xff", "resource_exhausted"),
        (envelope({"process": {"cmd": "/bin/true"}}) * 2, "unimplemented"),
    ],
)
def test_a_stream_that_is_not_one_has_an_error_at_its_end(box: Box, body: bytes, code: str) -> None:
    """In the last envelope of an answer that is 200."""
    flags, end = box.stream(START, body)[-1]
    assert (flags, end["error"]["code"]) == (2, code)


def test_deadlines_and_codecs_that_cannot_be_read_are_refused(box: Box) -> None:
    """A number of ten digits, JSON, no compression; a method is called by POST."""
    with box.client() as client:
        late = client.post("/process.Process/List", json={}, headers={"Connect-Timeout-Ms": "1e3"})
        assert (late.status_code, late.json()["code"]) == (400, "invalid_argument")
        proto = client.post("/process.Process/List", content=b"", headers={"Content-Type": "application/proto"})
        assert (proto.status_code, proto.json()["code"]) == (501, "unimplemented")
        packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert client.post("/process.Process/List", content=b"x", headers=packed).status_code == 501
        assert client.get("/process.Process/List").status_code == 501
        assert client.get(START).status_code == 405
        assert client.post(START, json={}).status_code == 415
        for path in ("/init", "/freeze", "/upgrade", "/process.Process/Nothing", "/nowhere"):
            assert client.post(path, json={}).status_code == 404, path


def test_ids_of_programs_and_watchers_that_are_not_there(box: Box) -> None:
    """not_found, each by its own name."""
    wanted = {
        "/process.Process/SendInput": {"process": {"pid": 2**31 - 1}, "input": {"stdin": "eA=="}},
        "/process.Process/SendSignal": {"process": {"tag": "none"}, "signal": "SIGNAL_SIGKILL"},
        "/process.Process/CloseStdin": {"process": {"pid": -1}},
        "/process.Process/Update": {"process": {"pid": 4242}, "pty": {"size": {"cols": 2, "rows": 2}}},
        "/filesystem.Filesystem/GetWatcherEvents": {"watcherId": "x"},
        "/filesystem.Filesystem/RemoveWatcher": {},
        "/filesystem.Filesystem/Stat": {"path": "/none"},
        "/filesystem.Filesystem/Move": {"source": "/none", "destination": "/tmp/x"},
        "/filesystem.Filesystem/ListDir": {"path": "/none"},
    }
    for path, body in wanted.items():
        answer = box.call(path, body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (path, answer.text)
    flags, end = box.stream("/process.Process/Connect", envelope({"process": {"pid": 4242}}))[-1]
    assert (flags, end["error"]["code"]) == (2, "not_found")


def test_input_of_the_wrong_kind_is_an_error(box: Box) -> None:
    """A pipe takes stdin, a terminal takes pty, and what has no input takes none."""
    sent = {"process": {"cmd": "/bin/sleep", "args": ["600"]}, "stdin": False, "tag": "deaf"}
    with (
        box.client(**{"Content-Type": "application/connect+json"}) as client,
        client.stream("POST", START, content=envelope(sent)),
    ):
        deadline = time.time() + 60
        while not (
            found := [
                each for each in box.call("/process.Process/List", {}).json()["processes"] if each.get("tag") == "deaf"
            ]
        ):
            assert time.time() < deadline
        for way in ("stdin", "pty"):
            body = {"process": {"tag": "deaf"}, "input": {way: "eA=="}}
            answer = box.call("/process.Process/SendInput", body)
            assert (answer.status_code, answer.json()["code"]) == (500, "internal"), way
        assert box.call("/process.Process/CloseStdin", {"process": {"pid": found[0]["pid"]}}).status_code == 500
    assert box.call("/process.Process/SendSignal", {"process": {"tag": "deaf"}, "signal": "SIGKILL"}).status_code == 400
    assert (
        box.call("/process.Process/SendSignal", {"process": {"tag": "deaf"}, "signal": "SIGNAL_SIGKILL"}).status_code
        == 200
    )


BODIES: list[tuple[str, bytes, int]] = [
    ("multipart/form-data", b"", 400),
    ("multipart/form-data; boundary=b", b"", 400),
    ("multipart/form-data; boundary=b", b"--b\r\n", 400),
    ("multipart/form-data; boundary=b", b"--bx\r\n\r\n\r\n--b--", 400),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="/tmp/cut"\r\n\r\nhalf',
        400,
    ),
    ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\nno name\r\n--b--", 400),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno path\r\n--b--',
        400,
    ),
    ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 40_000, 400),
    ("text/plain", b"x", 415),
]


@pytest.mark.parametrize(("kind", "body", "status"), BODIES)
def test_an_upload_that_is_none_leaves_nothing(box: Box, kind: str, body: bytes, status: int) -> None:
    """400 or 415, and no file, not even half of one."""
    with box.client() as client:
        answer = client.post("/files", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text
    assert box.run("ls -A /tmp | grep -v '^s$'") == ""


def test_a_broken_upload_leaves_no_new_file(box: Box) -> None:
    """Whether its packing is wrong or its client left."""
    with box.client(**{"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}) as client:
        assert client.post("/files?path=/tmp/packed", content=b"not gzip").status_code == 400
        assert client.post("/files?path=/tmp/packed", content=b"\x1f\x8b\x08\x00").status_code == 400
        odd = {"Content-Encoding": "br"}
        assert client.post("/files?path=/tmp/packed", content=b"x", headers=odd).status_code == 400
    box.raw("/files?path=/tmp/half", b"half of it", length=1000, kind="application/octet-stream")
    deadline = time.time() + 60
    while box.run("ls -A /tmp | grep -v '^s$'"):
        assert time.time() < deadline
    with box.client() as client:
        for params in ({}, {"path": ""}, {"path": "/tmp"}, {"path": "/tmp/none"}, {"path": "~x/y"}, {"path": "a\0b"}):
            assert client.get("/files", params=params).status_code in {400, 404}, params
        assert client.get("/files", params={"path": "/etc/hosts", "username": "nobody-here"}).status_code == 401
        assert (
            client.post(
                "/files?path=/etc/no", content=b"x", headers={"Content-Type": "application/octet-stream"}
            ).status_code
            == 400
        )


def test_a_full_disk_is_told_as_such(server: Served) -> None:
    """507, and the sandbox lives on."""
    small = make(server)
    try:
        # Bit by bit: what is tested is the answer, not how soon limits follow a disk that fills at full speed.
        small.run("for n in $(seq 17); do head -c 60M /dev/zero >> /tmp/fill; sleep 0.1; done")
        with small.client(**{"Content-Type": "application/octet-stream"}) as client:
            answer = client.post("/files?path=/tmp/more", content=b"x" * (8 << 20))
        assert (answer.status_code, answer.json()["code"]) == (507, 507), answer.text
        assert small.run("echo alive") == "alive\n"
    finally:
        small.kill()


FILL = """import os, time
if os.fork():
    os._exit(0)
while True:
    try:
        child = os.fork()
    except OSError:
        time.sleep(0.01)
        continue
    if not child:
        time.sleep(60)
        os._exit(0)
"""


def test_one_program_too_many_is_told_as_such(server: Served) -> None:
    """As a limit, not as a sandbox that is gone: clients take the one for the other by a single word."""
    full = make(server)
    try:
        full.run(f"python3 -c '{FILL}' >/dev/null 2>&1")
        deadline, last = time.time() + 60, {}
        while "error" not in last:
            assert time.time() < deadline
            last = full.stream(START, envelope({"process": {"cmd": "/bin/true"}, "stdin": False}))[-1][1]
        assert last["error"]["code"] == "resource_exhausted", last
        with full.client() as inside:
            assert inside.get("/health").status_code == 204
    finally:
        full.kill()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"templateID": 7}, "templateID"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 10**7}, "ttl_seconds"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"envVars": {"A=B": "x"}}, "env"),
        ({"allow_internet_access": True}, "internet"),
        ({"network": {"allowOut": ["0.0.0.0/0"]}}, "0.0.0.0/0"),
        ({"network": {"egressProxy": {"address": "x"}}}, "egressProxy"),
        ({"network": {"rules": {"a.com": []}}}, "rules"),
        ({"network": {"httpsPorts": [1]}}, "httpsPorts"),
        ({"iam": {"tokens": {}, "x": 1}}, "iam"),
        ({"mcp": {"x": {}}}, "mcp"),
        ({"volumeMounts": [{"name": "v", "path": "/v"}]}, "volumeMounts"),
        ({"somethingNew": "yes"}, "somethingNew"),
        ({"autoPause": True}, "memory"),
        ({"autoPauseMemory": False}, "autoPause"),
        ({"autoResume": {"enabled": True}}, "autoPause"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(server: Served, body: dict[str, Any], words: str) -> None:
    """400 that names the option; no sandbox is made."""
    with server.client() as client:
        before = len(client.get("/v2/sandboxes").json())
        answer = client.post("/v2/sandboxes", json={"templateID": "base", **body})
        assert (answer.status_code, answer.json()["code"]) == (400, 400), answer.text
        assert words in answer.json()["message"]
        assert len(client.get("/v2/sandboxes").json()) == before
        assert client.post("/v2/sandboxes", json={"templateID": "none-such"}).status_code == 404
        assert client.post("/v2/sandboxes", content=b"{").status_code == 400


def test_a_field_that_asks_for_nothing_is_let_pass(server: Served) -> None:
    """Clients of tomorrow send what they did not set."""
    made = make(server, tomorrow=None, volumeMounts=[], iam=None, network={"rules": {}})
    made.kill()


def test_a_create_that_is_repeated_makes_one_sandbox(server: Served) -> None:
    """By its Idempotency-Key; with another body it is refused."""
    with server.client(**{"Idempotency-Key": "once-1"}) as client:
        body = {"templateID": "base", "timeout": 60}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post("/v2/sandboxes", json=body).json(), range(4)))
        assert len({answer["sandboxID"] for answer in answers}) == 1
        assert client.post("/v2/sandboxes", json={**body, "timeout": 61}).status_code == 409
        client.delete(f"/sandboxes/{answers[0]['sandboxID']}")
    with server.client(**{"Idempotency-Key": "Not This"}) as client:
        assert client.post("/v2/sandboxes", json={"templateID": "base"}).status_code == 400


def test_lists_refuse_what_is_no_query(server: Served) -> None:
    """400 for each parameter that cannot be read."""
    with server.client() as client:
        for query in (
            "limit=0",
            "limit=x",
            "limit=101",
            "order=up",
            "state=dead",
            "nextToken=!",
            "startedAfter=never",
            "metadata=%ff",
        ):
            assert client.get(f"/v2/sandboxes?{query}").status_code == 400, query
        assert client.get(f"/sandboxes/metrics?sandbox_ids={NOBODY}").json() == {"sandboxes": {}}


def test_a_host_that_is_not_ours_routes_nowhere(server: Served, box: Box) -> None:
    """A page that rebound its name to this address gets no sandbox, whatever headers it sends; a host beats headers."""
    for host in ("evil.example", f"49983-{box.id}.evil.example", f"x.{DOMAIN}", f"49983-.{DOMAIN}"):
        with box.client(Host=host) as client:
            assert client.post("/process.Process/List", json={}).status_code == 421, host
    other = make(server)
    try:
        with box.client(Host=f"49983-{other.id}-rf.{DOMAIN}:1234") as client:
            assert client.post("/process.Process/List", json={}).status_code == 401
        with box.client(Host=f"api.{DOMAIN}") as client:
            assert client.get("/v2/sandboxes").status_code == 401
    finally:
        other.kill()
    for headers in (
        {"E2b-Sandbox-Port": ""},
        {"E2b-Sandbox-Id": ""},
        {"E2b-Sandbox-Port": "22x"},
        {"E2b-Sandbox-Port": "8080"},
    ):
        with httpx.Client(base_url=server.url, headers={**box.routed(), **headers}, trust_env=False) as client:
            assert client.post("/process.Process/List", json={}).status_code == 400, headers


def test_a_page_may_ask_first(server: Served, box: Box) -> None:
    """CORS is open: what lets in is a token that a page must hold."""
    asks = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "e2b-sandbox-id,x-access-token",
    }
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        answer = client.options("/process.Process/List", headers=asks)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-access-token" in answer.headers["access-control-allow-headers"]
    assert box.call("/process.Process/List", {}).headers["access-control-allow-origin"] == "*"


def test_nothing_is_left_of_all_this(server: Served, box: Box) -> None:
    """No program, no watcher, no file; and the box still works."""
    assert box.call("/process.Process/List", {}).json()["processes"] == []
    assert box.run("echo still here") == "still here\n"
