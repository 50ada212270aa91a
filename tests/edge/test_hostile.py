"""Hosts of every wrong kind, requests two parsers could read differently, cookies, and headers that lie."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from tests.edge.inside import SETTINGS, Box, EdgeApi, Program, Said, answering, ask, box, plain, read, send, until


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """A program that answers everything."""
    with Program(answering(plain(b"inside"))) as made:
        yield made


@pytest.fixture
def host(ada: Box, program: Program) -> str:
    """The Host of a public port."""
    return ada.publish(program, public=True)


# --- Host -------------------------------------------------------------------------------------------------------------

WRONG_HOSTS = {
    "another name": ("evil.example", 421),
    "a prefix": ("x{host}", 404),
    "a suffix": ("{name}.evil.example", 421),
    "nested": ("a.{host}", 421),
    "twice nested": ("{label}.{label}.sbx.localhost", 421),
    "the bare label": ("{label}", 421),
    "upper case": ("{upper}", 421),
    "upper case label": ("{upper_label}.sbx.localhost", 404),
    "a trailing dot": ("{name}.", 421),
    "a trailing dot and port": ("{name}.:{port}", 421),
    "two dots": ("{label}..sbx.localhost", 400),
    "a wrong port": ("{name}:1", 421),
    "an empty port": ("{name}:", 400),
    "port zero": ("{name}:0", 400),
    "a signed port": ("{name}:+{port}", 400),
    "a port of letters": ("{name}:http", 400),
    "two ports": ("{host}:{port}", 400),
    "a padded port": ("{name}:0{port}", 400),
    "user info": ("user@{host}", 400),
    "user info behind": ("{host}@evil.example", 400),
    "a path": ("{host}/?x=", 400),
    "a query": ("{name}?x", 400),
    "a fragment": ("{name}#x", 400),
    "a scheme": ("http://{host}", 400),
    "a space": ("{host} evil.example", 400),
    "a comma": ("{host},evil.example", 400),
    "a list": ("{host}, {host}", 400),
    "unicode": ("\u212a{host}", 400),
    "a full-width dot": ("{label}\uff0esbx\uff0elocalhost", 400),
    "percent": ("%38000-{host}", 400),
    "an underscore": ("8000_{host}", 400),
    "empty": ("", 400),
    "a dot": (".", 400),
    "only a port": (":{port}", 400),
    "an address": ("127.0.0.1:{port}", 404),
    "another address": ("10.0.0.1", 421),
    "an address as a number": ("2130706433", 421),
    "IPv6": ("[::1]:{port}", 404),
    "another IPv6": ("[::2]", 421),
    "broken IPv6": ("[::1", 400),
    "metadata": ("169.254.169.254", 421),
    "localhost": ("localhost:{port}", 404),
    "the domain": ("sbx.localhost:{port}", 404),
    "the api": ("127.0.0.1:{api}", 421),
    "a padded label": ("0{host}", 404),
    "a port too large": ("98000{rest}", 404),
    "an id too short": ("{short}.sbx.localhost", 404),
    "too long": ("a" * 300 + ".sbx.localhost", 400),
    "a NUL": ("{name}\0", 400),
    "a tab": ("{name}\t.x", 400),
}


@pytest.mark.parametrize("kind", WRONG_HOSTS)
def test_only_the_exact_name_is_answered(api: EdgeApi, host: str, program: Program, kind: str) -> None:
    """Every other Host is refused with a code, and nothing of it reaches a program, our api or this machine."""
    form, status = WRONG_HOSTS[kind]
    name = host.rpartition(":")[0]
    label = name.partition(".")[0]
    wrong = form.format(
        host=host, name=name, label=label, port=api.edge_port, api=api.port, upper=name.upper(), rest=name[4:],
        upper_label=label.upper(), short=label[:-1],
    )  # fmt: skip
    before = len(program.heads)
    said = send(api, f"GET / HTTP/1.1\r\nHost: {wrong}\r\n\r\n".encode())
    assert said.status == status
    assert said.code in {"wrong_host", "bad_host", "not_published", "bad_header"}
    assert len(program.heads) == before


def test_the_exact_name_is_answered_with_and_without_its_port(api: EdgeApi, host: str) -> None:
    """And X-Forwarded-Host, or any of its kind, says nothing about where a request goes."""
    name = host.rpartition(":")[0]
    assert ask(api, host).body == ask(api, name).body == b"inside"
    assert ask(api, "localhost", X_Forwarded_Host=host).status == 404
    assert ask(api, host, X_Forwarded_Host="evil.example", Forwarded="host=evil.example").body == b"inside"


# --- smuggling --------------------------------------------------------------------------------------------------------

POST = "POST / HTTP/1.1\r\nHost: {host}\r\n"
CODED = "Transfer-Encoding: chunked\r\n"
CHUNKED = POST + CODED + "\r\n"
SMUGGLED = {
    "length and chunks": (POST + "Content-Length: 5\r\n" + CODED + "\r\n0\r\n\r\n", 400, "two_framings"),
    "chunks and length": (POST + CODED + "Content-Length: 5\r\n\r\n0\r\n\r\n", 400, "two_framings"),
    "two lengths": (POST + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "duplicate_length"),
    "two equal lengths": (POST + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400, "duplicate_length"),
    "a list of lengths": (POST + "Content-Length: 1, 1\r\n\r\na", 400, "bad_length"),
    "a signed length": (POST + "Content-Length: +1\r\n\r\na", 400, "bad_length"),
    "a negative length": (POST + "Content-Length: -1\r\n\r\na", 400, "bad_length"),
    "a hexadecimal length": (POST + "Content-Length: 0x1\r\n\r\na", 400, "bad_length"),
    "an underscored length": (POST + "Content-Length: 1_0\r\n\r\naaaaaaaaaa", 400, "bad_length"),
    "an empty length": (POST + "Content-Length:\r\n\r\n", 400, "bad_length"),
    "a fraction": (POST + "Content-Length: 1.0\r\n\r\na", 400, "bad_length"),
    "a length past all": (POST + "Content-Length: 99999999999999999999\r\n\r\n", 400, "bad_length"),
    "an unknown coding": (POST + "Transfer-Encoding: gzip\r\n\r\n", 501, "bad_encoding"),
    "two codings": (POST + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "bad_encoding"),
    "chunked twice": (POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "bad_encoding"),
    "identity": (POST + "Transfer-Encoding: identity\r\n\r\n", 501, "bad_encoding"),
    "an obscured coding": (POST + "Transfer-Encoding: xchunked\r\n\r\n", 501, "bad_encoding"),
    "a vertical tab": (POST + "Transfer-Encoding: \x0bchunked\r\n\r\n", 400, "bad_header"),
    "a quoted coding": (POST + 'Transfer-Encoding: "chunked"\r\n\r\n', 501, "bad_encoding"),
    "chunks in HTTP/1.0": (CHUNKED.replace("1.1", "1.0") + "0\r\n\r\n", 400, "bad_encoding"),
    "a space before the colon": (POST + "Content-Length : 1\r\n\r\na", 400, "bad_header"),
    "a tab before the colon": (POST + "Transfer-Encoding\t: chunked\r\n\r\n", 400, "bad_header"),
    "a folded header": (POST + "X: a\r\n Content-Length: 1\r\n\r\na", 400, "folded_header"),
    "a folded coding": (POST + "Transfer-Encoding:\r\n chunked\r\n\r\n", 400, "folded_header"),
    "a first line folded": ("POST / HTTP/1.1\r\n Host: {host}\r\n\r\n", 400, "folded_header"),
    "a bare LF": (POST + "X: a\nContent-Length: 1\r\n\r\na", 400, "bare_line_end"),
    "only LF": ("GET / HTTP/1.1\nHost: {host}\n\n", 400, "bare_line_end"),
    "a bare CR": (POST + "X: a\rContent-Length: 1\r\n\r\na", 400, "bare_line_end"),
    "CR CR LF": (POST + "X: a\r\r\n\r\n", 400, "bare_line_end"),
    "an empty first line": ("\r\nGET / HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_request_line"),
    "a NUL in a value": (POST + "X: a\0b\r\n\r\n", 400, "bad_header"),
    "a NUL in a name": (POST + "X\0Y: a\r\n\r\n", 400, "bad_header"),
    "no colon": (POST + "X\r\n\r\n", 400, "bad_header"),
    "no name": (POST + ": x\r\n\r\n", 400, "bad_header"),
    "a name in quotes": (POST + '"X": a\r\n\r\n', 400, "bad_header"),
    "a name past ASCII": (POST + "\xe9: a\r\n\r\n", 400, "bad_header"),
    "no Host": ("GET / HTTP/1.1\r\n\r\n", 400, "missing_host"),
    "two Hosts": (POST + "Host: {host}\r\n\r\n", 400, "duplicate_host"),
    "two other Hosts": (POST + "Host: evil.example\r\n\r\n", 400, "duplicate_host"),
    "an absolute target": ("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "another absolute target": ("GET http://evil.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "a target without a slash": ("GET x HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "an empty target": ("GET  HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "a star": ("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "an authority": ("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n", 501, "bad_method"),
    "a trace": ("TRACE / HTTP/1.1\r\nHost: {host}\r\n\r\n", 501, "bad_method"),
    "a fragment": ("GET /#x HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "a target past ASCII": ("GET /\xe9 HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_target"),
    "a tab for a space": ("GET\t/ HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_request_line"),
    "two spaces": ("GET /  HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_request_line"),
    "a space in the target": ("GET /a b HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_request_line"),
    "HTTP/0.9": ("GET /\r\n\r\n", 400, "bad_request_line"),
    "HTTP/1.2": ("GET / HTTP/1.2\r\nHost: {host}\r\n\r\n", 501, "bad_version"),
    "HTTP/2": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501, "bad_version"),
    "http/1.1": ("GET / http/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_version"),
    "HTTP/1.1 and more": ("GET / HTTP/1.1x\r\nHost: {host}\r\n\r\n", 501, "bad_version"),
    "a method in brackets": ("G[T / HTTP/1.1\r\nHost: {host}\r\n\r\n", 400, "bad_method"),
    "Connection names the Host": (POST + "Connection: close, host\r\n\r\n", 400, "bad_connection"),
    "Connection names the length": (POST + "Connection: Content-Length\r\n\r\n", 400, "bad_connection"),
    "Connection names a cookie": (POST + "Connection: Cookie\r\n\r\n", 400, "bad_connection"),
    "a head too large": (POST + "X: " + "a" * 40_000 + "\r\n\r\n", 431, "head_too_large"),
    "an endless head": (POST + "X: " + "a" * 40_000, 431, "head_too_large"),
    "too many headers": (POST + "X: a\r\n" * 200 + "\r\n", 431, "too_many_headers"),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request_line"),
}  # fmt: skip
CHUNKS = {
    "an extension": "5;x=1\r\nhello\r\n0\r\n\r\n",
    "an extension with LF": "5;\nhello\r\n0\r\n\r\n",
    "a signed size": "+5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": "0x5\r\nhello\r\n0\r\n\r\n",
    "a size with a space": "5 \r\nhello\r\n0\r\n\r\n",
    "an underscore": "1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "no size": "\r\nhello\r\n0\r\n\r\n",
    "a size past all": "fffffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "LF behind the size": "5\nhello\r\n0\r\n\r\n",
    "LF behind the data": "5\r\nhello\n0\r\n\r\n",
    "data longer than its size": "4\r\nhello\r\n0\r\n\r\n",
    "LF behind the last": "0\n\n",
    "a bad trailer": "0\r\nbad trailer\r\n\r\n",
    "a folded trailer": "0\r\nX: a\r\n b\r\n\r\n",
    "LF in a trailer": "0\r\nX: a\nY: b\r\n\r\n",
    "an endless trailer": "0\r\n" + "X: a\r\n" * 3000,
}


@pytest.mark.parametrize("kind", SMUGGLED)
def test_what_can_be_read_in_two_ways_is_refused(api: EdgeApi, host: str, program: Program, kind: str) -> None:
    """With its own code, and the connection ends: nobody knows where a next request would begin."""
    form, status, code = SMUGGLED[kind]
    before = len(program.heads)
    with api.open() as connection, contextlib.suppress(ConnectionError):
        smuggled = "GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n" if "endless" not in kind else ""
        connection.sendall((form + smuggled).replace("{host}", host).encode("latin-1"))
        said = read(connection)
        assert (said.status, said.code) == (status, code)
        assert said.header("connection") == "close"
        assert connection.recv(100) == b""
    assert len(program.heads) == before


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_are_read_strictly(api: EdgeApi, ada: Box, kind: str) -> None:
    """What follows a bad chunk is never another request, and what came of it is not taken for whole."""
    got: list[bytes] = []

    def collect(connection: socket.socket, head: bytes) -> None:
        data = head
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                data += piece
        got.append(data)

    with Program(collect) as inside:
        host = ada.publish(inside, public=True)
        text = CHUNKED.replace("{host}", host) + CHUNKS[kind] + "GET /smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
        said = send(api, text.encode())
        assert (said.status, said.code) in {
            (400, "bad_chunk"),
            (400, "bad_trailer"),
            (400, "bad_header"),
            (400, "folded_header"),
        }
        until(lambda: got)
    assert len(inside.heads) == 1
    assert not got[0].endswith(b"0\r\n\r\n")


def test_a_smuggled_answer_reaches_nobody_else(api: EdgeApi, ada: Box) -> None:
    """A program that answers twice answers once: its connection is never used again."""
    with Program(answering(plain(b"first") + plain(b"stolen"))) as inside:
        host = ada.publish(inside, public=True)
        with api.open() as connection:
            for _ in range(3):
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert read(connection).body == b"first"


def test_the_rest_of_a_refused_body_is_no_request(api: EdgeApi, ada: Box) -> None:
    """A body nobody reads ends the connection instead of becoming the next request."""
    host = ada.publish(public=True, wait_seconds=0)
    inner = f"GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    with api.open() as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(inner)}\r\n\r\n{inner}".encode())
        said = read(connection)
        assert (said.status, said.header("connection")) == (502, "close")
        assert connection.recv(100) == b""


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers_of_one_connection_and_of_proxies_do_not_cross(api: EdgeApi, host: str, program: Program) -> None:
    """Who asked is told by us; a client's own word on it, in any spelling, is dropped."""
    ask(
        api, host, Connection="close, X-Once", X_Once="1", Keep_Alive="x", TE="trailers", Proxy_Authorization="x",
        X_Forwarded_For="1.2.3.4", X_Forwarded_Proto="https", X_Forwarded_Host="evil", X_Forwarded_Weird="x",
        Forwarded="for=1.2.3.4", X_Real_IP="1.2.3.4", Via="1.1 x", Proxy="http://evil", Upgrade="h2c",
        HTTP2_Settings="AAMA", X_Kept="yes",
    )  # fmt: skip
    send(api, f"GET / HTTP/1.1\r\nHost: {host}\r\nX_Forwarded_For: 1.2.3.4\r\nContent_Length: 5\r\n\r\n".encode())
    first, second = (head.lower() for head in program.heads[-2:])
    lines = first.split(b"\r\n")
    assert b"x-kept: yes" in lines
    assert b"x-forwarded-for: 127.0.0.1" in lines
    assert b"x-forwarded-proto: http" in lines
    assert b"x-forwarded-host: " + host.encode() in lines
    assert b"connection: close" in lines
    for gone in ("1.2.3.4", "evil", "x-once", "keep-alive", "te:", "proxy", "via", "upgrade", "http2", "weird"):
        assert gone not in first.decode()
    assert b"1.2.3.4" not in second
    assert b"content_length" not in second


