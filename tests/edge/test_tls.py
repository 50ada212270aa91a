"""TLS in the edge itself, with real clients: names, certificates that change, handshakes that stall or lie."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from ringfence.domain.errors import RingfenceError
from ringfence.edge.authority import Authority
from ringfence.edge.certificates import Channel, Received, Watched
from ringfence.edge.tls import Pair, quiet, read_pair
from tests.edge.inside import SETTINGS, Box, EdgeApi, Program, Said, answering, box, plain, read, until
from tests.edge.test_serving import pausing
from tests.edge.test_traefik import tool
from tests.support.tls import trusting

DOMAIN = "sbx.test"


@dataclass
class Site:
    """An edge with TLS, its authority, and the channel its certificates come through."""

    api: EdgeApi
    authority: Authority
    channel: Channel

    def context(self, *protocols: str) -> ssl.SSLContext:
        """What a client that trusts this authority alone uses."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def open(self, name: str | None, *protocols: str) -> ssl.SSLSocket:
        """A connection by this name; without one, none is told and none is checked."""
        context = self.context(*protocols)
        context.check_hostname = name is not None
        return context.wrap_socket(self.api.open(), server_hostname=name)

    def ask(self, name: str | None, host: str, *lines: str) -> Said:
        """One request to a host, on a connection by a name."""
        with self.open(name) as connection:
            connection.sendall("\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *lines]).encode() + b"\r\n\r\n")
            return read(connection)

    def host(self, place: Box, port: int = 8000) -> str:
        """A published port's name."""
        return f"{port}-{place.id}.{DOMAIN}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of our own."""
    made = Authority(tmp_path_factory.mktemp("ca"), DOMAIN)
    made.ensure()
    return made


@contextlib.contextmanager
def site_of(authority: Authority, **changed: object) -> Iterator[Site]:
    """An edge that shows a certificate of this authority."""
    settings = msgspec.structs.replace(
        SETTINGS, domain=DOMAIN, certificate=str(authority.server), certificate_key=str(authority.server_key), **changed
    )
    channel = Channel()
    channel.send(read_pair(str(authority.server), str(authority.server_key)))
    with EdgeApi(settings, Received(channel.theirs.detach())) as api:
        yield Site(api, authority, channel)
    channel.close()


@pytest.fixture(scope="module")
def site(authority: Authority) -> Iterator[Site]:
    """One for all."""
    with site_of(authority, serve_api=True) as made:
        yield made


@pytest.fixture
def ada(site: Site) -> Iterator[Box]:
    """A sandbox."""
    with box(site.api) as made:
        yield made


def test_real_clients_are_served(site: Site, ada: Box) -> None:
    """Python's own, httpx and curl, each checking the certificate; the program is told that it was https."""
    with Program(answering(plain(b"inside"))) as program:
        url = ada.client.post(f"/v1/sandboxes/{ada.id}/ports", json={"port": 8000, "public": True}).json()["url"]
        ada.lead(program)
        host, port = site.host(ada), site.api.edge_port
        assert url == f"https://{host}:{port}"
        assert site.ask(host, f"{host}:{port}").body == b"inside"
        with httpx.Client(verify=site.context(), trust_env=False) as client:
            said = client.get(f"https://127.0.0.1:{port}/", headers={"Host": host}, extensions={"sni_hostname": host})
            assert (said.text, said.http_version) == ("inside", "HTTP/1.1")
        words = [tool("curl"), "-sS", "-m", "20", "--cacert", str(site.authority.certificate)]
        words += ["--resolve", f"{host}:{port}:127.0.0.1", "-w", "|%{http_version}", f"https://{host}:{port}/"]
        done = subprocess.run(words, capture_output=True, check=False, timeout=90)
        assert done.stdout == b"inside|1.1", done.stderr
    for head in program.heads:
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head


def test_node_trusts_the_authority_too(site: Site, ada: Box) -> None:
    """By NODE_EXTRA_CA_CERTS; its OpenSSL reads the constraint on names as ours does."""
    code = (
        "const https=require('https');const [host,port]=process.argv.slice(1);"
        "https.get({host:'127.0.0.1',port,servername:host,headers:{Host:host},path:'/health'},"
        "a=>{console.log(a.statusCode);a.resume()}).on('error',e=>console.log(e.message))"
    )
    env = {**os.environ, "NODE_EXTRA_CA_CERTS": str(site.authority.certificate)}
    words = [tool("node"), "-e", code, f"api.{DOMAIN}", str(site.api.edge_port)]
    done = subprocess.run(words, env=env, capture_output=True, check=False, timeout=90)
    assert done.stdout.strip() == b"200", done.stdout + done.stderr


def test_a_websocket_passes_through_tls(site: Site, ada: Box) -> None:
    """Both ways, with its goodbye."""
    with serve(lambda talk: [talk.send(message) for message in talk], "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ada.publish(public=True)
        site.api.inner.inside[ada.id, 8000] = server.socket.getsockname()[1]
        host = site.host(ada)
        context = trusting(site.authority.certificate)
        with connect(f"wss://{host}/", sock=site.api.open(), ssl=context, compression=None) as talk:
            talk.send("x" * 300_000)
            assert talk.recv(timeout=60) == "x" * 300_000
        server.shutdown()


def test_megabytes_pass_both_ways(site: Site, ada: Box) -> None:
    """Unchanged, and no faster than the slower end takes them."""
    data = os.urandom(1 << 20) * 20

    def echo(connection: socket.socket, head: bytes) -> None:
        body = head.partition(b"\r\n\r\n")[2]
        while len(body) < len(data):
            body += connection.recv(1 << 20)
        connection.sendall(plain(body))

    with Program(echo) as program, httpx.Client(verify=site.context(), trust_env=False, timeout=60) as client:
        ada.publish(program, public=True)
        host, where = site.host(ada), f"https://127.0.0.1:{site.api.edge_port}/"
        said = client.post(where, headers={"Host": host}, extensions={"sni_hostname": host}, content=data)
        assert said.content == data


def test_the_api_answers_through_tls(site: Site) -> None:
    """On one connection again and again; it knows that it is https, and another Host on it is misdirected."""
    with site.open(f"api.{DOMAIN}") as connection:
        for host, status in ((f"api.{DOMAIN}", 200), (f"api.{DOMAIN}", 200), (DOMAIN, 421)):
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert read(connection).status == status


def test_a_sandbox_that_dies_is_no_clean_end(site: Site) -> None:
    """The connection is reset, without TLS's goodbye: nobody takes half an answer for a whole one."""
    with box(site.api) as mine, Program(pausing) as program:
        mine.publish(program, public=True)
        host, context = site.host(mine), site.context()
        raw = site.api.open()
        with context.wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            while b"\r\n\r\n" not in connection.recv(4096):
                pass
            mine.client.delete(f"/v1/sandboxes/{mine.id}")
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                list(iter(lambda: connection.recv(4096), b""))


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_host_is_the_name_that_was_asked_for(site: Site, ada: Box) -> None:
    """One TLS connection is for one name; for another, with whatever port, it is misdirected."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program, public=True)
        host = site.host(ada)
        with site.open(f"8001-{ada.id}.{DOMAIN}") as connection:
            for other in (host, f"{host}:{site.api.edge_port}", f"api.{DOMAIN}", DOMAIN, "localhost", "127.0.0.1"):
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {other}\r\n\r\n".encode())
                said = read(connection)
                assert (said.status, said.code) == (421, "wrong_host"), other
        with site.open(host) as connection:
            for _ in range(2):
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert read(connection).status == 200
        assert len(program.heads) == 2


def test_without_a_name_only_addresses_are_answered(site: Site, ada: Box) -> None:
    """A client that knows an address alone may route by headers; it may not speak for a name."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program, public=True)
        routed = (f"E2b-Sandbox-Id: {ada.id}", "E2b-Sandbox-Port: 8000")
        assert site.ask(None, "127.0.0.1", *routed).body == b"inside"
        for host in (site.host(ada), DOMAIN, "localhost"):
            assert site.ask(None, host, *routed).status == 421
        assert site.ask(None, f"[::1]:{site.api.edge_port}", *routed).body == b"inside"
        assert len(program.heads) == 2


def test_a_name_in_capitals_is_the_same_name(site: Site, ada: Box) -> None:
    """In TLS, that is; a Host is exact."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program, public=True)
        host = site.host(ada)
        context = site.context()
        context.check_hostname = False
        with context.wrap_socket(site.api.open(), server_hostname=host.upper()) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert read(connection).body == b"inside"


@pytest.mark.parametrize("name", ["evil.example", f"a.b.{DOMAIN}", f"x{DOMAIN}", "test", f"{DOMAIN}.evil.example"])
def test_a_name_that_is_not_ours_is_answered_by_nobody(site: Site, name: str) -> None:
    """A client that checks sees whose certificate it is; one that does not is told that it went astray."""
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        site.open(name)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(site.api.open(), server_hostname=name) as connection:
        for host in (name, DOMAIN):
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert read(connection).status == 421


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_and_other_protocols_are_not_spoken(site: Site) -> None:
    """TLS 1.2 at least; of what a client offers, http/1.1 is chosen, and h2 is not."""
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with pytest.raises((ssl.SSLError, ConnectionError)), site.api.open() as raw:
            context.wrap_socket(raw, server_hostname=DOMAIN)
    with site.open(DOMAIN, "h2", "http/1.1") as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert connection.version() in {"TLSv1.2", "TLSv1.3"}


def test_the_authority_vouches_for_its_domain_alone(authority: Authority, tmp_path: Path) -> None:
    """Whoever steals its key can pretend to be the development domain, and no bank."""
    stolen = Authority(authority.place, DOMAIN).issue(["bank.example"])
    for name, pair in (("crt", stolen.certificate), ("key", stolen.key)):
        (tmp_path / name).write_bytes(pair)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(authority.certificate))
    there = client.wrap_bio(incoming, outgoing, server_hostname="bank.example")
    here = server.wrap_bio(outgoing, incoming, server_side=True)

    def agree() -> None:
        for side in (there, here) * 4:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        agree()


# --- certificates that change -----------------------------------------------------------------------------------------


def shown(site: Site) -> bytes:
    """The certificate a client sees."""
    with site.open(DOMAIN) as connection:
        return connection.getpeercert(binary_form=True) or b""


def test_a_new_certificate_is_shown_to_the_next_client(site: Site, ada: Box) -> None:
    """While an open connection goes on; one that cannot be used changes nothing."""
    with Program(answering(plain(b"inside"))) as program, site.open(DOMAIN) as open_:
        ada.publish(program, public=True)
        before = shown(site)
        site.channel.send(Pair(b"rubbish", b"rubbish"))
        renewed = site.authority.issue([DOMAIN, f"*.{DOMAIN}"])
        site.channel.send(Pair(renewed.certificate, site.authority.server_key.read_bytes()))
        time.sleep(0.1)
        assert shown(site) == before
        site.channel.send(renewed)
        until(lambda: shown(site) != before)
        open_.sendall(
            f"GET /p/{ada.id}/8000/ HTTP/1.1\r\nHost: {DOMAIN}\r\nX-Ringfence-Access: {site.api.ada}\r\n\r\n".encode()
        )
        assert read(open_).body == b"inside"


def test_files_are_watched_and_half_of_a_change_is_none(authority: Authority, tmp_path: Path) -> None:
    """A certificate that is written before its key is not used until both are there."""
    crt, key = tmp_path / "crt", tmp_path / "key"
    first, second = authority.issue([DOMAIN]), authority.issue([DOMAIN])
    crt.write_bytes(first.certificate), key.write_bytes(first.key)
    settings = msgspec.structs.replace(SETTINGS, certificate=str(crt), certificate_key=str(key))
    watched = Watched(settings)

    def look() -> bool:
        watched._due = 0
        return watched.changed()

    assert watched.pair == first
    assert not look()
    crt.write_bytes(second.certificate)
    assert not look()
    assert watched.trouble is not None
    assert watched.pair == first
    key.unlink()
    assert not look()
    key.write_bytes(second.key)
    assert look()
    assert watched.trouble is None
    assert watched.pair == second
    os.utime(crt)
    assert not look()


@pytest.mark.parametrize("kind", ["missing", "empty", "no PEM", "another's key", "with a passphrase", "huge"])
def test_a_certificate_that_is_none_is_refused_when_the_server_starts(
    authority: Authority, tmp_path: Path, kind: str
) -> None:
    """With its file's name; nothing waits for a passphrase at a terminal."""
    crt, key = tmp_path / "crt", tmp_path / "key"
    crt.write_bytes(authority.server.read_bytes())
    key.write_bytes(authority.server_key.read_bytes())
    if kind == "missing":
        crt.unlink()
    elif kind == "empty":
        crt.write_bytes(b"")
    elif kind == "no PEM":
        key.write_bytes(b"\0rubbish")
    elif kind == "another's key":
        key.write_bytes(authority.issue([DOMAIN]).key)
    elif kind == "with a passphrase":
        words = [tool("openssl"), "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", str(key)]
        subprocess.run(words, check=True, capture_output=True, timeout=90)
    else:
        crt.write_bytes(b"x" * 300_000)
    with pytest.raises(RingfenceError) as refused:
        read_pair(str(crt), str(key))
    assert refused.value.code == "bad_certificate"
    assert str(tmp_path) in refused.value.cause


# --- handshakes -------------------------------------------------------------------------------------------------------

HELLO = bytes.fromhex("16030100c0010000bc0303")  # the beginning of a hello that never ends


def test_two_thousand_slow_handshakes_hold_nobody_up(authority: Authority) -> None:
    """So many at most are under way; who has been at it longest makes room, and an honest client gets in at once."""
    with site_of(authority, max_handshakes=64, header_seconds=60) as site, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(site.api.open()) for _ in range(2000)]
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(HELLO)
        assert site.ask(DOMAIN, DOMAIN).status == 404
        slow[0].settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1) == b""
        until(lambda: not site.api.edge._tasks)


