"""Published ports of real sandboxes, through a real server: what is served inside has a URL outside."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ringfence import Client, Sandbox
from ringfence.domain.errors import NotFound
from tests.support import ledger, scale
from tests.support.served import key, served

MIB = 1024 * 1024
APP = r"""
import base64, hashlib, http.server, os, time

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/down":
            self.send_response(200)
            self.send_header("Content-Length", str(50 << 20))
            self.end_headers()
            for _ in range(800):
                self.wfile.write(b"x" * 65536)
        elif self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.close_connection = True
            for n in range(6000):
                self.wfile.write(b"data: %d\n\n" % n)
                time.sleep(0.1)
        elif self.headers.get("Upgrade") == "websocket":
            self.talk()
        else:
            self.reply(("%s %s" % (os.environ.get("WHO", "?"), self.headers)).encode())

    def do_POST(self):
        seen, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 65536))
            seen.update(piece)
            left -= len(piece)
        self.reply(seen.hexdigest().encode())

    def talk(self):
        proof = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(proof.encode()).digest()).decode()
        self.wfile.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: " + accept + "\r\n\r\n").encode())
        self.close_connection = True
        while True:
            first, second = self.rfile.read(2)
            size = second & 127
            if size == 126:
                size = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[n % 4] for n, b in enumerate(self.rfile.read(size)))
            if first & 15 == 8:
                return
            head = bytes([first, len(data)]) if len(data) < 126 else bytes([first, 126]) + len(data).to_bytes(2, "big")
            self.wfile.write(head + data)

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of the session's server."""
    with served().client() as made:
        yield made


def serving(client: Client, who: str) -> Sandbox:
    """A sandbox in which the application runs."""
    place = Sandbox.create(ttl=6000, client=client)
    place.files.write("app.py", APP)
    place.start(["python3", "app.py"], env={"WHO": who})
    return place


@pytest.fixture(scope="module")
def sb(client: Client) -> Iterator[Sandbox]:
    """One such sandbox."""
    with serving(client, "ada") as made:
        yield made


@pytest.fixture(scope="module")
def url(sb: Sandbox) -> str:
    """Its public URL."""
    return sb.publish(8000, public=True, wait=60)


def opened(url: str) -> http.client.HTTPConnection:
    """A connection to the edge."""
    return http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=90)


def get(url: str, path: str = "/", **headers: str) -> tuple[int, bytes]:
    """A GET with the URL's Host: names below .localhost resolve in browsers, not everywhere."""
    with contextlib.closing(opened(url)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers={"Host": urlsplit(url).netloc, **named})
        answer = connection.getresponse()
        return answer.status, answer.read()


def api_process() -> int:
    """The server's api process."""
    root = json.loads((served().state / "serve.json").read_bytes())["pid"]
    return next(p for p in ledger.tree(root) if "ringfence.api" in ledger._text(f"/proc/{p}/cmdline"))


def test_what_is_served_inside_has_a_url(sb: Sandbox, url: str) -> None:
    """The first request waits until the server listens; the name says port and sandbox."""
    assert urlsplit(url).hostname == f"8000-{sb.id}.sbx.localhost"
    status, body = get(url)
    assert status == 200
    assert body.startswith(b"ada ")
    assert b"X-Forwarded-For: 127.0.0.1" in body


def test_fifty_megabytes_each_way_leave_the_server_small(url: str) -> None:
    """Neither body is ever held: the api does not grow by what passes through it."""
    get(url)
    pid = api_process()
    before, grown, done = ledger.process(pid).resident_bytes, 0, threading.Event()

    def watch() -> None:
        nonlocal grown
        while not done.wait(0.02):
            grown = max(grown, ledger.process(pid).resident_bytes - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        status, body = get(url, "/down")
        assert (status, len(body)) == (200, 50 * MIB)
        piece = os.urandom(MIB)
        with contextlib.closing(opened(url)) as connection:
            headers = {"Host": urlsplit(url).netloc, "Content-Length": str(50 * MIB)}
            connection.request("POST", "/", body=iter([piece] * 50), headers=headers, encode_chunked=False)
            assert connection.getresponse().read().decode() == hashlib.sha256(piece * 50).hexdigest()
    finally:
        done.set()
        watching.join()
    assert grown < 16 * MIB


def test_events_are_seen_as_they_happen(url: str) -> None:
    """The first at once, though the stream goes on for ten minutes."""
    with contextlib.closing(opened(url)) as connection:
        connection.request("GET", "/events", headers={"Host": urlsplit(url).netloc})
        answer = connection.getresponse()
        assert answer.readline() == b"data: 0\n"


def test_a_websocket_echoes(url: str) -> None:
    """Text and binary, through the sandbox's one channel."""
    raw = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=60)
    with connect(f"ws://{urlsplit(url).netloc}/", sock=raw, compression=None, proxy=None) as talk:
        talk.send("hello")
        assert talk.recv(timeout=60) == "hello"
        talk.send(b"\0\1" * 500)
        assert talk.recv(timeout=60) == b"\0\1" * 500


