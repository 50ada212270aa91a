"""The parts that secrets are made of, each by itself: what finds, what covers, what seals, and what is never shown."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import ssl
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence import wire_secrets
from ringfence.config import read_server
from ringfence.domain.egress import NOTHING, Mode, policy_from
from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.domain.secrets import (
    PREFIX,
    Authority,
    Trust,
    authority_to,
    changed,
    checked_value,
    covers,
    held_from,
    held_to,
    secret_from,
    trust_from,
    with_hosts,
)
from ringfence.edge.parse import request_of
from ringfence.network.finder import Cover, Finder
from ringfence.network.gate.opening import Hands
from ringfence.network.keeper import Ward, event_from
from ringfence.network.opener.authority import Issuer, make_authority, onward_context
from ringfence.network.opener.inject import Injector, Refused, forms_of
from ringfence.network.rules import GATEWAY
from ringfence.store.vault import Vault
from tests.network.secretslab import API, AUTHORITY, VALUE, held

# -- finding and covering ---------------------------------------------------------------------------------------------

WORDS = [b"abcabcab", b"bca", b"xx", b"aaaa"]
cuts = st.lists(st.integers(1, 7), max_size=60)
soup = st.text("abcx", max_size=120).map(str.encode)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """Some bytes, cut."""
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [*found, data[at:]]


@given(soup, cuts)
def test_a_word_is_found_however_it_is_cut(data: bytes, sizes: list[int]) -> None:
    """Exactly when it is there."""
    finder = Finder({word: word.decode() for word in WORDS})
    found = [name for name in map(finder.feed, pieces(data, sizes)) if name]
    assert bool(found) == any(word in data for word in WORDS)
    assert all(name.encode() in data for name in found)


@given(soup, cuts)
def test_a_word_is_covered_however_it_is_cut(data: bytes, sizes: list[int]) -> None:
    """No byte more or less, and no word left in what was passed on."""
    cover = Cover(WORDS)
    passed = b"".join(map(cover.feed, pieces(data, sizes))) + cover.rest()
    assert len(passed) == len(data)
    assert not any(word in passed for word in WORDS)
    assert all(new in (old, ord("*")) for old, new in zip(data, passed, strict=True))
    if not any(word in data for word in WORDS):
        assert passed == data


def test_nothing_is_held_back_without_a_reason() -> None:
    """A stream of events is passed on as it comes; only what could begin a value waits for its next byte."""
    cover = Cover([VALUE.encode()])
    assert cover.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert cover.feed(b"data: s") == b"data: "
    assert cover.feed(b"o\n\n") == b"so\n\n"
    assert Cover([]).feed(b"anything") == b"anything"


# -- injecting --------------------------------------------------------------------------------------------------------


def test_the_head_is_written_anew() -> None:
    """Headers about the connection are ours, others keep their spelling and order, the host is the connection's."""
    secret = held("api", "header x-key")
    head = (
        f"GET /?a=b HTTP/1.1\r\nHost: {API.upper()}:443\r\nX-One: 1\r\nConnection: keep-alive, X-Gone\r\n"
        f"TE: trailers\r\nX-Gone: x\r\nX-KEY: {secret.placeholder}\r\nAccept-Encoding: br\r\nX-two: 2"
    )
    made = Injector([secret], API).head(request_of(head.encode()))
    assert made.fields == [
        (b"host", API.encode()),
        (b"X-One", b"1"),
        (b"X-KEY", VALUE.encode()),
        (b"X-two", b"2"),
        (b"accept-encoding", b"identity"),
    ]
    assert (made.used, made.target) == (("api",), b"/?a=b")


def test_a_document_that_mentions_a_placeholder_is_no_use_of_one() -> None:
    """In a body, only this sandbox's own placeholders mean anything."""
    injector = Injector([held("api", "body")], API)
    stranger = PREFIX.encode() + b"f" * 32
    assert injector.body(b"see " + stranger, b"text/plain") == b"see " + stranger
    assert injector.used == ()
    with pytest.raises(Refused):
        injector.head(request_of(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + stranger))


def test_the_forms_in_which_a_value_comes_back() -> None:
    """As it is, in a query, a form, JSON and base64; nothing so short that it would be found everywhere."""
    forms = forms_of(['p"ss & w/1', "abcdefgh"])
    assert {b'p"ss & w/1', b"p%22ss%20%26%20w%2F1", b"p%22ss+%26+w%2F1", b'p\\"ss & w/1', b"cCJzcyAmIHcvMQ=="} <= forms
    assert b"" not in forms


# -- the words --------------------------------------------------------------------------------------------------------


