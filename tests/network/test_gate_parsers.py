"""The gate's three parsers of what strangers send: they end, they do not crash, and what they are unsure of is no."""

from __future__ import annotations

import contextlib
import ssl
import struct
import time
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.network.gate import dns, hello, http


def real_hello(name: str | None) -> bytes:
    """What Python's own client says first."""
    context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def made_hello(
    *extensions: tuple[int, bytes], version: int = 3, ciphers: bytes = b"\x13\x01", tail: bytes = b""
) -> bytes:
    """One by hand."""
    listed = b"".join(struct.pack(">HH", kind, len(value)) + value for kind, value in extensions)
    body = bytes([version, 3]) + bytes(32) + b"\0" + struct.pack(">H", len(ciphers)) + ciphers + b"\1\0"
    body += struct.pack(">H", len(listed)) + listed + tail
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack(">H", len(message)) + message


def names(*hosts: bytes, kind: int = 0) -> tuple[int, bytes]:
    """A server_name extension."""
    listed = b"".join(bytes([kind]) + struct.pack(">H", len(host)) + host for host in hosts)
    return 0, struct.pack(">H", len(listed)) + listed


# -- TLS ----------------------------------------------------------------------------------------------------------


def test_a_real_hello_names_its_host() -> None:
    """As OpenSSL writes it, whole or in pieces, with or without bytes behind it."""
    data = real_hello("Some.Example.com")
    assert hello.server_name(data) == "some.example.com"
    assert hello.server_name(data + b"\x14\3\3\0\1\1") == "some.example.com"
    assert all(hello.server_name(data[:size]) is None for size in range(len(data)))


def test_a_hello_in_several_records() -> None:
    """A message may be cut into records anywhere."""
    message = made_hello(names(b"a.example.com"))[5:]
    cut = [message[:3], message[3:40], message[40:]]
    data = b"".join(b"\x16\3\1" + struct.pack(">H", len(part)) + part for part in cut)
    assert hello.server_name(data) == "a.example.com"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (real_hello(None), "names no host"),
        (made_hello(), "names no host"),
        (made_hello(names(b"a.example.com", b"b.example.com")), "more than one"),
        (made_hello(names(b"a.example.com"), names(b"b.example.com")), "twice"),
        (made_hello(names(b"a.example.com", kind=1)), "other than a host"),
        (made_hello(names(b"")), "is empty"),
        (made_hello(names(b"evil.com\0.ok.com")), "NUL"),
        (made_hello(names(b"ok.com.")), "ends with a dot"),
        (made_hello(names(b"127.0.0.1")), "number"),
        (made_hello(names(b"[::ffff:7f00:1]")), "letters"),
        (made_hello(names(b"ok.com@evil.com")), "letters"),
        (made_hello(names("\u043ek.com".encode())), "ASCII"),
        (made_hello(names(b"a.example.com"), (0xFE0D, b"\0" * 8)), "ECH"),
        (made_hello(names(b"a.example.com"), (0xFFCE, b"\0" * 8)), "ESNI"),
        (made_hello((0, b"\0\5\0")), "shorter"),
        (made_hello((0, names(b"a.example.com")[1] + b"x")), "more than one"),
        (made_hello(names(b"a.example.com"), version=2), "version"),
        (made_hello(names(b"a.example.com"), ciphers=b""), "ciphers"),
        (made_hello(names(b"a.example.com"), ciphers=b"\1"), "ciphers"),
        (made_hello(names(b"a.example.com"), tail=b"x"), "behind its end"),
        (b"\x16\3\1\0\0", "no TLS handshake"),
        (b"\x16\3\1\x7f\xff", "no TLS handshake"),
        (b"\x16\2\1\0\5", "no TLS handshake"),
        (b"\x16\3\1\0\4\2\0\0\0", "no client's hello"),
        (b"\x16\3\1\0\4\1\xff\xff\xff", "no client's hello"),
        (b"\x80\x2e\1\3\1\0", "no TLS handshake"),
        (b"".join(b"\x16\3\1\0\1" + bytes([byte]) for byte in b"\1\0\1\0" + bytes(40)), "pieces"),
    ],
)
def test_an_odd_hello_is_refused(data: bytes, why: str) -> None:
    """Whatever a server might read otherwise than we do."""
    with pytest.raises(hello.BadHello, match=why):
        hello.server_name(data)


