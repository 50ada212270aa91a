"""Pause and resume over HTTP, on every runtime: files and nothing else, and nothing of the sandbox left meanwhile."""

from __future__ import annotations

import http.client as http_client
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from ringfence import Client, Sandbox, wire
from ringfence.domain.errors import Conflict, RingfenceError
from ringfence.runtimes.oci.versions import installed, lacking
from tests.support import ledger, scale
from tests.support.served import Served, key, served

ROOTS = "umask 077; echo roots > /tmp/roots; echo gone > /run/pid; echo gone > /dev/shm/x"


@pytest.fixture(scope="module")
def server() -> Served:
    """A real server."""
    return served()


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    """A client of it."""
    with server.client() as made:
        yield made


@pytest.fixture
def sandbox(client: Client) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes that are stopped with the test."""
    made: list[Sandbox] = []

    def make(**wishes: object) -> Sandbox:
        made.append(Sandbox.create(client=client, **wishes))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.stop(missing_ok=True)


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    """The same without our client."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as made:
        yield made


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("isolation", scale.RUNTIMES)
def test_files_outlive_their_sandbox(
    server: Served, client: Client, sandbox: Callable[..., Sandbox], isolation: str
) -> None:
    """What was in home and /tmp is there again, with its owners; programs, /run and /dev/shm are not."""
    reason = "" if isolation == "jail" else lacking(isolation, installed())
    if reason and os.environ.get("CI") != "true":
        pytest.skip(reason)
    box = sandbox(isolation=isolation, labels={"team": "x"}, limits={"processes": 40}, ttl=200.0)
    box.files.write("deep/er/data.bin", bytes(range(256)) * 1000)
    assert box.exec(
        ROOTS + "; mkdir -p /var/tmp/e; ln -s nowhere /home/user/l 2>/dev/null || true", user="root"
    ).exit.ok
    box.start("sleep 1000")
    paused = box.pause()
    assert paused.paused is not None
    assert (paused.state, paused.paused.kept, paused.expires_at) == ("paused", "files", None)
    assert ledger.groups_called(box.id) == set()
    assert box.id in {found.id for found in Sandbox.list(state="paused", client=client)}
    assert (server.state / "paused" / box.id).stat().st_mode & 0o777 == 0o600
    again = Sandbox.resume(box.id, client=client)
    assert (again.info.labels, again.info.runtime, again.info.created_at) == (
        {"team": "x"},
        isolation,
        paused.created_at,
    )
    assert again.info.limits == paused.limits
    assert (again.info.expires_at or 0) > time.time() + 150
    assert again.files.read("deep/er/data.bin") == bytes(range(256)) * 1000
    seen = again.exec("stat -c '%u %a' /tmp/roots; ls /run /dev/shm; ls -d /var/tmp/e; cat /tmp/roots", user="root")
    assert seen.stdout.split() == ["0", "600", "/dev/shm:", "/run:", "/var/tmp/e", "roots"]
    assert [event.type for event in client.why(box.id).events][-2:] == ["sandbox.paused", "sandbox.resumed"]
    assert not (server.state / "paused" / box.id).exists()


def test_refusals_have_codes(http: httpx.Client, sandbox: Callable[..., Sandbox], server: Served) -> None:
    """Each wrong request, each verb on a paused sandbox, and another tenant's key."""
    box = sandbox()
    place = f"/v1/sandboxes/{box.id}"
    assert code_of(http.post(f"{place}/pause", json={"memory": True})) == (400, "pause_memory_unsupported")
    assert http.post(f"{place}/pause", json={"memroy": True}).status_code == 400
    assert http.post(f"{place}/pause", json={"memory": 1}).status_code == 400
    assert code_of(http.post(f"{place}/resume", json={})) == (409, "sandbox_running")
    assert http.post(f"{place}/pause").status_code == 400
    assert http.post(f"{place}/pause", json={}).json()["state"] == "paused"
    for answer in (
        http.post(f"{place}/pause", json={}),
        http.post(f"{place}/processes", json={"shell": "true"}),
        http.post(f"{place}/processes", json={"shell": "true", "stream": True}),
        http.get(f"{place}/files/content?path=x"),
        http.put(f"{place}/files/content?path=x", content=b"x"),
        http.post(f"{place}/extend", json={"ttl_seconds": 5}),
        http.put(f"{place}/egress", json={"egress": "none"}),
    ):
        assert code_of(answer) == (409, "sandbox_paused")
        assert answer.json()["error"]["remediation"]
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {_stranger(server)}"}) as other:
        for verb in ("pause", "resume"):
            assert code_of(other.post(f"{place}/{verb}", json={})) == (404, "not_found")
        assert code_of(other.delete(place)) == (404, "not_found")
    for bad in ({"ttl_seconds": -1}, {"ttl_seconds": "5"}, {"ttl_seconds": 1e9}, {"ttl": 5}, []):
        assert http.post(f"{place}/resume", json=bad).status_code == 400
    assert code_of(http.post("/v1/sandboxes", json={"on_timeout": "sleep"}))[0] == 400
    assert http.delete(place).json()["state"] == "stopped"
    assert code_of(http.post(f"{place}/resume", json={})) == (409, "sandbox_ended")