def test_a_private_port_is_its_owners(client: Client) -> None:
    """By key, by link until it is revoked; for anybody else it is not there, and neither is a sandbox of another."""
    other = key(served().state / "api" / "ringfence.db", "another")
    with serving(client, "mine") as place:
        url = place.publish(8000, wait=60)
        hidden = get(url)
        assert hidden[0] == 404
        assert get(url, X_Ringfence_Access=other) == hidden
        assert get(url.replace("8000-", "8001-"), X_Ringfence_Access=served().key) == hidden
        assert get(url, X_Ringfence_Access=served().key)[1].startswith(b"mine ")
        link = place.share(8000, ttl=60)
        assert get(url, X_Ringfence_Access=link.token or "")[0] == 200
        place.unshare(8000, link.id)
        assert get(url, X_Ringfence_Access=link.token or "") == hidden
        with Client(served().url, other, timeout=60) as stranger, pytest.raises(NotFound):
            Sandbox(stranger, place.info, owns_client=False, stops=False).publish(8000, public=True)
        place.unpublish(8000)
        assert get(url, X_Ringfence_Access=served().key) == hidden


def test_two_sandboxes_are_told_apart(client: Client, url: str) -> None:
    """The same port of two sandboxes, in turns on one connection."""
    with serving(client, "bob") as place:
        theirs = place.publish(8000, public=True, wait=60)
        get(theirs)
        with contextlib.closing(opened(url)) as connection:
            for turn in range(20):
                connection.request("GET", "/", headers={"Host": urlsplit((url, theirs)[turn % 2]).netloc})
                assert connection.getresponse().read().startswith((b"ada ", b"bob ")[turn % 2])


def test_a_port_where_nothing_listens_says_why(sb: Sandbox) -> None:
    """After the wait asked for, not after a minute."""
    url = sb.publish(9, public=True, wait=0.5)
    status, body = get(url)
    assert status == 502
    assert b"nothing listens on port 9 inside the sandbox; waited 0.5 s" in body


def test_a_sandbox_that_dies_breaks_its_answer_and_loses_its_name(client: Client) -> None:
    """Half an event stream does not look like a whole one, and the name leads nowhere after."""
    place = serving(client, "doomed")
    url = place.publish(8000, public=True, wait=60)
    with contextlib.closing(opened(url)) as connection:
        connection.request("GET", "/events", headers={"Host": urlsplit(url).netloc})
        answer = connection.getresponse()
        assert answer.readline() == b"data: 0\n"
        place.stop()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            answer.read()
    assert get(url)[0] == 404


def test_an_expired_sandbox_loses_its_name(client: Client) -> None:
    """Nobody has to unpublish anything."""
    place = Sandbox.create(ttl=6000, client=client)
    url = place.publish(8000, public=True, wait=0)
    assert get(url)[0] == 502
    place.extend(1)
    deadline = time.monotonic() + 60
    while get(url)[0] != 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_websocket_ends_with_its_sandbox(client: Client) -> None:
    """At once."""
    place = serving(client, "doomed")
    url = place.publish(8000, public=True, wait=60)
    get(url)
    raw = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=60)
    with connect(f"ws://{urlsplit(url).netloc}/", sock=raw, compression=None, proxy=None) as talk:
        talk.send("x")
        talk.recv(timeout=60)
        place.stop()
        with pytest.raises((ConnectionClosed, ConnectionResetError)):
            talk.recv(timeout=60)