def test_a_value_is_in_no_text_of_anything() -> None:
    """Neither of what holds it nor of what asks for it; a traceback or a log that shows these shows nothing."""
    secret = held()
    trust = Trust((secret,), AUTHORITY)
    ward = Ward("s", GATEWAY, NOTHING, "o1", (secret,))
    request = wire_secrets.SecretRequest(value=VALUE, hosts=[API])
    for shown in map(repr, (secret, trust, ward, request, {"a": [request]})):
        assert VALUE not in shown
        assert "PRIVATE" not in shown
    assert VALUE not in str(ward.words)
    assert VALUE in str(held_to(secret))
    with pytest.raises(BadRequest) as refused:
        checked_value(VALUE + "\n", secret.places)
    assert VALUE not in repr(refused.value)


def test_words_come_back_as_they_went() -> None:
    """Between our own processes; what is missing or garbled is refused without its value."""
    secret = held("api", "header x-key", "query k", "body", hosts=(API, "*.example.com"))
    assert held_from(json.loads(json.dumps(held_to(secret)))) == secret
    ask = {"secrets": [held_to(secret)], "authority": authority_to(AUTHORITY)}
    assert trust_from(ask) == Trust((secret,), AUTHORITY)
    assert trust_from({}) is trust_from({"secrets": []}) is None
    for wrong in ({"placeholder": "x"}, {"hosts": ["*"]}, {"places": [["nowhere", ""]]}):
        with pytest.raises(ValueError, match=r".") as refused:
            held_from({**held_to(secret), **wrong})
        assert VALUE not in str(refused.value)
    with pytest.raises(ValueError, match="distinct"):
        trust_from({**ask, "secrets": [held_to(secret)] * 2})


def test_the_hosts_of_secrets_are_allowed_and_nothing_else() -> None:
    """By TLS at 443; a policy that has them already stays as it is; one without a network gets just them."""
    trust = Trust((held(hosts=(API, "*.below.example.com")),), AUTHORITY)
    made = with_hosts(NOTHING, trust)
    assert made.networked
    assert [rule.text for rule in made.rules] == [f"{API}:443/tls", "*.below.example.com:443/tls"]
    assert {rule.reason for rule in made.rules} == {"secret api"}
    listed = policy_from([{"domain": API, "ports": [443, 8443]}, "*.below.example.com"])
    assert with_hosts(listed, trust) == listed
    assert with_hosts(NOTHING, None) is NOTHING
    for mode in set(Mode) - {Mode.NONE}:  # learning stays learning, a rehearsal stays one
        assert with_hosts(dataclasses.replace(listed, mode=mode, rules=()), trust).mode is mode
    full = policy_from([f"h{number}.example.com" for number in range(1000)])
    with pytest.raises(BadRequest, match="1000 rules"):
        with_hosts(full, trust)


def test_a_change_keeps_the_placeholder() -> None:
    """A sandbox goes on with what it has in its variables; a secret that is gone is gone."""
    old, other = held(), held("other", number=2)
    trust = Trust((old, other), AUTHORITY)
    new = held("api", "query k", value="another-value-1", number=9)
    now = changed(trust, "api", new).held[0]
    assert (now.placeholder, now.value, now.places) == (old.placeholder, "another-value-1", new.places)
    assert changed(trust, "api", None).held == (other,)
    assert changed(trust, "nothing", None) == trust


def test_a_wildcard_covers_what_is_below_it() -> None:
    """And neither itself nor a name that merely ends alike."""
    assert covers(["*.example.com"], "a.b.example.com")
    assert not covers(["*.example.com"], "example.com")
    assert not covers(["*.example.com"], "badexample.com")
    assert covers([API], API)


def test_a_variable_is_named_after_its_secret() -> None:
    """Unless another was asked for."""
    made = {"headers": ["a"], "queries": [], "body": False}
    assert secret_from("db-1_x", [API], env=None, **made).env == "DB_1_X"  # type: ignore[arg-type]
    assert secret_from("1st", [API], env=None, **made).env == "_1ST"  # type: ignore[arg-type]
    assert secret_from("x", [API], env="API_KEY", **made).env == "API_KEY"  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"value": "x", "hosts": [], "header": []}', type=wire_secrets.SecretRequest)


# -- the seal ---------------------------------------------------------------------------------------------------------


