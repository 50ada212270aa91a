"""The api as a process: what it gave up before it serves, and that it needs nothing of it afterwards."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

import ringfence
from ringfence.store.sqlite import KeyRing

SOURCE = Path(ringfence.__file__ or "").parent
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root has anything to give up")
# Logs every import made after the uid changed: its file might be out of reach by then.
SPY = """
import os, sys
log = os.open(os.environ["RINGFENCE_TEST_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
def spy(event, args):
    if event == "import" and os.getuid() != 0:
        os.write(log, (args[0] + "\\n").encode())
sys.addaudithook(spy)
"""


class Process:
    """An api process over a fake node process, its code and its state below a directory closed to everybody else."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="rf-"))  # mode 0700
        shutil.copytree(SOURCE, self.place / "src" / "ringfence", ignore=shutil.ignore_patterns("__pycache__"))
        self.log = self.place / "log"
        (self.place / "src" / "sitecustomize.py").write_text(SPY)
        self.state = self.place / "state"
        (self.state / "node").mkdir(parents=True, mode=0o755)
        (self.state / "api").mkdir()
        ring = KeyRing(self.state / "api" / "ringfence.db")
        self.key = ring.add("ada")[0]
        ring.close()
        self.node = self._start_node()
        try:
            self.api, self.url = self._start_api()
        except BaseException:
            self.node.kill()
            self.node.wait()
            raise
        headers = {"Authorization": f"Bearer {self.key}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def _start_node(self) -> subprocess.Popen[bytes]:
        path = self.state / "node" / "node.sock"
        words = [sys.executable, "-m", "tests.support.fakenode", str(path)]
        node = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        if node.stdout is None or not node.stdout.readline():
            pytest.fail("the fake node did not start")
        path.chmod(0o777)
        return node

    def _start_api(self) -> tuple[subprocess.Popen[bytes], str]:
        ready_in, ready_out = os.pipe()
        words = ["--state", str(self.state), "--port", "0", "--ready-fd", str(ready_out), "--parent", str(os.getpid())]
        where = os.pathsep.join([str(self.place / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        env = {**os.environ, "PYTHONPATH": where, "RINGFENCE_TEST_LOG": str(self.log)}
        api = subprocess.Popen(
            [sys.executable, "-B", "-m", "ringfence.api", *words],
            pass_fds=[ready_out],
            env=env,
            cwd="/",
            start_new_session=True,
        )
        os.close(ready_out)
        with os.fdopen(ready_in) as ready:
            if not select.select([ready], [], [], 30)[0] or not (url := ready.readline().strip()):
                pytest.fail("the api did not start")
        return api, url

    def close(self) -> None:
        """Stop both."""
        self.client.close()
        for process in (self.api, self.node):
            process.terminate()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.place)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """One for all of these."""
    made = Process()
    yield made
    made.close()


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@as_root
def test_it_has_no_privilege_left(process: Process) -> None:
    """No root in any id, no group, no capability in any set, no way to gain one; every thread alike."""
    for task in Path(f"/proc/{process.api.pid}/task").iterdir():
        shown = status(int(task.name))
        assert "0" not in shown["Uid"].split() + shown["Gid"].split()
        assert shown["Groups"] == ""
        assert {shown[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert shown["NoNewPrivs"] == "1"


@as_root
def test_it_cannot_be_looked_into(process: Process) -> None:
    """Not dumpable: its /proc entry is root's, not that of its uid."""
    assert Path(f"/proc/{process.api.pid}/environ").stat().st_uid == 0
    limits = Path(f"/proc/{process.api.pid}/limits").read_text().splitlines()
    assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]
    assert os.getsid(process.api.pid) == process.api.pid


@as_root
def test_its_files_are_its_own_and_nobody_elses(process: Process) -> None:
    """The store belongs to the uid that writes it, and is closed to others."""
    uid = int(status(process.api.pid)["Uid"].split()[0])
    for file in (process.state / "api").iterdir():
        assert (file.stat().st_uid, file.stat().st_mode & 0o077) == (uid, 0)


def exercise(process: Process) -> None:
    """Something of everything, errors included."""
    client = process.client
    for body in ({"code": "say x"}, {"code": "say x", "stream": True}, {"code": "raw ff"}, {"nope": 1}):
        client.post("/v1/runs", json=body, headers={"Idempotency-Key": str(time.time())})
    client.post("/v1/runs", content=b"{", headers={"Host": "evil.example"})
    client.put("/v1/secrets/one", json={"value": "a-long-value", "hosts": ["api.example.com"], "headers": ["x-key"]})
    client.post("/v1/sandboxes", json={"secrets": ["one"]})
    path = client.post("/v1/sandboxes", json={"labels": {"a": "b"}}).headers["location"]
    client.put(f"{path}/files/content?path=f", content=b"x" * 300_000)
    for where in ("", "/files", "/files/content?path=f", "/processes", "/processes/7/output", "/files/stat?path=zz"):
        client.get(path + where)
    for where in ("/docs", "/openapi.json", "/v1/status", "/v1/templates", "/v1/runs?label=a=b&limit=x", "/zz"):
        client.get(where)
    with client.stream("GET", "/v1/events?after=0") as answer:
        next(answer.iter_lines())
    headers = {"X-API-Key": process.key}
    with connect(process.url.replace("http", "ws") + f"{path}/terminal?shell=echo", additional_headers=headers) as ws:
        ws.recv()
        ws.send("bad")
        with suppress(Exception):
            ws.recv()
    port = int(process.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        raw.recv(1000)
    client.get(f"/v1/why/{path.rpartition('/')[2]}")
    client.delete(path)


@as_root
def test_it_imports_nothing_any_more(process: Process) -> None:
    """Whatever is asked of it: its code may lie where its uid cannot read."""
    exercise(process)
    exercise(process)
    late = process.log.read_text().split() if process.log.exists() else []
    assert late == []


def test_it_finds_its_node_again_without_a_way_to_it(process: Process) -> None:
    """By name in its working directory, although the directories above are closed."""
    process.node.kill()
    process.node.wait(60)
    assert process.node.stdout is not None
    process.node.stdout.close()
    (process.state / "node" / "node.sock").unlink()
    process.node = process._start_node()
    deadline = time.monotonic() + 60
    while (answer := process.client.post("/v1/runs", json={"code": "say x"})).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.json()["stdout"] == "x\n"


def test_a_key_made_while_it_runs_is_known_at_once(process: Process) -> None:
    """And one revoked is not."""
    ring = KeyRing(process.state / "api" / "ringfence.db")
    secret, made = ring.add("bob")
    headers = {"Authorization": f"Bearer {secret}"}
    assert process.client.get("/v1/runs", headers=headers).status_code == 200
    ring.revoke(made.id)
    assert process.client.get("/v1/runs", headers=headers).status_code == 401
    ring.close()


def test_no_secret_is_in_its_command_line_or_its_store(process: Process) -> None:
    """Neither the key nor what programs printed."""
    process.client.post("/v1/runs", json={"code": "say very-secret-output", "env": {"TOKEN": "very-secret-token"}})
    process.client.get("/v1/runs")
    assert process.key.encode() not in Path(f"/proc/{process.api.pid}/cmdline").read_bytes()
    for file in (process.state / "api").iterdir():
        data = file.read_bytes()
        assert process.key.encode() not in data
        assert b"very-secret" not in data


@as_root
def test_a_state_that_was_tampered_with_is_not_given_away(tmp_path: Path) -> None:
    """A link or a second name among its files: root changes the owner of neither."""
    for trap in ("link", "hard"):
        state = tmp_path / trap
        (state / "api").mkdir(parents=True)
        victim = tmp_path / f"victim-{trap}"
        victim.write_text("root's")
        where = state / "api" / "ringfence.db"
        where.symlink_to(victim) if trap == "link" else where.hardlink_to(victim)
        words = [sys.executable, "-m", "ringfence.api", "--state", str(state), "--port", "0"]
        ended = subprocess.run(words, capture_output=True, timeout=90, check=False, cwd=SOURCE.parent)
        assert ended.returncode == 1
        assert ended.stderr.startswith(b"error[")
        assert (victim.stat().st_uid, victim.read_text()) == (0, "root's")


def test_it_stops_cleanly_when_asked() -> None:
    """Exit code 0, and every row closed."""
    process = Process()
    try:
        process.api.send_signal(signal.SIGTERM)
        assert process.api.wait(60) == 0
    finally:
        process.close()


def test_bad_settings_are_told_in_one_line(tmp_path: Path) -> None:
    """With the known names; no traceback."""
    file = tmp_path / "server.toml"
    file.write_text("prot = 1\n")
    words = [sys.executable, "-m", "ringfence.api", "--config", str(file)]
    ended = subprocess.run(words, capture_output=True, timeout=90, check=False, cwd=SOURCE.parent)
    assert ended.returncode == 1
    assert b"prot" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert json.dumps("port")[1:-1].encode() in ended.stderr