def test_a_killed_api_comes_back_with_the_ports_of_what_lived_on(client: Client) -> None:
    """The same URL, on the same port, answers again; nobody publishes it anew."""
    with serving(client, "kept") as place:
        url = place.publish(8000, wait=60)
        assert get(url, X_Ringfence_Access=served().key)[0] == 200
        os.kill(api_process(), 9)
        deadline, status = time.monotonic() + 60, 0
        while status != 200 and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status = get(url, X_Ringfence_Access=served().key)[0]
            time.sleep(0.1)
        assert status == 200


def test_the_command_line_publishes(sb: Sandbox) -> None:
    """The URL alone is on stdout; --link prints a link; what is wrong is said."""
    done = served().run("sandbox", "publish", sb.id, "8000", "--public")
    assert done.stdout.decode().strip().startswith(f"http://8000-{sb.id}.sbx.localhost:")
    linked = served().run("sandbox", "publish", sb.id, "8000", "--link", "10m", "--json")
    told = json.loads(linked.stdout)
    assert told["link"]["url"].startswith(told["url"] + "/?ringfence-access=rfl_")
    assert b"8000" in served().run("sandbox", "ports", sb.id).stdout
    assert served().run("sandbox", "publish", sb.id, "8000", "--once").returncode == 2
    assert served().run("sandbox", "unpublish", sb.id, "8000").returncode == 0
    assert served().run("sandbox", "unpublish", sb.id, "8000").returncode != 0


def test_every_port_is_published_at_once(sb: Sandbox) -> None:
    """From the SDK and the command line; any port is reached by the token that was made, and by none other."""
    made = sb.publish_all(wait=10)
    assert made.token is not None
    url = made.url.replace("{port}", "8000")
    assert get(url)[0] == 403
    assert get(url, **{"E2B-Traffic-Access-Token": made.token})[0] == 200
    status, body = get(made.url.replace("{port}", "10"), **{"E2B-Traffic-Access-Token": made.token})
    assert (status, json.loads(body)["message"]) == (502, "The sandbox is running but port is not open")
    assert b"any" in served().run("sandbox", "ports", sb.id).stdout
    done = served().run("sandbox", "publish", sb.id, "any", "--public")
    assert done.stdout.decode().strip() == made.url
    assert get(url)[0] == 200
    assert served().run("sandbox", "publish", sb.id, "any", "--link", "10m").returncode == 2
    assert served().run("sandbox", "unpublish", sb.id, "any").returncode == 0
    assert get(url)[0] == 404


def test_nothing_stays_open_after_much_was(sb: Sandbox) -> None:
    """Descriptors of the api return to what they were, after whole answers, broken ones and abandoned ones."""
    url = sb.publish(8000, public=True, wait=60)
    get(url)
    pid = api_process()
    time.sleep(3)
    before = ledger.process(pid).descriptors
    for _ in range(100):
        get(url)
        with contextlib.closing(opened(url)) as connection:
            connection.request("GET", "/events", headers={"Host": urlsplit(url).netloc})
            connection.getresponse().readline()
        with contextlib.closing(opened(url)) as connection:
            connection.putrequest("POST", "/", skip_host=True)
            connection.putheader("Host", urlsplit(url).netloc)
            connection.putheader("Content-Length", "1000000")
            connection.endheaders(b"half")
    deadline = time.monotonic() + 60
    while (now := ledger.process(pid).descriptors) > before + 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert now <= before + 2, (before, now)


@pytest.mark.parametrize("isolation", scale.OTHERS)
def test_every_way_to_isolate_publishes(client: Client, isolation: str) -> None:
    """The bytes take the agent's channel, so no runtime needs a network for it."""
    found = {runtime.name: runtime for runtime in client.runtimes()}.get(isolation)
    if found is None or not found.available:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{isolation} is not available")
        pytest.skip(f"{isolation} is not available: {found.reason if found else 'unknown'}")
    with Sandbox.create(ttl=600, isolation=isolation, client=client) as place:
        place.files.write("app.py", APP)
        place.start(["python3", "app.py"], env={"WHO": isolation})
        url = place.publish(8000, public=True, wait=30)
        status, body = get(url)
        assert (status, body.split()[0].decode()) == (200, isolation)
        assert len(get(url, "/down")[1]) == 50 * MIB
