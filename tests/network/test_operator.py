"""A server whose operator lets tenants learn and gives them gateways, end to end. Nothing leaves the machine."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import Client
from ringfence.attack.own_server import TENANT, OwnServer
from ringfence.domain.errors import BadRequest
from tests.network.lab import needed
from tests.support import ledger
from tests.support.subjects import SUBJECTS, TEMPLATES

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
CANARY = "password-canary-4711"
SETTINGS = f"""
[egress]
learn = true
[egress.gateways.shut]
kind = "socks5"
address = "127.0.0.1"
port = 1
username = "user-canary-4711"
password = "{CANARY}"
[egress.gateways.others]
kind = "source"
address = "127.0.0.9"
tenants = ["somebody-else"]
[tenants.{TENANT}]
egress_gateway = "shut"
"""
FETCH = """
import urllib.request, urllib.error
try:
    urllib.request.urlopen("http://45.33.1.20:8081/", timeout=60)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A server with these settings."""
    needed()
    if JAIL.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(JAIL.missing())
        pytest.skip(JAIL.missing())
    file: Path = tmp_path_factory.mktemp("settings") / "server.toml"
    file.write_text(SETTINGS)
    with OwnServer(TEMPLATES, {"RINGFENCE_CONFIG": str(file)}) as server:
        yield server


def test_a_tenant_learns_and_leaves_by_its_gateway(own: OwnServer) -> None:
    """Let through to learn, by the one gateway it must use; that is shut, so nothing passes, and it is said why."""
    with Client(own.url, own.key) as client:
        listed = client.egress_gateways()
        assert [(each.name, each.kind, each.address, each.pinned) for each in listed] == [
            ("shut", "socks5", "127.0.0.1:1", True)
        ]
        run = client.run(FETCH, egress={"mode": "learn"})
        assert run.stdout.strip() in {"ConnectionResetError", "URLError", "HTTPError", "RemoteDisconnected"}
        found = client.learned_egress(run.id)
        assert [(each.place, each.protocol, each.port) for each in found.seen] == [("45.33.1.20", "tcp", 8081)]
        assert found.seen[0].denied == 1
        events = client.why(run.id).events
        assert "the egress gateway shut is down: Connection refused" in json.dumps([event.data for event in events])
        assert CANARY not in json.dumps([event.data for event in events])
        with pytest.raises(BadRequest, match="must leave by the egress gateway shut"):
            client.run("print(1)", egress=[], egress_gateway="others")


def test_another_tenant_neither_sees_nor_uses_what_is_not_its_own(own: OwnServer) -> None:
    """A gateway of others is as if it were not there."""
    with Client(own.url, own.new_key("third")) as client:
        assert [each.name for each in client.egress_gateways()] == ["shut"]
        with pytest.raises(BadRequest, match="no egress gateway 'others'"):
            client.run("print(1)", egress=[], egress_gateway="others")


def test_no_password_where_anybody_could_read_it(own: OwnServer) -> None:
    """On no command line, in no environment, in no file of the state, and not in the memory that faces the network."""
    assert own.process is not None
    api = []
    for pid in ledger.tree(own.process.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a pool's sandboxes come and go
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert CANARY.encode() not in words + Path(f"/proc/{pid}/environ").read_bytes()
            if b"ringfence.api" in words:
                api.append(pid)
    assert len(api) == 1
    assert not holds(api[0], CANARY.encode())
    for folder, _, names in os.walk(own.state):
        for file in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a journal, say, that was there for a moment
                assert not file.is_file() or CANARY.encode() not in file.read_bytes()


def holds(pid: int, words: bytes) -> bool:
    """Whether a process has these bytes anywhere in its memory."""
    rows = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    spans = [row[0].split("-") for row in rows if row[1].startswith("rw") and "[vvar]" not in row]
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for first, last in spans:
            memory.seek(int(first, 16))
            if words in (memory.read(int(last, 16) - int(first, 16)) or b""):
                return True
    return False