@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=600), st.binary(max_size=400).map(lambda b: made_hello((0, b)))))
def test_any_bytes_end_the_hello_parser(data: bytes) -> None:
    """A name, no name yet, or a refusal."""
    try:
        found = hello.server_name(data)
    except hello.BadHello:
        return
    assert found is None or found == found.lower()


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_changed_byte_never_crashes_the_hello_parser(at: int, byte: int) -> None:
    """A real hello, damaged."""
    data = bytearray(made_hello(names(b"a.example.com"), (16, b"\0\3\2h2")))
    data[at % len(data)] = byte
    with contextlib.suppress(hello.BadHello):
        hello.server_name(bytes(data))


# -- HTTP ---------------------------------------------------------------------------------------------------------


def request(*headers: str, line: str = "GET /a?b=c HTTP/1.1", body: bytes = b"") -> bytes:
    """A request by hand."""
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1") + body


def test_a_plain_request() -> None:
    """Its host, path and body are found, and it is written anew with an end."""
    parsed = http.head_from(
        request("Host: OK.example.com", "Content-Length: 3", "Keep-Alive: 5", "X: y", body=b"abcGET")
    )
    assert parsed is not None
    head, size = parsed
    assert (head.method, head.host, head.port, head.path, head.length) == ("GET", "ok.example.com", 80, "/a", 3)
    assert head.onward == (
        b"GET /a?b=c HTTP/1.1\r\nhost: OK.example.com\r\ncontent-length: 3\r\nx: y\r\nconnection: close\r\n\r\n"
    )
    assert (
        request("Host: OK.example.com", "Content-Length: 3", "Keep-Alive: 5", "X: y", body=b"abcGET")[size:]
        == b"abcGET"
    )


def test_an_absolute_target_names_the_same_host() -> None:
    """As a proxy's client writes it; it goes on as a path."""
    parsed = http.head_from(request("Host: ok.example.com", line="GET http://ok.example.com/x HTTP/1.1"))
    assert parsed is not None
    assert parsed[0].onward.startswith(b"GET /x HTTP/1.1\r\n")


