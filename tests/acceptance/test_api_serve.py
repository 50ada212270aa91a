"""`serve`: two children kept alive, one state directory each, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringfence.config import ServerSettings
from ringfence.domain.errors import Conflict, PlatformFault
from ringfence.serve import embedded, main, take_state
from ringfence.store.sqlite import KeyRing


class Served:
    """A server in processes of its own, with a node that has no template."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="rf-", ignore_cleanup_errors=True)
        self.state = Path(self._place.name)
        (self.state / "templates").mkdir()
        (self.state / "api").mkdir()
        ring = KeyRing(self.state / "api" / "ringfence.db")
        self.key = ring.add("ada")[0]
        ring.close()
        words = ["--state", str(self.state), "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ringfence.serve", *words], stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout is None or not select.select([self.process.stdout], [], [], 60)[0]:
            pytest.fail("no server within a minute")
        self.line = self.process.stdout.readline()
        self.client = httpx.Client(
            base_url=self.line.split()[-1], headers={"X-API-Key": self.key}, timeout=60, trust_env=False
        )

    def children(self) -> dict[str, int]:
        """Name to pid of what serve started."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if len(words) > 2:  # one that has just died has no words any more
                    found[words[2].decode().removeprefix("ringfence.")] = int(pid)
        return found

    def ready(self) -> bool:
        """The api answers and has its node."""
        try:
            return bool(self.client.get("/v1/status").json()["ready"])
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Stop it."""
        self.client.close()
        self.process.terminate()
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._place.cleanup()


@pytest.fixture
def server() -> Iterator[Served]:
    """A fresh one."""
    made = Served()
    yield made
    made.close()


def eventually(check: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that takes its time."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_says_in_one_line_where_it_serves(server: Served) -> None:
    """When both are there, not before."""
    assert server.line.startswith("ringfence serves at http://127.0.0.1:")
    assert server.ready()
    assert set(server.children()) == {"node", "api"}


@pytest.mark.parametrize("name", ["node", "api"])
def test_whichever_dies_is_started_again(server: Served, name: str) -> None:
    """At the same address; no request that waits for the api is lost."""
    for _ in range(2):
        before = server.children()
        os.kill(before[name], signal.SIGKILL)
        eventually(lambda before=before: not alive(before[name]))  # type: ignore[misc]
        assert httpx.get(f"{server.client.base_url}/health", timeout=60, trust_env=False).status_code == 200
        eventually(lambda before=before: server.children().get(name, before[name]) != before[name])  # type: ignore[misc]
        eventually(server.ready)
        other = "api" if name == "node" else "node"
        assert server.children()[other] == before[other]


def test_a_state_directory_has_one_server(server: Served) -> None:
    """The second refuses and says what to do; the first goes on."""
    second = subprocess.run(
        [sys.executable, "-m", "ringfence.serve", "--state", str(server.state), "--port", "0"],
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert second.returncode == 1
    assert b"state_in_use" in second.stderr
    assert server.ready()


def test_an_address_in_use_is_told(server: Served, tmp_path: Path) -> None:
    """Before anything is started."""
    port = int(server.line.rpartition(":")[2])
    with pytest.raises(PlatformFault, match="cannot listen"):
        main(ServerSettings(state=str(tmp_path), port=port))
    os.close(take_state(ServerSettings(state=str(tmp_path))))


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    """Held by one, free after."""
    settings = ServerSettings(state=str(tmp_path))
    lock = take_state(settings)
    with pytest.raises(Conflict):
        take_state(settings)
    os.close(lock)
    os.close(take_state(settings))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_of_it(number: signal.Signals) -> None:
    """Exit code 0, no child, no socket."""
    server = Served()
    pids = server.children()
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))
    assert not (server.state / "node" / "node.sock").exists()
    with pytest.raises(httpx.ConnectError):
        server.client.get("/health")
    server.close()


def test_nothing_outlives_a_server_that_was_killed() -> None:
    """Its children die with it."""
    server = Served()
    pids = server.children()
    server.process.kill()
    server.process.wait(60)
    eventually(lambda: not any(alive(pid) for pid in pids.values()))
    server.close()


def alive(pid: int) -> bool:
    """Neither gone nor waiting for its burial."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_private_server_comes_and_goes(tmp_path: Path) -> None:
    """With a key of its own that is worth nothing afterwards."""
    settings = ServerSettings(state=str(tmp_path / "state"))
    with embedded(settings) as server:
        headers = {"Authorization": f"Bearer {server.key}"}
        status = httpx.get(f"{server.url}/v1/status", headers=headers, trust_env=False).json()
        assert (status["ready"], status["tenant"]) == (True, "local")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)
    ring = KeyRing(settings.database)
    assert [key.revoked_at is not None for key in ring.list()] == [True]
    ring.close()


def test_a_private_server_leaves_a_state_in_use_alone(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a temporary one, with the same templates, and removes it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with embedded(ServerSettings(state=str(server.state))) as private:
        assert private.url != server.line.split()[-1]
        headers = {"Authorization": f"Bearer {private.key}"}
        assert httpx.get(f"{private.url}/v1/status", headers=headers, trust_env=False).json()["ready"]
        assert server.client.get("/v1/status", headers={"X-API-Key": private.key}).status_code == 401
    assert list(tmp_path.iterdir()) == []
    assert server.ready()
