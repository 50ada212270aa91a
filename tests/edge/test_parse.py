"""The parser by itself: whole or in pieces it reads the same, and nothing but a refusal ever comes of rubbish."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.config import EdgeSettings, read_server
from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.edge import access, hosts
from ringfence.edge.body import LAST_CHUNK, body_of, chunk
from ringfence.edge.hosts import Names
from ringfence.edge.listening import listen
from ringfence.edge.parse import NO_BODY, Framing, Malformed, Request, answer_of, request_of

NAMES = Names("sbx.localhost", frozenset({8643}), frozenset({"localhost"}))
LABEL = "8000-s" + "a" * 26


def asked(host: bytes, target: bytes = b"/") -> Request:
    """A request to a host."""
    return Request(b"GET", target, 1, (), host, NO_BODY)


def taken(data: bytes, cuts: list[int], framing: Framing) -> tuple[bytes, bool, bytes]:
    """A body read from pieces: its bytes, whether it is whole, and what is left behind it."""
    body, buffer, out = body_of(framing), bytearray(), b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        buffer += data[start:end]
        while piece := body.take(buffer):
            out += piece
    return out, body.done, bytes(buffer)


@given(st.lists(st.binary(min_size=1, max_size=50)), st.lists(st.integers(0, 1000)), st.binary(max_size=20))
def test_chunks_come_out_as_they_went_in(pieces: list[bytes], cuts: list[int], behind: bytes) -> None:
    """However the network cuts them, and not one byte of what follows is touched."""
    data = b"".join(map(chunk, pieces)) + LAST_CHUNK + behind
    assert taken(data, cuts, Framing("chunked")) == (b"".join(pieces), True, behind)


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000)), st.binary(max_size=20))
def test_a_length_is_exact(data: bytes, cuts: list[int], behind: bytes) -> None:
    """No byte more, no byte less."""
    assert taken(data + behind, cuts, Framing("length", len(data))) == (data, True, behind)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=300), st.text("GET /HP1.\r\n:abc chunkedhost-ty,;0", max_size=200).map(str.encode)))
def test_rubbish_is_refused_and_nothing_else_happens(data: bytes) -> None:
    """No other exception than ours, from any reader, on any bytes."""
    for read in (request_of, lambda raw: answer_of(raw, b"GET"), lambda raw: taken(raw, [1, 2, 3], Framing("chunked"))):
        with contextlib.suppress(Malformed):
            read(data)
    with contextlib.suppress(hosts.BadHost, hosts.WrongHost):
        NAMES.place(asked(data))
    assert access.opened(b"s" * 32, LABEL, data) is None


@given(st.text("aA8-s.:@/?#[]0 \t", max_size=80))
def test_no_host_but_the_exact_one_is_a_place(text: str) -> None:
    """Whatever is put around or into it."""
    with contextlib.suppress(hosts.BadHost, hosts.WrongHost):
        place = NAMES.place(asked(text.encode()))
        assert place is None or text.removesuffix(":8643") == f"{place.label}.sbx.localhost"


def test_the_exact_host_is_a_place() -> None:
    """With its port and without."""
    for text in (f"{LABEL}.sbx.localhost", f"{LABEL}.sbx.localhost:8643"):
        place = NAMES.place(asked(text.encode(), b"/x"))
        assert place is not None
        assert (place.label, place.target) == (LABEL, b"/x")


def test_a_signature_is_written_in_one_way_only() -> None:
    """A token that was padded, or whose last unused bits were changed, is not the token."""
    made = access.signed(b"s" * 32, LABEL, access.Pass(access.LINK, "00" * 8, 2**33)).encode()
    assert access.opened(b"s" * 32, LABEL, made) is not None
    others = [made[:-1] + bytes([last]) for last in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"]
    good = [other for other in (*others, made + b"=", made.replace(b"rfl_", b"rfl_ ")) if other != made]
    assert not [other for other in good if access.opened(b"s" * 32, LABEL, other) is not None]
    assert access.opened(b"t" * 32, LABEL, made) is None
    assert access.opened(b"s" * 32, "8001" + LABEL[4:], made) is None


@pytest.mark.parametrize(
    "edge",
    [
        {"domain": "Sbx.example"}, {"domain": "sbx.example."}, {"domain": ""}, {"domain": "a_b"}, {"domain": "*.x"},
        {"domain": "-a"}, {"trusted_proxies": ["10.0.0.1/8"]}, {"trusted_proxies": ["traefik"]}, {"port": 70000},
        {"scheme": "ftp"}, {"prot": 1}, {"header_bytes": 10},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(edge: dict[str, object]) -> None:
    """Before anything listens."""
    with pytest.raises(BadRequest, match="settings"):
        read_server("/dev/null", environ={}, edge=edge)


def test_a_port_that_was_asked_for_is_the_one() -> None:
    """Taken, it is an error; one nobody asked for gives way to any that is free."""
    with listen(EdgeSettings(port=0), 8642) as first:
        port = first.getsockname()[1]
        with pytest.raises(PlatformFault, match=f"port {port}"):
            listen(EdgeSettings(port=port), 8642)
        with listen(EdgeSettings(), port - 1000) as other:
            assert other.getsockname()[1] != port