def test_headers_of_the_connection_stay_behind() -> None:
    """What Connection names is between two neighbours only, but framing cannot be named away."""
    parsed = http.head_from(
        request("Host: ok.example.com", "Connection: x-a, content-length", "X-A: 1", "Content-Length: 0")
    )
    assert parsed is not None
    assert b"x-a" not in parsed[0].onward
    assert b"content-length: 0" in parsed[0].onward


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (request(), "names no Host"),
        (request("Host: a.example.com", "Host: b.example.com"), "more than one Host"),
        (request("Host: a.example.com", "host: a.example.com"), "more than one Host"),
        (request("Host : a.example.com"), "header line"),
        (request("Host: a.example.com", " Host: b.example.com"), "header line"),
        (request("Host: a.example.com", "X: a\0b"), "header line"),
        (request("Host: a.example.com\nHost: b.example.com"), "header line"),
        (request("Host: a.example.com\rX: y"), "header line"),
        (request("Host: a.example.com", "nonsense"), "header line"),
        (request("Host: "), "empty"),
        (request("Host: 127.0.0.1"), "number"),
        (request("Host: 0x7f.1"), "number"),
        (request("Host: [::1]"), "port that is none"),
        (request("Host: a.example.com."), "dot"),
        (request("Host: a.example.com:"), "port"),
        (request("Host: a.example.com:080"), "port"),
        (request("Host: a.example.com:80:80"), "port"),
        (request("Host: a.example.com@evil.net"), "letters"),
        (request("Host: a.example.com, b.example.com"), "blank"),
        (request("Host: a.example.com", line="GET http://b.example.com/ HTTP/1.1"), "another host"),
        (request("Host: a.example.com", line="GET http://a.example.com@b.example.com/ HTTP/1.1"), "letters"),
        (request("Host: a.example.com", line="GET https://a.example.com/ HTTP/1.1"), "neither a path"),
        (request("Host: a.example.com", line="OPTIONS * HTTP/1.1"), "neither a path"),
        (request("Host: a.example.com:443", line="CONNECT a.example.com:443 HTTP/1.1"), "CONNECT"),
        (request("Host: a.example.com", line="TRACE / HTTP/1.1"), "TRACE"),
        (request("Host: a.example.com", line="GET / HTTP/0.9"), "first line"),
        (request("Host: a.example.com", line="GET /"), "first line"),
        (request("Host: a.example.com", line="GET / HTTP/2.0"), "first line"),
        (request("Host: a.example.com", line="get / HTTP/1.1"), "first line"),
        (request("Host: a.example.com", line="GET  / HTTP/1.1"), "first line"),
        (request("Host: a.example.com", line="GET /\u00e9 HTTP/1.1"), "first line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "first line"),
        (b"PRI * HTTP/2.0", "HTTP/2"),
        (request("Host: a.example.com", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"), "another protocol"),
        (request("Host: a.example.com", "Upgrade: websocket"), "another protocol"),
        (request("Host: a.example.com", "Content-Length: 3", "Transfer-Encoding: chunked"), "two ways"),
        (request("Host: a.example.com", "Transfer-Encoding: gzip, chunked"), "two ways"),
        (request("Host: a.example.com", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "more than one"),
        (request("Host: a.example.com", "Content-Length: 3", "Content-Length: 3"), "more than one"),
        (request("Host: a.example.com", "Content-Length: +3"), "Content-Length"),
        (request("Host: a.example.com", "Content-Length: 3, 3"), "Content-Length"),
        (request("Host: a.example.com", *["X: y"] * 200), "too many headers"),
        (b"GET /" + b"a" * 40_000, "too long"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, "too long"),
    ],
)
def test_an_odd_request_is_refused(data: bytes, why: str) -> None:
    """Smuggling, a second host, another protocol: each with its reason."""
    with pytest.raises(http.BadRequestHead, match=why):
        http.head_from(data)


def chunks(*parts: bytes) -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.binary(max_size=40), st.integers(1, 30))
def test_a_body_ends_where_it_ends(parts: list[bytes], behind: bytes, step: int) -> None:
    """However it arrives, exactly the body passes, and never what comes behind it."""
    for length, whole in ((-1, chunks(*parts)), (len(b"".join(parts)), b"".join(parts))):
        body, data, passed = http.Body(length), whole + behind, b""
        for at in range(0, len(data), step):
            passed += body.feed(data[at : at + step])
        assert passed == whole
        assert body.done


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"-1\r\n",
        b"0x1\r\na\r\n",
        b"1\r\nab\r\n",
        b"1 \r\na\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"1;" + b"a" * 300,
        b"\r\n",
    ],
)
def test_a_broken_chunk_is_refused(data: bytes) -> None:
    """A size that is none, an end that is not there, trailers."""
    with pytest.raises(http.BadRequestHead):
        http.Body(-1).feed(data)


@settings(max_examples=400)
@given(
    st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda b: b"GET / HTTP/1.1\r\n" + b + b"\r\n\r\n"))
)
def test_any_bytes_end_the_request_parser(data: bytes) -> None:
    """A head, no head yet, or a refusal; a head always has a clean host."""
    try:
        parsed = http.head_from(data)
        http.Body(-1).feed(data)
    except http.BadRequestHead:
        return
    if parsed is not None:
        assert parsed[0].host == parsed[0].host.lower()


def test_tiny_chunks_cost_little() -> None:
    """A megabyte in chunks of one byte is read in time that grows with it, not with its square."""
    data, body, began = b"1\r\na\r\n" * 170_000 + b"0\r\n\r\n", http.Body(-1), time.process_time()
    for at in range(0, len(data), 65_536):
        body.feed(data[at : at + 65_536])
    assert body.done
    assert time.process_time() - began < 3


# -- DNS ----------------------------------------------------------------------------------------------------------


def question(name: bytes, kind: int = 1, *, flags: int = 0x100, counts: tuple[int, ...] = (1, 0, 0, 0)) -> bytes:
    """A query by hand; `name` is in wire form."""
    return struct.pack(">HHHHHH", 9, flags, *counts) + name + struct.pack(">HH", kind, 1)