def test_a_sealed_value_opens_for_its_own_row_alone(tmp_path: Path) -> None:
    """Neither under another name or tenant, nor changed, nor with another key; the same value never looks the same."""
    vault = Vault(tmp_path / "key")
    sealed = vault.seal(VALUE.encode(), "a\0api")
    assert VALUE.encode() not in sealed
    assert vault.seal(VALUE.encode(), "a\0api") != sealed
    assert Vault(tmp_path / "key").open(sealed, "a\0api") == VALUE.encode()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    other = Vault(tmp_path / "other")
    for opening, data, about in (
        (vault, sealed, "b\0api"),
        (vault, sealed[:-1] + bytes([sealed[-1] ^ 1]), "a\0api"),
        (other, sealed, "a\0api"),
        (vault, b"", "a\0api"),
    ):
        with pytest.raises(PlatformFault, match="cannot be opened"):
            opening.open(data, about)


def test_a_key_that_is_none(tmp_path: Path) -> None:
    """Cut short, too long, or a link to somewhere: refused at the start."""
    for content in (b"short", b"x" * 33):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(PlatformFault, match="not a key of ours"):
            Vault(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlatformFault):
        Vault(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


# -- certificates -----------------------------------------------------------------------------------------------------


def test_a_certificate_is_for_its_host_and_by_its_authority(tmp_path: Path) -> None:
    """A strict client accepts it for that name, not for another, and not of another tenant's authority."""
    issuer = Issuer(AUTHORITY, tmp_path)
    assert issuer.context(API) is issuer.context(API)
    assert list(tmp_path.iterdir()) == []
    cases = [(API, AUTHORITY.certificate, ""), ("other.example.com", AUTHORITY.certificate, "Hostname mismatch")]
    for host, trusted, why in [*cases, (API, make_authority().certificate, "verify failed")]:
        client = ssl.create_default_context(cadata=trusted)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
        speaker = client.wrap_bio(ours, theirs, server_hostname=host)
        listener = issuer.context(API).wrap_bio(theirs, ours, server_side=True)
        said = ""
        for _ in range(4):
            for each in (speaker, listener):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLError as error:
                    said = said or str(error)
        assert (why in said) if why else not said
    with pytest.raises((ValueError, TypeError)):
        Issuer(Authority("no", "key"), tmp_path)


def test_the_authorities_by_which_hosts_are_known(tmp_path: Path) -> None:
    """The system's, or the operator's file; one that holds none stops the server before it serves."""
    assert onward_context("").cert_store_stats()["x509_ca"] > 10
    file, settings = tmp_path / "ca.pem", tmp_path / "server.toml"
    file.write_text(AUTHORITY.certificate)
    settings.write_text(f'[egress]\nauthorities = "{file}"\n')
    file.write_text(f"# Ümlaut\n{AUTHORITY.certificate}\nnonsense", encoding="utf-8")
    assert read_server(str(settings)).egress.roots() == AUTHORITY.certificate.encode()
    file.write_text(AUTHORITY.certificate)
    assert onward_context(str(file)).verify_mode is ssl.CERT_REQUIRED
    file.write_text("nothing")
    with pytest.raises(BadRequest, match="holds no certificate"):
        read_server(str(settings))
    with pytest.raises(OSError, match=r"."):
        onward_context(str(file))


# -- what the gate hears ----------------------------------------------------------------------------------------------


def test_an_opener_that_talks_nonsense_is_left(tmp_path: Path) -> None:
    """The gate believes bounded words about connections it handed over, and hangs up at anything else."""

    async def talk(*words: bytes) -> tuple[bool, str, list[str]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate, opener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server, far = socket.socketpair()
        socket.send_fds(ours, [b"o1"], [gate.fileno()])
        gate.close()
        hand = Hands(theirs).to("o1")
        opening = hand.open("s", API, server)
        socket.recv_fds(opener, 4096, 2)
        for word in words:
            opener.send(word)
        for _ in range(3 + len(words)):
            await asyncio.sleep(0)
        result = hand.lives, opening.verdict, opening.secrets
        hand.close()
        opening.cut()
        for each in (ours, theirs, opener, far, opening.near):
            each.close()
        return result

    said = b'{"flow": 1, "secrets": ["api"], "end": true, "verdict": "owned"}'
    assert asyncio.run(talk(said)) == (True, "allowed", ["api"])
    assert asyncio.run(talk(b'{"flow": 2, "end": true}', b'{"flow": 1, "secrets": 7}')) == (True, "", [])
    assert asyncio.run(talk(b"[" * 5000)) == (False, "failed", [])
    assert asyncio.run(talk(b"7"))[0] is False


def test_events_say_so_only_where_there_were_secrets() -> None:
    """And never more than bounded text."""
    assert "secrets" not in (event_from({"secrets": ""}) or {})
    found = event_from({"secrets": "x" * 9999, "misdirected": "api"}) or {}
    assert (len(found["secrets"]), found["misdirected"]) == (500, "api")
