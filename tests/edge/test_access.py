"""Who may pass: nobody by default, the owner by key, others by links that end; and nobody learns what is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.edge.inside import Box, EdgeApi, Program, Said, answering, ask, box, plain
from tests.edge.test_serving import drained, first_bytes, pausing
from tests.support.fakeapi import FakeApi

HIDDEN = (404, "not_published")


@pytest.fixture
def program() -> Iterator[Program]:
    """A program that greets."""
    with Program(answering(plain(b"secret"))) as made:
        yield made


def seen(said: Said) -> tuple[int, str]:
    """What a refused client can see."""
    return said.status, said.code


def target(url: str) -> str:
    """The path and query of a link."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def cookie(said: Said) -> str:
    """The pair of the cookie that was set."""
    return said.header("set-cookie").partition(";")[0]


def test_a_port_is_private_unless_asked_otherwise(api: EdgeApi, ada: Box, program: Program) -> None:
    """Its owner passes with a key; without, with another's, with two, and for what is not there, one answer."""
    host = ada.publish(program)
    assert ask(api, host, X_Ringfence_Access=api.ada).body == b"secret"
    nowhere = host.replace("8000-", "8001-", 1)
    refused = [
        ask(api, host),
        ask(api, host, X_Ringfence_Access=api.bob),
        ask(api, host, X_Ringfence_Access="rf_nonsense"),
        ask(api, host, X_Ringfence_Access=""),
        ask(api, host, X_Ringfence_Access="x" * 10_000),
        ask(api, host, X_Ringfence_Access=api.ada + "\r\nX-Ringfence-Access: " + api.ada),
        ask(api, host, Authorization=f"Bearer {api.ada}"),
        ask(api, host, Cookie=f"__Host-ringfence-access={api.ada}"),
        ask(api, nowhere),
        ask(api, nowhere, X_Ringfence_Access=api.ada),
    ]
    assert {seen(said) for said in refused} == {HIDDEN}
    assert len({said.body for said in refused}) == 1
    assert len(program.heads) == 1


def test_the_key_stays_outside(api: EdgeApi, ada: Box, program: Program) -> None:
    """Neither the header that opens the port nor a key sent the usual way by mistake reaches the program."""
    host = ada.publish(program)
    ask(api, host, X_Ringfence_Access=api.ada, Authorization=f"Bearer {api.ada}", X_API_Key=api.ada)
    assert api.ada.encode() not in program.heads[0]
    ask(api, host, X_Ringfence_Access=api.ada, Authorization="Bearer its-own", X_API_Key="its-own")
    assert program.heads[1].count(b"its-own") == 2


def test_a_public_port_is_for_everybody_until_it_is_not(api: EdgeApi, ada: Box, program: Program) -> None:
    """The same request, published otherwise, changes it."""
    host = ada.publish(program, public=True)
    assert ask(api, host).body == b"secret"
    assert ada.publish() == host
    assert seen(ask(api, host)) == HIDDEN
    ada.client.delete(f"/v1/sandboxes/{ada.id}/ports/8000")
    assert seen(ask(api, host, X_Ringfence_Access=api.ada)) == HIDDEN


