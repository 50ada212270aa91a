"""A real server for each module of attacks, a client, the probes, and the ledger that must be even afterwards."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringfence.attack import table
from ringfence.attack.over_http import OverHttp
from ringfence.attack.own_server import OwnServer
from ringfence.attack.runner import Attack, Result
from ringfence.client import Client
from tests.support import ledger
from tests.support.canaries import Canaries
from tests.support.node import Node
from tests.support.subjects import SUBJECTS

TEMPLATES = Path(os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates"))
needs_templates = pytest.mark.skipif(
    not (TEMPLATES / "index" / "base.json").exists(), reason="no built template; run `ringfence templates build base`"
)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker by which a test says which rows of the catalogue it stands for."""
    config.addinivalue_line("markers", "row(*numbers): rows of the catalogue of hostile behaviours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attacks need a template to run in; starting a server takes longer than a unit test may."""
    for item in items:
        if Path(__file__).parent in Path(str(item.fspath)).parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    """Tokens planted around the server."""
    return Canaries()


@pytest.fixture(scope="module")
def server(canaries: Canaries) -> Iterator[OwnServer]:
    """`ringfence serve` on a fresh state directory; when it has stopped, nothing of it may be left on the host."""
    if not (TEMPLATES / "index" / "base.json").exists():
        pytest.skip("no built template; run `ringfence templates build base`")
    own = OwnServer(TEMPLATES, canaries.env())
    nowhere = Path("/nonexistent/ringfence-ledger")
    before = ledger.snapshot(nowhere)
    with own:
        canaries.plant(own.state)
        yield own
        assert canaries.changed() == []
    assert ledger.settle(own.state, before) == []


@pytest.fixture(scope="module")
def client(server: OwnServer) -> Iterator[Client]:
    """The SDK, with the first tenant's key."""
    with Client(server.url, server.key) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(server: OwnServer) -> Iterator[httpx.Client]:
    """Plain HTTP with the first tenant's key."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def stranger(server: OwnServer) -> Iterator[httpx.Client]:
    """Plain HTTP with another tenant's key."""
    headers = {"Authorization": f"Bearer {server.new_key('stranger')}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False) as opened:
        yield opened


Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(http: httpx.Client) -> Run:
    """One-shot run over HTTP: run(code, **fields of the request) -> the Run as a dictionary."""

    def perform(code: str | None = None, **fields: Any) -> dict[str, Any]:
        body = {"code": code, **fields} if code is not None else fields
        answer = http.post("/v1/runs", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return perform


def output(run_: dict[str, Any], name: str = "stdout") -> bytes:
    """A run's output as bytes, however it was carried."""
    if run_.get(f"{name}_base64"):
        return base64.b64decode(run_[f"{name}_base64"])
    return str(run_.get(name) or "").encode()


@pytest.fixture(scope="module")
def attack(client: Client, canaries: Canaries) -> Iterator[Attack]:
    """A round of attacks with canaries on the host and a neighbour beside."""
    with Attack(OverHttp(client), canaries.tokens) as opened:
        yield opened


Held = Callable[[str], Result]


@pytest.fixture(scope="module")
def held(attack: Attack) -> Held:
    """Carry out one probe of the table by name and insist that the fence held."""

    def perform(name: str) -> Result:
        result = attack.carry_out(table.named(name))
        assert result.held, f"{name}: {result.seen}"
        return result

    return perform


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node in this process, for what only the host can see."""
    if not (TEMPLATES / "index" / "base.json").exists():
        pytest.skip("no built template; run `ringfence templates build base`")
    if os.geteuid() != 0:
        pytest.skip("looking into a sandbox from outside needs root")
    with Node("attacktests01") as opened:
        yield opened


def need(runtime: str) -> None:
    """Skip, or in CI fail, where this way to isolate cannot be had."""
    missing = next(subject for subject in SUBJECTS if subject.name == runtime).missing()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{runtime}: {missing}")
    if missing:
        pytest.skip(f"{runtime}: {missing}")


class Box:
    """A live sandbox over plain HTTP."""

    def __init__(self, http: httpx.Client, **fields: Any) -> None:
        answer = http.post("/v1/sandboxes", json={"template": "base", "ttl_seconds": 1200, **fields})
        assert answer.status_code == 201, answer.text
        self.http = http
        self.info: dict[str, Any] = answer.json()
        self.at = f"/v1/sandboxes/{self.info['id']}"

    def run(self, code: str, **fields: Any) -> dict[str, Any]:
        """A program in the warm interpreter, collected."""
        return self.start({"code": code, **fields}).json()

    def start(self, body: dict[str, Any]) -> httpx.Response:
        """Any process request."""
        return self.http.post(f"{self.at}/processes", json=body)

    def get(self, path: str) -> httpx.Response:
        """A file's content."""
        return self.http.get(f"{self.at}/files/content", params={"path": path})

    def put(self, path: str, content: bytes) -> httpx.Response:
        """Write a file."""
        return self.http.put(f"{self.at}/files/content", params={"path": path}, content=content)

    def list(self, path: str) -> dict[str, dict[str, Any]]:
        """A directory's entries by name."""
        answer = self.http.get(f"{self.at}/files", params={"path": path})
        assert answer.status_code == 200, answer.text
        return {entry["name"]: entry for entry in answer.json()["entries"]}

    def stop(self) -> httpx.Response:
        """End it."""
        return self.http.delete(self.at)


@pytest.fixture
def boxes(http: httpx.Client) -> Iterator[Callable[..., Box]]:
    """Makes sandboxes and stops them after the test."""
    made: list[Box] = []

    def make(**fields: Any) -> Box:
        made.append(Box(fields.pop("http", http), **fields))
        return made[-1]

    yield make
    for box in made:
        box.stop()


@pytest.fixture
def box(boxes: Callable[..., Box]) -> Box:
    """One live sandbox."""
    return boxes()
