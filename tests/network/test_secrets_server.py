"""Secrets end to end: a real server whose host is the lab's, real sandboxes, real hosts that are sent real values.

The canary is the value: it may be at its host, in three processes' memory, and nowhere else.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ringfence import Client, Sandbox
from ringfence.cli.daemon import Daemon
from ringfence.config import read_server
from ringfence.domain.errors import BadRequest, NotFound, RingfenceError
from ringfence.domain.secrets import PREFIX
from ringfence.network.router import enter
from tests.network.lab import NAMES, Lab
from tests.network.secretslab import API, OTHER, VALUE, Hosts
from tests.network.test_egress_live import eventually
from tests.support import scale
from tests.support.served import TEMPLATES, Served, free_port, key
from tests.support.subjects import SUBJECTS

T = TypeVar("T")
JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
SECOND = "other-token-Zx81mNq5Rt7Yw3Kb"
CALL = """
import os, sys, urllib.request, urllib.error
def call(host, **headers):
    request = urllib.request.Request(f"https://{host}/v1", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return f"{type(error).__name__} {error}"
def bearer(variable):
    return {"Authorization": "Bearer " + os.environ.get(variable, "nothing")}
"""


class Place:
    """A server in the lab's host namespace, and its user there."""

    def __init__(self, lab: Lab, state: Path) -> None:
        self._lab = lab
        self._thread = ThreadPoolExecutor(1)
        self.run(self._enter)
        (state / "server.toml").write_text(
            f'[egress]\nresolvers = ["{NAMES}"]\nauthorities = "{lab.certificate}"\n', encoding="utf-8"
        )
        settings = read_server(str(state / "server.toml"), state=str(state), templates=TEMPLATES, port=free_port())
        self.daemon = Daemon(settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RINGFENCE_CONFIG", str(state / "server.toml"))
            url = self.run(self.daemon.ensure)[0]
        self.state = state
        self.served = Served(url, key(settings.database), state)
        self.stranger = Served(url, key(settings.database, "another"), state)
        self.client = self.run(self.served.client)

    def _enter(self) -> None:
        fd = os.open(f"/proc/{self._lab.host.tid}/ns/net", os.O_RDONLY)
        enter(fd)
        os.close(fd)

    def run(self, call: Callable[[], T]) -> T:
        """Do something there."""
        return self._thread.submit(call).result(250)

    def told(self, subject: str, *kinds: str, count: int = 1) -> list[dict[str, Any]]:
        """Events of these kinds about a sandbox or run, once there are so many."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [e.data for e in self.run(lambda: self.client.why(subject)).events if e.type in kinds]
            if len(found) >= count:
                return found
            time.sleep(0.05)
        return []

    def close(self) -> None:
        """Stop it."""
        self.run(self.client.close)
        self.run(self.daemon.stop)
        self._thread.shutdown()


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[Hosts]:
    """The hosts of secrets."""
    made = Hosts(lab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(lab: Lab, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with two secrets."""
    if JAIL.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(JAIL.missing())
        pytest.skip(JAIL.missing())
    state = tmp_path_factory.mktemp("state")
    for each in (state, *list(state.parents)[:2]):
        each.chmod(0o755)
    made = Place(lab, state)
    made.run(lambda: made.client.set_secret("api", VALUE, [API], headers=["Authorization"], env="API_KEY"))
    made.run(lambda: made.client.set_secret("other-1", SECOND, [OTHER], headers=["x-api-key"]))
    yield made
    made.close()
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(autouse=True)
def _fresh(hosts: Hosts) -> None:
    for kept in hosts.kept.values():
        kept.clear()


def test_a_run_uses_a_secret_it_never_holds(place: Place, hosts: Hosts) -> None:
    """An ordinary program, told nothing of all this, holds a placeholder; what its host gets is the value."""
    code = CALL + f"print(call({API!r}, **bearer('API_KEY')), os.environ['API_KEY'])"
    run = place.run(lambda: place.client.run(code, secrets=["api"]))
    assert run.exit.ok, run.stderr
    assert run.stdout.startswith("ok "), run.stdout
    said, placeholder = run.stdout.split()
    assert said == "ok"
    assert placeholder.startswith(PREFIX)
    assert [sent.header("authorization") for sent in hosts.kept[API]] == [f"Bearer {VALUE}"]
    # Its sandbox ends with it, and that may come before the end of a connection it left behind.
    [event] = place.told(run.id, "egress.allowed", "egress.cut")
    assert (event["secrets"], event["name"]) == ("api", API)
    assert event["sent"] > 0 < event["received"]


@pytest.mark.parametrize("isolation", scale.OTHERS)
def test_every_runtime_keeps_secrets_outside(place: Place, hosts: Hosts, isolation: str) -> None:
    """Containers and gVisor, with the same words; the program does not know the difference."""
    subject = next(subject for subject in SUBJECTS if subject.name == isolation)
    if subject.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(subject.missing())
        pytest.skip(subject.missing())
    code = CALL + f"print(call({API!r}, **bearer('API_KEY')), os.environ['API_KEY'])"
    run = place.run(lambda: place.client.run(code, secrets=["api"], isolation=isolation))
    assert run.stdout.startswith("ok rf-placeholder-"), (run.stdout, run.stderr)
    assert hosts.kept[API][0].header("authorization") == f"Bearer {VALUE}"


def test_what_a_sandbox_begins_with_has_its_secrets(place: Place, hosts: Hosts) -> None:
    """From its first moment, and again after a reset, under the same placeholder."""
    code = CALL + f"print(call({API!r}, **bearer('API_KEY')), os.environ['API_KEY'], flush=True)"
    made = place.run(lambda: Sandbox.create(client=place.client, secrets=["api"], start={"code": code}))
    try:
        first = place.run(lambda: made.exec('echo "$API_KEY"')).stdout
        assert eventually(lambda: len(hosts.kept[API]) == 1, 10)
        place.run(made.reset)
        assert place.run(lambda: made.exec('echo "$API_KEY"')).stdout == first
        assert eventually(lambda: len(hosts.kept[API]) == 2, 10)
        assert [sent.header("authorization") for sent in hosts.kept[API]] == [f"Bearer {VALUE}"] * 2
    finally:
        place.run(made.stop)


def test_a_placeholder_sent_elsewhere_is_refused_and_reported(place: Place, hosts: Hosts) -> None:
    """To another secret's host, or unencrypted: the program reads why, its owner hears of it, no host sees anything."""
    code = (
        CALL
        + f"""
print(call({OTHER!r}, **bearer("API_KEY")))
print(call({API!r}, **{{"X-Api-Key": os.environ["API_KEY"]}}))
try:
    request = urllib.request.Request("http://{OTHER}/v1", data=os.environ["API_KEY"].encode())
    print(urllib.request.urlopen(request, timeout=60).read())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
    )
    egress = [{"domain": OTHER, "protocol": "http"}]
    run = place.run(lambda: place.client.run(code, secrets=["api", "other-1"], egress=egress))
    said = run.stdout.replace("\n\n", "\n").splitlines()
    assert said == [
        f"403 ringfence: denied: secret api is not bound to {OTHER}",
        "403 ringfence: denied: secret api does not belong into header x-api-key",
        "403 ringfence: denied: the placeholder of secret api was sent unencrypted",
    ]
    assert not any(hosts.kept.values())
    events = place.told(run.id, "secret.misdirected", count=3)
    assert sorted((event["secret"], event["name"]) for event in events) == [("api", API), *[("api", OTHER)] * 2]
    shown = place.run(lambda: place.served.run("why", run.id, "--denied")).stdout.decode()
    assert f"secret api is not bound to {OTHER}" in " ".join(shown.split())


CLIENTS = """
import os, shutil, subprocess, sys
url, host = sys.argv[1:]
token = os.environ["API_KEY"]
authority = os.environ["SSL_CERT_FILE"]
header = "Authorization: " + token
headers = {"Authorization": token}
code = f"import urllib.request as u; print(u.urlopen(u.Request({url!r}, headers={headers})).read())"
get = "print({0}.get(" + repr(url) + ", headers={{'Authorization': " + repr(token) + "}}).text)"
known = "try:\\n import {0}\\nexcept ImportError:\\n print('absent')\\nelse:\\n " + get
verify = f"openssl s_client -verify_return_error -connect {host}:443 -servername {host} </dev/null 2>&1"
def tried(name, *argv):
    if shutil.which(argv[0]):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        print(name, done.stdout.strip() or done.stderr.strip()[:300])
tried("python", sys.executable, "-c", code)
tried("curl", "curl", "-sS", "-H", header, url)
tried("wget", "wget", "-qO-", "--header=" + header, "--ca-certificate=" + authority, url)
tried("openssl", "sh", "-c", f"{verify} | grep -o 'Verify return code: 0' | head -n 1")
for module in ("requests", "httpx"):
    tried(module, sys.executable, "-c", known.format(module))
"""


def test_ordinary_clients_trust_it(place: Place, hosts: Hosts) -> None:
    """Whatever of Python, requests, httpx, curl, wget and openssl the template has, without an option of their own."""
    run = place.run(
        lambda: place.client.run(CLIENTS, args=[f"https://{API}/x", API], secrets=["api"], template="python")
    )
    said = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert said["python"] == "b'ok'", (said, run.stderr)
    assert set(said.values()) <= {"b'ok'", "ok", "absent", "Verify return code: 0"}
    assert {sent.header("authorization") for sent in hosts.kept[API]} == {VALUE}


def test_other_hosts_are_not_opened(place: Place) -> None:
    """What a program sees of a host without a secret is the host's own certificate, with secrets as without."""
    code = """
import os, socket, ssl, sys
context = ssl._create_unverified_context()
for host in sys.argv[1:]:
    with context.wrap_socket(socket.create_connection((host, 443), 60), server_hostname=host) as connection:
        print(ssl.get_server_certificate, len(connection.getpeercert(True)), end=" ") if False else None
        print(b"ringfence secrets" in connection.getpeercert(True))
"""
    good = "good.example.com"
    run = place.run(lambda: place.client.run(code, args=[API, good], secrets=["api"], egress=[good]))
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_secret_is_changed_and_taken_away_under_a_living_sandbox(place: Place, hosts: Hosts) -> None:
    """From the moment the call returns: the next request carries the new value, and none after it was removed."""
    client = place.client
    place.run(lambda: client.set_secret("fleeting", "first-value-1111", [API], headers=["x-api-key"]))
    ask = CALL + f"print(call({API!r}, **{{'X-Api-Key': os.environ['FLEETING']}}))"
    sandbox = place.run(lambda: Sandbox.create(client=client, secrets=["fleeting", "api"]))
    try:
        assert sandbox.info.secrets == ["fleeting", "api"]
        assert place.run(lambda: sandbox.run(ask)).stdout == "ok\n"
        place.run(lambda: client.set_secret("fleeting", "second-value-2222", [API], headers=["x-api-key"]))
        assert place.run(lambda: sandbox.run(ask)).stdout == "ok\n"
        place.run(lambda: client.remove_secret("fleeting"))
        assert place.run(lambda: sandbox.run(ask)).stdout.startswith(
            "403 ringfence: denied: a placeholder that is none"
        )
        assert [sent.header("x-api-key") for sent in hosts.kept[API]] == ["first-value-1111", "second-value-2222"]
        shell = place.run(lambda: sandbox.exec('echo "$API_KEY $SSL_CERT_FILE"'))
        assert shell.stdout.startswith(PREFIX)
        mine = place.run(lambda: sandbox.exec('echo "$API_KEY"', env={"API_KEY": "mine"}))
        assert mine.stdout == "mine\n"
        place.run(lambda: sandbox.allow("none"))
        assert "ok" not in place.run(lambda: sandbox.run(CALL + f"print(call({API!r}, **bearer('API_KEY')))")).stdout
    finally:
        place.run(sandbox.stop)
    with pytest.raises(BadRequest, match="no secret 'fleeting'"):
        place.run(lambda: client.run("print(1)", secrets=["fleeting"]))


# -- the canary -------------------------------------------------------------------------------------------------------

# What it looks for is written so that the pattern itself is no match.
SEARCH = """
import os, re, stat, sys
wanted = re.compile(b"[s]k-live-Q7v[X]k2nB9wLpR4tZ8[m]Yc3dHs")
found, looked = [], 0
def look(name, data):
    global looked
    looked += 1
    if wanted.search(data):
        found.append(name)
for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
    for kind in ("environ", "cmdline", "status", "maps"):
        try:
            look(f"{pid} {kind}", open(f"/proc/{pid}/{kind}", "rb").read())
        except OSError:
            pass
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                area, rights = line.split()[:2]
                if "r" in rights and "[v" not in line:
                    start, end = (int(part, 16) for part in area.split("-"))
                    memory.seek(start)
                    try:
                        look(f"{pid} memory {area}", memory.read(min(end - start, 1 << 26)))
                    except (OSError, OverflowError):
                        pass
    except OSError:
        pass
for top in ("/run", "/tmp", "/home", "/var", "/etc", "/root", "/dev/shm", "/opt", "/srv", "/mnt"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    look(path, open(path, "rb").read(1 << 24))
            except OSError:
                pass
print(found, looked > 100, "PRIVATE KEY" in open(os.environ["SSL_CERT_FILE"]).read())
"""


def on_the_host(needle: bytes, state: Path) -> list[str]:
    """Where on this machine a value can be read without reading a process's memory: command lines, variables, files."""
    found = []
    told = [*glob.glob("/proc/[0-9]*/cmdline"), *glob.glob("/proc/[0-9]*/environ")]
    kept = [f"{folder}/{name}" for folder, _, names in os.walk(state) for name in names]
    for path in map(Path, told + kept):
        try:
            if path.is_file() and needle in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


def test_the_value_is_nowhere_but_at_its_host(place: Place, hosts: Hosts) -> None:
    """Not inside (variables, files, memory), not in an answer, a record, an event, a log, the store, or an argument."""
    client = place.client
    sandbox = place.run(lambda: Sandbox.create(client=client, secrets=["api", "other-1"]))
    try:
        used = place.run(lambda: sandbox.run(CALL + f"print(call({API!r}, **bearer('API_KEY')))"))
        assert used.stdout == "ok\n"
        echo = place.run(lambda: sandbox.run(CALL + f"print(call({API + '/echo?'!r}, **bearer('API_KEY')))"))
        assert "Authorization: Bearer ******" in echo.stdout
        assert VALUE not in echo.stdout
        for user in ("user", "root"):
            inside = place.run(lambda u=user: sandbox.run(SEARCH, user=u))  # type: ignore[misc]
            assert inside.stdout == "[] True False\n", (inside.stdout, inside.stderr)
        shown = ("secrets", "list"), ("sandbox", "get", sandbox.id)
        answers = [
            place.run(lambda: json.dumps(repr(client.secrets()) + repr(client.secret("api")))),
            place.run(lambda: repr(sandbox.refresh()) + repr(client.why(sandbox.id)) + repr(client.status())),
            place.run(lambda: repr(list(client.events(after="0", quiet=0.5)))),
            *(place.run(lambda w=words: place.served.run(*w, "--json")).stdout.decode() for words in shown),  # type: ignore[misc]
        ]
        assert all(value not in answer for answer in answers for value in (VALUE, SECOND))
        assert "'api'" in answers[0]
        assert on_the_host(VALUE.encode(), place.state) == []
        assert on_the_host(b"PRIVATE KEY", place.state) == []
        assert (place.state / "api" / "secrets.key").stat().st_mode & 0o777 == 0o600
    finally:
        place.run(sandbox.stop)
    assert hosts.kept[API][0].header("authorization") == f"Bearer {VALUE}"


# -- whose it is, and how it is asked for -----------------------------------------------------------------------------


def test_a_secret_is_its_tenants_alone(place: Place) -> None:
    """Another tenant does not see it, use it, change it or remove it; the answer is that of a name nobody has."""
    other: Client = place.run(place.stranger.client)
    try:
        assert place.run(other.secrets) == []
        for call in (lambda: other.secret("api"), lambda: other.remove_secret("api")):
            with pytest.raises(NotFound, match="no secret 'api'"):
                place.run(call)
        with pytest.raises(BadRequest, match="no secret 'api'"):
            place.run(lambda: other.run("print(1)", secrets=["api"]))
        place.run(lambda: other.set_secret("api", "another-tenants-own", [API], headers=["authorization"]))
        code = CALL + f"print(call({API!r}, **bearer('API')))"
        assert place.run(lambda: other.run(code, secrets=["api"])).stdout == "ok\n"
        place.run(lambda: other.remove_secret("api"))
        assert [secret.name for secret in place.run(place.client.secrets)] == ["api", "other-1"]
    finally:
        place.run(other.close)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"hosts": ["Api.example.com"]}, "host 0 .*upper case"),
        ({"hosts": ["ok.example.com", "a.*.example.com"]}, "host 1 .*wildcard"),
        ({"hosts": ["*"]}, "every name"),
        ({"hosts": ["10.0.0.1"]}, "host 0 .*taken for an address"),
        ({"hosts": ["metadata.google.internal"]}, "below the operator's floor"),
        ({"hosts": []}, "needs 1 to 32 hosts"),
        ({"headers": []}, "places in a request"),
        ({"headers": ["Host"]}, "no header that can carry one"),
        ({"headers": ["content-length"]}, "no header that can carry one"),
        ({"headers": ["x y"]}, "no header that can carry one"),
        ({"headers": ["x\r\nevil"]}, "no header that can carry one"),
        ({"queries": ["a&b"]}, "no plain name"),
        ({"env": "PATH"}, "no variable"),
        ({"env": "LD_PRELOAD"}, "no variable"),
        ({"env": "lower"}, "no variable"),
        ({"value": "short"}, "8 to 8192"),
        ({"value": "x" * 9000}, "8 to 8192"),
        ({"value": "two\r\nX-Evil: lines"}, "cannot stand there"),
        ({"value": "ends in a newline\n"}, "cannot stand there"),
        ({"value": "nul\0nul\0nul"}, "cannot stand there"),
        ({"value": PREFIX + "0" * 32}, "itself a placeholder"),
    ],
)
def test_a_bad_secret_is_refused_at_the_door(place: Place, words: dict[str, Any], why: str) -> None:
    """With the reason, and never with the value in it."""
    asked: dict[str, Any] = {"value": "good-enough-value", "hosts": ["ok.example.com"], "headers": ["x-key"]} | words
    with pytest.raises(BadRequest, match=why) as refused:
        place.run(lambda: place.client.set_secret("bad", **asked))
    assert asked["value"] not in str(refused.value)
    assert [secret.name for secret in place.run(place.client.secrets)] == ["api", "other-1"]