def _stranger(server: Served) -> str:
    return key(server.state / "api" / "ringfence.db", "stranger")


def test_a_published_port_wakes_its_sandbox(server: Served, client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """The URL stays over a pause: a request resumes the sandbox, and is answered once something listens again."""
    box = sandbox(wake=True)
    box.files.write("index.html", b"kept")
    url = box.publish(8000, public=True, wait=60.0)
    box.pause()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: _get(url))
        deadline = time.monotonic() + 60
        while Sandbox.connect(box.id, client=client).info.state != "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        box.start("python3 -m http.server 8000")
        assert answer.result(60) == (200, b"kept")
    box.pause()
    assert Sandbox.connect(box.id, client=client).info.state == "paused"
    assert box.exec("cat index.html").stdout == "kept"


def test_a_published_port_of_one_that_does_not_wake_says_so(sandbox: Callable[..., Sandbox]) -> None:
    """Its visitors are told, and it stays paused."""
    box = sandbox()
    url = box.publish(8000, public=True)
    box.pause()
    status, body = _get(url)
    assert (status, b"sandbox_paused" in body) == (502, True)
    assert box.refresh().state == "paused"


def _get(url: str) -> tuple[int, bytes]:
    """As a client that knows where every name of the edge's domain is."""
    host = urlsplit(url).netloc
    connection = http_client.HTTPConnection("127.0.0.1", int(host.rpartition(":")[2]), timeout=90)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_it_begins_with_begins_again(client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """A sandbox made with a program to begin with has it again after a pause, with its files: a URL that wakes it."""
    serve = "mkdir -p www; date +%N >> www/index.html; exec python3 -m http.server -d www 8000"
    box = sandbox(wake=True, start=serve)
    url = box.publish(8000, public=True, wait=20.0)
    status, first = _get(url)
    assert (status, first.count(b"\n")) == (200, 1)
    for count in (2, 3):
        box.pause()
        status, body = _get(url)
        assert (status, body.startswith(first), body.count(b"\n")) == (200, True, count)
    box.reset()
    status, body = _get(url)
    assert (status, body.count(b"\n")) == (200, 1)


def test_a_program_that_cannot_begin_again_does_not_keep_files_away(
    client: Client, sandbox: Callable[..., Sandbox]
) -> None:
    """The order for what it begins with cannot be carried out any more: the files come back, and that is told."""
    box = sandbox(start={"shell": "sleep 100", "cwd": "/tmp"})
    box.files.write("x", b"1")
    box.exec("rm -rf /home/user/gone; mkdir /home/user/gone")
    other = sandbox(start={"shell": "sleep 100", "cwd": "/home/user"})
    other.files.write("x", b"1")
    other.exec("chmod 000 /home/user; true")
    for each in (box, other):
        each.pause()
        again = Sandbox.resume(each.id, client=client)
        assert again.exec("chmod 755 /home/user; cat /home/user/x", cwd="/tmp").stdout == "1"


def test_expiry_pauses_when_asked(client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """Its time over, a sandbox made with on_timeout is paused by itself; resumed, it lives as long again."""
    box = sandbox(on_timeout="pause", ttl=100.0)
    box.files.write("x", b"1")
    box.extend(1.0)
    deadline = time.monotonic() + 60
    while box.refresh().state != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = Sandbox.resume(box.id, ttl=100, client=client)
    assert again.files.read("x") == b"1"
    assert [e.type for e in client.why(box.id).events] == [
        "sandbox.created", "sandbox.expired", "sandbox.paused", "sandbox.resumed",
    ]  # fmt: skip


def test_its_policy_outlives_a_pause(client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """What it may reach is what it might before, as changed last; and can still be changed (attack 92)."""
    if os.geteuid() != 0:
        pytest.skip("only root gives sandboxes a network")
    box, offline = sandbox(egress=["example.com"]), sandbox()
    changed = box.allow(["example.org"]).egress
    for each, policy in ((box, changed), (offline, {"mode": "none"})):
        each.pause()
        assert Sandbox.resume(each.id, client=client).info.egress == policy
    assert box.allow([]).egress["allow"] == []
    with pytest.raises(RingfenceError):
        offline.allow(["example.org"])


def test_its_secrets_are_there_again(client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """Under new placeholders, each as it is now; one that was removed meanwhile is not, and keeps nobody from files."""
    if os.geteuid() != 0:
        pytest.skip("only root gives sandboxes a network")
    for name in ("one", "two"):
        client.set_secret(name, "a-long-value", hosts=["api.example.com"], headers=["authorization"])
    box = sandbox(secrets=["one", "two"])
    show = "echo $ONE; echo $TWO; test -s /run/ringfence-authorities.pem && echo trusts"
    before = box.exec(show).stdout.split()
    box.pause()
    client.remove_secret("two")
    again = Sandbox.resume(box.id, client=client)
    after = again.exec(show).stdout.split()
    assert (len(before), len(after), after[-1], again.info.secrets) == (3, 2, "trusts", ["one"])
    assert after[0].startswith("rf-placeholder-")
    assert after[0] not in before
    client.remove_secret("one")


def test_leaving_the_with_of_a_paused_sandbox_leaves_it_paused(client: Client) -> None:
    """A program that pauses its sandbox wants to come back to it."""
    with Sandbox.create(client=client) as box:
        box.pause()
    found = Sandbox.connect(box.id, client=client)
    assert found.info.state == "paused"
    found.stop()


def test_the_command_line_pauses_and_resumes(server: Served) -> None:
    """`sandbox pause`, `list --state paused`, `get`, `resume`; memory is refused with a reason."""
    name = server.run("sandbox", "create", "--on-timeout", "pause", "--wake").stdout.decode().strip()
    assert b"pause_memory_unsupported" in server.run("sandbox", "pause", "--memory", name).stderr
    assert b"of files kept until" in server.run("sandbox", "pause", name).stdout
    assert name.encode() in server.run("sandbox", "list", "--state", "paused").stdout
    shown = server.run("sandbox", "get", name).stdout
    assert b"by its owner" in shown
    assert b"wakes when used" in shown
    assert b"running until" in server.run("sandbox", "resume", "--ttl", "1h", name).stdout
    assert server.run("sandbox", "stop", name).returncode == 0


def test_a_race_has_one_winner(client: Client, sandbox: Callable[..., Sandbox]) -> None:
    """Many threads pause, resume and use one sandbox: each is served or refused with a reason, and files stay."""
    box = sandbox()
    box.files.write("x", b"1")
    odd: list[str] = []

    def one(number: int) -> None:
        try:
            match number % 3:
                case 0:
                    box.pause()
                case 1:
                    Sandbox.resume(box.id, client=client)
                case _:
                    ran = box.exec("cat x")
                    if (ran.stdout, ran.exit.how) != ("1", "exited") and "paused" not in ran.exit.reason:
                        odd.append(f"{ran}")
        except Conflict as error:
            if error.code not in {"sandbox_paused", "sandbox_busy", "sandbox_running"}:
                odd.append(f"{error.code}: {error.cause}")
        except RingfenceError as error:
            odd.append(f"{error.code}: {error.cause}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(60)))
    assert odd == []
    if box.refresh().state == "paused":
        Sandbox.resume(box.id, client=client)
    assert box.files.read("x") == b"1"


def test_a_paused_sandbox_is_no_way_out(server: Served, sandbox: Callable[..., Sandbox], tmp_path: Path) -> None:
    """Links that lead out of home are kept as links: on the host there is one plain file, and nothing it names."""
    box = sandbox()
    made = box.exec(f"ln -s {tmp_path}/target evil; ln -s / root; ln -s ../../../.. up; ln -s /etc/passwd pw")
    assert made.exit.ok
    paused = box.pause()
    assert isinstance(paused, wire.Sandbox)
    assert [name.name for name in (server.state / "paused").iterdir() if box.id in name.name] == [box.id]
    assert list(tmp_path.iterdir()) == []