def wire(name: str) -> bytes:
    """A name in wire form."""
    return b"".join(bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\0"


def test_a_plain_question() -> None:
    """Its name is read, its case echoed."""
    query = dns.query_from(question(wire("Good.Example.com")))
    assert (query.name, query.kind, query.id) == ("good.example.com", 1, 9)
    answer = dns.answer_to(query, dns.NOERROR, (IPv4Address("45.0.0.1"),), 5)
    assert b"\x04Good\x07Example\x03com" in answer
    assert dns.answer_from(answer, 9, "good.example.com").addresses == (IPv4Address("45.0.0.1"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 11,
        question(wire("a.example.com"), flags=0x8100),
        question(wire("a.example.com"), flags=0x2800),
        question(wire("a.example.com"), counts=(2, 0, 0, 0)),
        question(wire("a.example.com"), counts=(1, 1, 0, 0)),
        question(wire("a.example.com"), counts=(0, 0, 0, 0)),
        question(wire("a.example.com"))[:-1],
        question(b"\xc0\x0c"),
        question(b"\x40abc\0"),
        question(b"\x3fabc"),
        question((b"\x3f" + b"a" * 63) * 5 + b"\0"),
    ],
)
def test_what_is_no_question_is_refused(data: bytes) -> None:
    """Answers, notifies, two questions, pointers, endless names."""
    with pytest.raises(dns.BadMessage):
        dns.query_from(data)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"\x0fa.b.example.com\0", "dot inside"),
        (b"\x04ev\0l\x03com\0", "NUL"),
        (b"\x0bgood.exampl\x03com\0", "dot inside"),
        (b"\0", "empty"),
    ],
)
def test_a_name_that_could_be_read_as_another_is_none(name: bytes, why: str) -> None:
    """A dot or a NUL inside a label."""
    query = dns.query_from(question(name))
    assert query.name == ""
    assert why in query.bad_name


def upstream(name: str, records: bytes, count: int, *, number: int = 9, flags: int = 0x8180, asked: str = "") -> bytes:
    """An answer by hand."""
    return (
        struct.pack(">HHHHHH", number, flags, 1, count, 0, 0) + wire(asked or name) + struct.pack(">HH", 1, 1) + records
    )


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    """A record by hand."""
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def test_only_the_asked_name_and_its_aliases_count() -> None:
    """Addresses of other names that an answer brings along are not looked at."""
    records = record(wire("other.net"), 1, bytes([1, 1, 1, 1])) + record(b"\xc0\x0c", 5, wire("edge.cdn.net"), 30)
    records += record(wire("EDGE.cdn.net"), 1, bytes([45, 0, 0, 9]), 20) + record(
        wire("x.cdn.net"), 1, bytes([6, 6, 6, 6])
    )
    answer = dns.answer_from(upstream("a.example.com", records, 4), 9, "a.example.com")
    assert answer.addresses == (IPv4Address("45.0.0.9"),)
    assert answer.ttl == 20


@pytest.mark.parametrize(
    "data",
    [
        upstream("a.example.com", b"", 0, number=8),
        upstream("a.example.com", b"", 0, flags=0x0180),
        upstream("a.example.com", b"", 0, asked="b.example.com"),
        upstream("a.example.com", b"", 1),
        upstream("a.example.com", record(b"\xc0\xff", 1, bytes(4)), 1),
        upstream("a.example.com", record(b"\xc0\x1f", 1, bytes(4)), 1),
        upstream("a.example.com", b"", 60_000),
        upstream("a.example.com", record(b"\xc0\x0c", 5, b"\xc0\x0c"), 1),
        upstream("a.example.com", record(b"\xc0\x0c", 1, bytes(4))[:-1], 1),
    ],
)
def test_a_forged_or_broken_answer_is_refused(data: bytes) -> None:
    """Another number, another question, no answer at all, pointers ahead, a chain in a circle."""
    with pytest.raises(dns.BadMessage):
        dns.answer_from(data, 9, "a.example.com")


@settings(max_examples=400)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_the_dns_parsers(data: bytes, behind: bool) -> None:
    """A message or a refusal, as a question and as an answer; and a refusal can always be said."""
    whole = upstream("a.example.com", data, 5) if behind else data
    for parse in (lambda: dns.answer_from(whole, 9, "a.example.com"), lambda: dns.query_from(whole)):
        try:
            parse()
        except dns.BadMessage:
            assert len(dns.malformed(whole)) in {0, 12}


def test_a_refusal_says_why_to_those_who_can_hear() -> None:
    """With EDNS the reason is in the answer; without, there is none, for it could not be read."""
    plain = dns.query_from(question(wire("a.example.com")))
    assert b"because" not in dns.answer_to(plain, dns.REFUSED, why=(dns.BLOCKED, "because"))
    extended = dns.query_from(question(wire("a.example.com"), counts=(1, 0, 0, 1)))
    assert b"because" in dns.answer_to(extended, dns.REFUSED, why=(dns.BLOCKED, "because"))