def test_a_handshake_that_stalls_is_given_up(authority: Authority) -> None:
    """Whether it never began, stopped in the middle, or is dripped byte by byte."""
    with site_of(authority, header_seconds=1) as site, contextlib.ExitStack() as stack:
        silent, half, dripped = (stack.enter_context(site.api.open()) for _ in range(3))
        with contextlib.suppress(OSError):  # given up already, where all stood still
            half.sendall(HELLO)
        stopped = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stopped.wait(0.1):
                    dripped.sendall(HELLO[:1])

        thread = threading.Thread(target=drip)
        thread.start()
        for connection in (silent, half, dripped):
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(100):
                    pass
        stopped.set()
        thread.join(60)


LIES = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: sbx.test\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": b"\0" * 2000,
    "a record too long": b"\x16\x03\x01\xff\xff" + b"\0" * 70_000,
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "an old SSL": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\0" * 40,
    "a name with a NUL": b"",
}


def hello_for(name: bytes) -> bytes:
    """A client's first record with this name in it, where no client would let one: up to 63 bytes."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="x" * len(name)).do_handshake()
    return outgoing.read().replace(b"x" * len(name), name)


@pytest.mark.parametrize("kind", LIES)
def test_what_is_no_handshake_ends_quietly(
    site: Site,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a line in the log for each, which would fill it, and the edge serves on."""
    names = [b"sbx\0test", b"\xff\xfe.sbx.test", b".sbx.test", b"sbx.test.", b"127.0.0.1", b" " * 20, b"a" * 63]
    data = [LIES[kind]] if LIES[kind] else [hello_for(name) for name in names]
    monkeypatch.setattr(sys, "unraisablehook", quiet)
    with caplog.at_level(logging.WARNING):
        for each in data:
            with site.api.open() as connection, contextlib.suppress(OSError):
                connection.sendall(each)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        assert site.ask(DOMAIN, DOMAIN).status == 404
    assert not caplog.records
    assert not capfd.readouterr().err