def test_a_revoked_key_opens_nothing(api: EdgeApi, ada: Box, program: Program) -> None:
    """From the next request on."""
    host = ada.publish(program)
    secret, key = api.ring.add("ada")
    assert ask(api, host, X_Ringfence_Access=secret).status == 200
    api.ring.revoke(key.id)
    assert seen(ask(api, host, X_Ringfence_Access=secret)) == HIDDEN


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_link_lets_a_browser_in(api: EdgeApi, ada: Box, program: Program) -> None:
    """It is exchanged for a cookie of this host alone, and its token leaves the address."""
    host = ada.publish(program)
    url = ada.link(ttl_seconds=60)["url"]
    assert url.startswith(f"http://{host}/?ringfence-access=rfl_")
    entered = ask(api, host, target(url) + "&page=2")
    assert (entered.status, entered.header("location")) == (303, "/?page=2")
    assert entered.header("referrer-policy") == "no-referrer"
    pair, *attributes = entered.header("set-cookie").split("; ")
    assert pair.startswith("__Host-ringfence-access=rfl_")
    assert {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"} <= set(attributes)
    assert not any(attribute.lower().startswith("domain") for attribute in attributes)
    assert ask(api, host, Cookie=f"theirs=1; {pair}; more=2").body == b"secret"
    assert b"\r\nCookie: theirs=1; more=2\r\n" in program.heads[-1]
    assert b"rfl_" not in b"".join(program.heads)


def test_a_links_token_also_goes_into_the_header(api: EdgeApi, ada: Box, program: Program) -> None:
    """For a program that was given a link and no key."""
    host = ada.publish(program)
    assert ask(api, host, X_Ringfence_Access=ada.link()["token"]).body == b"secret"


def test_a_link_ends(api: EdgeApi, ada: Box, program: Program) -> None:
    """By itself, with the cookie made from it."""
    host = ada.publish(program)
    began = time.monotonic()
    made = ada.link(ttl_seconds=2)
    kept = cookie(ask(api, host, target(made["url"])))
    lives = ask(api, host, Cookie=kept).status == 200
    assert lives or time.monotonic() - began > 1
    time.sleep(2.1)
    assert seen(ask(api, host, Cookie=kept)) == HIDDEN
    assert seen(ask(api, host, target(made["url"]))) == HIDDEN
    assert seen(ask(api, host, X_Ringfence_Access=made["token"])) == HIDDEN


def test_a_link_is_revoked(api: EdgeApi, ada: Box) -> None:
    """With its cookies, and with what is under way by it; other links stay."""
    with Program(pausing) as program, api.open() as connection:
        host = ada.publish(program)
        made, other = ada.link(), ada.link()
        kept = cookie(ask(api, host, target(made["url"])))
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {kept}\r\n\r\n".encode())
        first_bytes(connection)
        assert ada.client.delete(f"/v1/sandboxes/{ada.id}/ports/8000/links/{made['id']}").status_code == 204
        assert drained(connection) == "reset"
    with Program(answering(plain(b"secret"))) as program:
        ada.lead(program)
        assert seen(ask(api, host, Cookie=kept)) == HIDDEN
        assert seen(ask(api, host, X_Ringfence_Access=made["token"])) == HIDDEN
        assert ask(api, host, X_Ringfence_Access=other["token"]).status == 200
        assert ada.client.delete(f"/v1/sandboxes/{ada.id}/ports/8000/links").status_code == 204
        assert seen(ask(api, host, X_Ringfence_Access=other["token"])) == HIDDEN
        listed = ada.client.get(f"/v1/sandboxes/{ada.id}/ports").json()["ports"]
        assert listed[0]["links"] == []


def test_a_link_for_once_works_once(api: EdgeApi, ada: Box, program: Program) -> None:
    """The cookie it was exchanged for goes on; the link, even when twenty follow it at once, does not."""
    host = ada.publish(program)
    made = ada.link(once=True)
    assert seen(ask(api, host, target(made["url"]), "HEAD")) == HIDDEN  # looking does not use it up
    assert seen(ask(api, host, X_Ringfence_Access=made["token"])) == HIDDEN
    said: list[Said] = []
    threads = [threading.Thread(target=lambda: said.append(ask(api, host, target(made["url"])))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    good = [one for one in said if one.status == 303]
    assert (len(said), len(good)) == (20, 1)
    assert ask(api, host, Cookie=cookie(good[0])).body == b"secret"


def test_a_token_is_good_for_its_own_port_and_use_alone(api: EdgeApi, ada: Box, program: Program) -> None:
    """Not for a sibling, not for another port, not when a bit is changed, not as what it is not."""
    host, other_port = ada.publish(program), ada.publish(program, port=9000)
    made = ada.link()
    token: str = made["token"]
    kept = cookie(ask(api, host, target(made["url"]))).partition("=")[2]
    assert seen(ask(api, other_port, X_Ringfence_Access=token)) == HIDDEN
    with box(api, api.bob) as his:
        assert seen(ask(api, his.publish(program), X_Ringfence_Access=token)) == HIDDEN
    for at in range(4, len(token), 7):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert seen(ask(api, host, X_Ringfence_Access=changed)) == HIDDEN
    for wrong in (token + "=", token[:-1], token.upper(), "rfl_", kept, "rfl_" + "A" * 64):
        assert seen(ask(api, host, X_Ringfence_Access=wrong)) == HIDDEN
    assert seen(ask(api, host, Cookie=f"__Host-ringfence-access={token}")) == HIDDEN
    twice = f"__Host-ringfence-access={kept}; __Host-ringfence-access={kept}"
    assert seen(ask(api, host, Cookie=twice)) == HIDDEN


def test_an_address_that_would_lead_elsewhere_does_not(api: EdgeApi, ada: Box, program: Program) -> None:
    """The redirect after a link stays on its host."""
    host = ada.publish(program)
    query = urlsplit(ada.link()["url"]).query
    for path in ("//evil.example/", "/\\evil.example/", "///evil.example"):
        location = ask(api, host, f"{path}?{query}").header("location")
        assert location.startswith("/")
        assert not location.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://{host}"}, 200),
        ({"Origin": "https://{host}", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "websocket", "Sec_Fetch_Dest": "websocket"}, 403),
        ({"Origin": "http://9000-{id}.sbx.localhost"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Upgrade": "websocket", "Connection": "Upgrade"}, 403),
    ],
)
def test_a_cookie_is_for_the_ports_own_pages(
    api: EdgeApi, ada: Box, program: Program, headers: dict[str, str], status: int
) -> None:
    """A page of a sibling, which a browser counts as the same site, cannot use its reader's cookie."""
    host = ada.publish(program)
    kept = cookie(ask(api, host, target(ada.link()["url"])))
    filled = {name: value.format(host=host, id=ada.id) for name, value in headers.items()}
    assert ask(api, host, Cookie=kept, **filled).status == status


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_anothers_sandbox_has_no_ports(api: EdgeApi, ada: Box, program: Program) -> None:
    """Every verb answers bob as if ada's sandbox did not exist."""
    ada.publish(program)
    link = ada.link()["id"]
    base = f"/v1/sandboxes/{ada.id}/ports"
    with api.client(api.bob) as bob:
        answers = [
            bob.post(base, json={"port": 8000, "public": True}),
            bob.get(base),
            bob.delete(f"{base}/8000"),
            bob.post(f"{base}/8000/links", json={}),
            bob.delete(f"{base}/8000/links/{link}"),
            bob.delete(f"{base}/8000/links"),
        ]
    assert {answer.status_code for answer in answers} == {404}
    assert len(ada.client.get(base).json()["ports"][0]["links"]) == 1


def test_what_is_asked_is_checked(api: EdgeApi, ada: Box) -> None:
    """Ports that are none, waits and lives out of bounds, unknown fields, too many."""
    base = f"/v1/sandboxes/{ada.id}/ports"
    for bad in ({}, {"port": 0}, {"port": 65536}, {"port": "80"}, {"port": True}, {"port": 80, "wait_seconds": 61},
                {"port": 80, "wait_seconds": -1}, {"port": 80, "host": "x"}, {"port": 80, "public": 1}):  # fmt: skip
        assert ada.client.post(base, json=bad).status_code == 400, bad
    for port in range(1, 65):
        ada.publish(port=port)
    assert ada.client.post(base, json={"port": 65}).status_code == 429
    assert ada.client.post(f"{base}/1/links", json={"ttl_seconds": 0}).status_code == 400
    assert ada.client.post(f"{base}/999/links", json={}).status_code == 404
    assert ada.client.delete(f"{base}/1/links/0000000000000000").status_code == 404
    for _ in range(64):
        ada.link(1)
    assert ada.client.post(f"{base}/1/links", json={}).status_code == 429
    shown = ada.client.get(base).json()["ports"]
    assert [one["port"] for one in shown] == list(range(1, 65))
    assert all(link["url"] is None and link["token"] is None for link in shown[0]["links"])


def test_an_api_without_an_edge_publishes_nothing() -> None:
    """And says where it is switched on."""
    with FakeApi() as api, api.client() as client:
        made = client.post("/v1/sandboxes", json={}).json()["id"]
        answer = client.post(f"/v1/sandboxes/{made}/ports", json={"port": 8000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "edge_off")
        assert "[edge]" in answer.json()["error"]["remediation"]


def test_an_ended_sandbox_publishes_nothing(api: EdgeApi, program: Program) -> None:
    """And says so to its owner."""
    with box(api) as mine:
        mine.publish(program)
        mine.client.delete(f"/v1/sandboxes/{mine.id}")
        answer = mine.client.post(f"/v1/sandboxes/{mine.id}/ports", json={"port": 8000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "sandbox_ended")
        assert mine.client.get(f"/v1/sandboxes/{mine.id}/ports").json() == {"ports": [], "any": None}


def test_a_restarted_api_knows_the_ports_of_what_lived_on(api: EdgeApi, program: Program) -> None:
    """With their links and cookies, and a link that was used up stays used up; not those of what ended meanwhile."""
    with box(api) as kept, box(api) as lost:
        host, gone = kept.publish(program), lost.publish(program, public=True)
        made, once = kept.link(), kept.link(once=True)
        pair = cookie(ask(api, host, target(once["url"])))
        api.stop_api()
        api.loop.call_soon_threadsafe(api.inner.sandboxes.pop, lost.id)
        api.start_api()
        assert ask(api, host, X_Ringfence_Access=made["token"]).body == b"secret"
        assert ask(api, host, Cookie=pair).body == b"secret"
        assert seen(ask(api, host, target(once["url"]))) == HIDDEN
        assert seen(ask(api, gone)) == HIDDEN
    assert len(api.edge.ports) == 0
    api.flush()
    assert api.store.ports() == []