def test_a_trusted_proxy_is_believed_and_nobody_else() -> None:
    """The address is the last one that no proxy of ours has; what stands before it may be a lie."""
    trusting = msgspec.structs.replace(SETTINGS, trusted_proxies=["127.0.0.1/32", "10.0.0.0/8"])
    with EdgeApi(trusting) as api, box(api) as mine, Program(answering(plain(b"x"))) as program:
        host = mine.publish(program, public=True)
        for said, client in (
            ("9.9.9.9, 203.0.113.7", b"203.0.113.7"),
            ("9.9.9.9, 203.0.113.7, 10.1.2.3", b"203.0.113.7"),
            ("10.1.2.3", b"10.1.2.3"),
            ("203.0.113.7, rubbish", b"127.0.0.1"),
            ("2001:db8::1", b"2001:db8::1"),
        ):
            ask(api, host, X_Forwarded_For=said, X_Forwarded_Proto="https")
            assert b"\r\nX-Forwarded-For: " + client + b"\r\n" in program.heads[-1]
            assert b"\r\nX-Forwarded-Proto: https\r\n" in program.heads[-1]
        ask(api, host, X_Forwarded_Proto="javascript")
        assert b"\r\nX-Forwarded-Proto: http\r\n" in program.heads[-1]


def test_cookies_stay_where_they_belong(api: EdgeApi, ada: Box) -> None:
    """Ours never go in; a program's never get out to siblings, to the platform, or into our names."""
    answer = plain(
        b"x",
        b"Set-Cookie: a=1; Domain=sbx.localhost; Path=/",
        b"set-cookie: b=2; DOMAIN = .localhost ;Secure",
        b"Set-Cookie: c=3;domain=localhost",
        b"Set-Cookie: __Host-ringfence-access=stolen; Path=/; Secure",
        b"Set-Cookie:  __host-RINGFENCE-access=stolen",
        b"Set-Cookie: ringfence-session=1",
        b"Set-Cookie: d=Domain=x; Path=/",
        b'Clear-Site-Data: "cookies"',
        b'Alt-Svc: h3=":443"',
        b"Strict-Transport-Security: max-age=1; includeSubDomains",
        b"X-Ringfence-Error: fake",
    )
    with Program(answering(answer)) as program:
        host = ada.publish(program, public=True)
        said = ask(api, host, Cookie="x=1; __Host-ringfence-access=abc; __HOST-ringfence-other=2;ringfence=3; y=rfl_")
        assert b"\r\nCookie: x=1; y=rfl_\r\n" in program.heads[0]
        ask(api, host, Cookie="__Host-ringfence-access=abc")
        assert b"ookie" not in program.heads[1]
    assert [value.replace(" ", "") for value in said.all("set-cookie")] == [
        "a=1;Path=/", "b=2;Secure", "c=3", "d=Domain=x;Path=/",
    ]  # fmt: skip
    for name in ("clear-site-data", "alt-svc", "strict-transport-security", "x-ringfence-error"):
        assert said.header(name) == ""


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_path_leads_there_for_programs_with_a_token(api: EdgeApi, ada: Box, program: Program) -> None:
    """Not for anybody else: to a browser all paths are one origin, and a sandbox's page would speak for the others."""
    ada.publish(program, public=True)
    token = ada.link()["token"]
    path = f"/p/{ada.id}/8000"
    name = f"localhost:{api.edge_port}"
    for proof in (api.ada, token):
        assert ask(api, name, f"{path}/a/b?c", X_Ringfence_Access=proof).body == b"inside"
    head = program.heads[-1]
    assert head.startswith(b"GET /a/b?c HTTP/1.1\r\nHost: localhost:8000\r\n")
    assert b"\r\nX-Forwarded-Prefix: " + path.encode() + b"\r\n" in head
    assert ask(api, name, path + "?q", X_Ringfence_Access=token).status == 200
    assert program.heads[-1].startswith(b"GET /?q ")
    for said in (
        ask(api, name, path + "/"),
        ask(api, name, path + "/", X_Ringfence_Access=api.bob),
        ask(api, name, f"{path}/?ringfence-access={token}"),
        ask(api, name, path + "x/", X_Ringfence_Access=token),
        ask(api, name, f"/p/{ada.id}/08000/", X_Ringfence_Access=token),
        ask(api, name, f"/p/{ada.id}/8001/", X_Ringfence_Access=api.ada),
        ask(api, name, f"//p/{ada.id}/8000/", X_Ringfence_Access=token),
        ask(api, name, "/v1/status", Authorization=f"Bearer {api.ada}"),
    ):
        assert (said.status, said.code) == (404, "not_published")