@pytest.mark.parametrize("name", ["Api", "a b", "-a", "a" * 64, "a.b"])
def test_a_bad_name_is_refused(place: Place, name: str) -> None:
    """Before anything is kept."""
    with pytest.raises(RingfenceError):
        place.run(lambda: place.client.set_secret(name, "good-enough-value", [API], headers=["x-key"]))


def test_what_contradicts_itself_is_refused(place: Place) -> None:
    """No network and a secret for hosts outside; the same twice; a runtime that has no network."""
    for asked, why in (
        ({"secrets": ["api"], "egress": "none"}, "contradict"),
        ({"secrets": ["api", "api"]}, "each once"),
        ({"secrets": ["../api"]}, "no name"),
    ):
        with pytest.raises(BadRequest, match=why):
            place.run(lambda a=asked: place.client.run("print(1)", **a))  # type: ignore[misc]


def test_the_command_line(place: Place, hosts: Hosts, tmp_path: Path) -> None:
    """A value from a pipe or a file, and from no argument; listed without it, used by name, removed."""
    ran = place.run(
        lambda: place.served.run(
            "secrets", "set", "piped", "--host", API, "--query", "key", "--env", "THE_KEY", stdin=b"piped value/1\n"
        )
    )
    assert ran.returncode == 0, ran.stderr
    file = tmp_path / "value"
    file.write_text("filed-value-1")
    kept = place.run(lambda: place.served.run("secrets", "set", "filed", "--host", API, "--body", "--file", str(file)))
    assert kept.stdout == b"filed kept; inside it is $FILED\n"
    shown = place.run(lambda: place.served.run("secrets", "list")).stdout.decode()
    assert "query key" in shown
    assert "piped value" not in shown
    code = (
        "import os, urllib.request as u\n"
        f"u.urlopen('https://{API}/v1?a=1&key=' + os.environ['THE_KEY'], data=b'x=' + os.environ['FILED'].encode())"
    )
    used = place.run(lambda: place.served.run("run", "--secret", "piped", "--secret", "filed", "--code", code))
    assert used.returncode == 0, used.stderr
    [sent] = hosts.kept[API]
    assert (sent.target, sent.body) == ("/v1?a=1&key=piped%20value%2F1", b"x=filed-value-1")
    assert sent.header("content-length") == str(len(sent.body))
    gone = place.run(lambda: place.served.run("secrets", "remove", "piped", "filed"))
    assert gone.stdout == b"piped removed\nfiled removed\n"
    again = place.run(lambda: place.served.run("secrets", "remove", "piped"))
    assert again.returncode != 0
    no_value = place.run(lambda: place.served.run("secrets", "set", "x", "--host", API, "--header", "a", stdin=b""))
    assert no_value.returncode != 0
