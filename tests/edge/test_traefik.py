"""The example deployment for real: Traefik in front for TLS and HTTP/2, with the files in examples/ingress."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from ringfence.config import EdgeSettings
from tests.edge.inside import SETTINGS, Box, EdgeApi, Program, answering, box, plain
from tests.support.served import free_port
from tests.support.tls import trusting

HERE = Path(__file__).parents[2] / "examples" / "ingress"
DOMAIN = "sbx.example.com"


def tool(name: str) -> str:
    """Where a tool is. Without it the test is skipped here, and fails where everything must be there."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


@dataclass
class Front:
    """A Traefik that leads to an edge."""

    api: EdgeApi
    port: int
    authority: Path

    def curl(self, host: str, path: str = "/", *words: str) -> subprocess.CompletedProcess[bytes]:
        """Ask as a user would: by name, with the certificate checked."""
        return subprocess.run(self.words(host, path, *words), capture_output=True, check=False, timeout=90)

    def words(self, host: str, path: str, *words: str) -> list[str]:
        """The command for it."""
        given = ["--resolve", f"{host}:{self.port}:127.0.0.1", "--cacert", str(self.authority), "-sS", "-m", "60"]
        return [tool("curl"), *given, *words, f"https://{host}:{self.port}{path}"]


def certificate(place: Path) -> None:
    """A wildcard certificate that signs itself."""
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN=*.{DOMAIN}", "-addext", f"subjectAltName=DNS:*.{DOMAIN}"]
    files = ["-keyout", str(place / "sbx.key"), "-out", str(place / "sbx.crt")]
    subprocess.run([tool("openssl"), *words, *names, *files], check=True, capture_output=True, timeout=60)


def wait_for(port: int, authority: Path) -> None:
    """Until it shows our certificate."""
    context, deadline = ssl.create_default_context(cafile=str(authority)), time.monotonic() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as raw:
                context.wrap_socket(raw, server_hostname=f"any.{DOMAIN}").close()
        except OSError:
            assert time.monotonic() < deadline, "Traefik is not ready"
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """The example's files, with our ports and places in them."""
    traefik = tool("traefik")
    example = msgspec.convert(tomllib.loads((HERE / "server.toml").read_text())["edge"], EdgeSettings)
    port = free_port()
    settings = msgspec.structs.replace(
        SETTINGS,
        domain=example.domain,
        scheme=example.scheme,
        trusted_proxies=example.trusted_proxies,
        public_port=port,
    )
    with EdgeApi(settings) as api, tempfile.TemporaryDirectory(prefix="rf-traefik-") as name:
        place = Path(name)
        certificate(place)
        static = (HERE / "traefik.toml").read_text()
        static = static.replace(":80", f"127.0.0.1:{free_port()}", 1).replace(":443", f"127.0.0.1:{port}", 1)
        dynamic = (HERE / "dynamic.toml").read_text()
        dynamic = dynamic.replace("127.0.0.1:8643", f"127.0.0.1:{api.edge_port}").replace("/etc/traefik", str(place))
        (place / "traefik.toml").write_text(static)
        (place / "dynamic.toml").write_text(dynamic)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen([traefik, "--configfile=traefik.toml"], cwd=place, stdout=log, stderr=log)
        try:
            wait_for(port, place / "sbx.crt")
            yield Front(api, port, place / "sbx.crt")
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def ada(front: Front) -> Iterator[Box]:
    """A sandbox."""
    with box(front.api) as made:
        yield made


def test_https_and_http_2_lead_inside(front: Front, ada: Box) -> None:
    """The program is told who asked and how, by the proxy that is trusted to say so."""
    with Program(answering(plain(b"inside"))) as program:
        url = ada.publish(program, public=True)
        host = f"8000-{ada.id}.{DOMAIN}"
        assert url == f"https://{host}:{front.port}"
        for version, seen in (("--http1.1", b"1.1"), ("--http2", b"2")):
            done = front.curl(host, "/", version, "-w", "|%{http_version}", "-H", "X-Forwarded-For: 6.6.6.6")
            assert done.stdout == b"inside|" + seen, done.stderr
    for head in program.heads:
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head
        assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
        assert b"6.6.6.6" not in head


def test_a_private_port_stays_private_behind_a_proxy(front: Front, ada: Box) -> None:
    """A browser with a link gets in by a cookie; nobody else does."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program)
        host = f"8000-{ada.id}.{DOMAIN}"
        assert b"not_published" in front.curl(host).stdout
        link = ada.link()["url"].partition(f":{front.port}")[2]
        jar = front.authority.with_name("jar")
        done = front.curl(host, link, "--http2", "-L", "-c", str(jar), "-b", str(jar))
        assert done.stdout == b"inside", done.stderr
        assert front.curl(host, "/", "-b", str(jar)).stdout == b"inside"
        assert b"ringfence" not in program.heads[-1].replace(b"X-Ringfence", b"")


def test_a_name_that_is_none_gets_no_further(front: Front, ada: Box) -> None:
    """Traefik's own rule refuses it before we do."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program, public=True)
        for host in (f"x.8000-{ada.id}.{DOMAIN}", f"0-{ada.id}.{DOMAIN}", f"other.{DOMAIN}"):
            done = front.curl(host, "/", "-k", "-w", "|%{http_code}")
            assert done.stdout.endswith((b"|404", b"|421")), host
    assert not program.heads


def test_websockets_and_events_pass_at_once(front: Front, ada: Box) -> None:
    """Nothing in between gathers what should be seen now."""
    with serve(lambda talk: [talk.send(message) for message in talk], "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ada.publish(public=True)
        front.api.inner.inside[ada.id, 8000] = server.socket.getsockname()[1]
        host = f"8000-{ada.id}.{DOMAIN}"
        context = trusting(front.authority)
        raw = socket.create_connection(("127.0.0.1", front.port), timeout=60)
        with connect(f"wss://{host}:{front.port}/", sock=raw, ssl=context, compression=None) as talk:
            talk.send("hello")
            assert talk.recv(timeout=60) == "hello"
        server.shutdown()

    def events(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        with contextlib.suppress(OSError):  # until whoever asked is gone
            connection.settimeout(60)
            connection.recv(1)

    with Program(events) as program:
        ada.lead(program)
        words = front.words(host, "/", "--http2", "-N")
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"data: 1\n"  # while the answer goes on
            asking.kill()