def test_an_operator_may_open_paths_to_browsers(program: Program) -> None:
    """Then public ports are served there, in an origin that remembers nothing."""
    answer = plain(b"page", b"Set-Cookie: a=1", b"Service-Worker-Allowed: /")
    opened = msgspec.structs.replace(SETTINGS, path_browsers=True)
    with EdgeApi(opened) as api, box(api) as mine, Program(answering(answer)) as page:
        mine.publish(page, public=True)
        mine.publish(program, port=9000)
        name = f"localhost:{api.edge_port}"
        said = ask(api, name, f"/p/{mine.id}/8000/")
        assert (said.body, said.header("set-cookie"), said.header("service-worker-allowed")) == (b"page", "", "")
        assert said.header("content-security-policy").startswith("sandbox")
        assert ask(api, name, f"/p/{mine.id}/9000/").status == 404


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_two_sandboxes_never_mix(api: EdgeApi) -> None:
    """Hundreds of requests to two programs, on connections that both share: each answer is the right one's."""
    with (
        box(api) as one,
        box(api, api.bob) as two,
        Program(answering(plain(b"one" * 1000))) as first,
        Program(answering(plain(b"two" * 1000))) as second,
    ):
        hosts = {one.publish(first, public=True): b"one" * 1000, two.publish(second, public=True): b"two" * 1000}
        wrong: list[Said] = []

        def mix(seed: int) -> None:
            with api.open() as connection:
                for turn in range(40):
                    host = sorted(hosts)[(turn * seed + turn) % 2]
                    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                    said = read(connection)
                    if said.body != hosts[host]:
                        wrong.append(said)

        threads = [threading.Thread(target=mix, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert len(first.heads) + len(second.heads) == 320


def test_a_thousand_ports_are_told_apart(api: EdgeApi) -> None:
    """Each name leads to its own sandbox and port, with its own key; the table is one look-up however long."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(answering(plain(b"%d" % n)))) for n in range(50)]
        boxes = [stack.enter_context(box(api, api.ada if n % 2 else api.bob)) for n in range(20)]
        expected: dict[str, tuple[bytes, str, str]] = {}
        for n in range(1000):
            mine, port = boxes[n % 20], 1000 + n // 20
            own, other = (api.ada, api.bob) if n % 20 % 2 else (api.bob, api.ada)
            expected[mine.publish(programs[(n * 7) % 50], port)] = (b"%d" % ((n * 7) % 50), own, other)
        assert len(api.edge.ports) >= 1000
        with api.open() as connection:
            for host, (body, own, other) in expected.items():
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nX-Ringfence-Access: {own}\r\n\r\n".encode())
                assert read(connection).body == body
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nX-Ringfence-Access: {other}\r\n\r\n".encode())
                assert read(connection).status == 404


def test_everything_is_bounded() -> None:
    """Requests to one sandbox and to one tenant's, and connections in all."""
    tight = msgspec.structs.replace(
        SETTINGS, max_connections=12, connections_per_sandbox=3, connections_per_tenant=5, total_seconds=200
    )
    hold = threading.Event()
    with (
        EdgeApi(tight) as api,
        box(api) as one,
        box(api) as two,
        Program(lambda *_: hold.wait(200) and None) as program,
    ):
        first, second = one.publish(program, public=True), two.publish(program, public=True)
        with contextlib.ExitStack() as stack:

            def begin(host: str) -> socket.socket:
                connection = stack.enter_context(api.open())
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                return connection

            for _ in range(3):
                begin(first)
            until(lambda: len(program.heads) == 3)
            assert read(begin(first)).code == "over_quota"
            begin(second), begin(second)
            until(lambda: len(program.heads) == 5)
            assert read(begin(second)).status == 429
            for _ in range(12):
                stack.enter_context(api.open())
            refused = read(stack.enter_context(api.open()))
            assert (refused.status, refused.header("retry-after")) == (503, "1")
            hold.set()


def test_a_head_may_take_so_long() -> None:
    """Whoever sends half of one is told so, whoever sends nothing is not."""
    with EdgeApi(msgspec.structs.replace(SETTINGS, header_seconds=1)) as api:
        with api.open() as slow:
            slow.sendall(b"GET / HT")
            said = read(slow)
            assert (said.status, said.code) == (408, "head_timeout")
        with api.open() as idle:
            assert idle.recv(10) == b""
