"""A sandbox that publishes every port, routing by header, and the API behind the edge."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import msgspec
import pytest

from ringfence.api.protocol import Clocks
from tests.edge.inside import SETTINGS, Box, EdgeApi, Program, Said, answering, ask, box, plain, read, until
from tests.edge.test_serving import drained, first_bytes, pausing

TOKEN = "a-token-of-thirty-two-characters"


def publish_all(place: Box, **how: Any) -> dict[str, Any]:
    """Publish every port of a sandbox."""
    answer = place.client.post(f"/v1/sandboxes/{place.id}/ports/any", json=how)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def host(place: Box, port: int | str, suffix: str = "") -> str:
    """The Host of any port."""
    return f"{port}-{place.id}{suffix}.sbx.localhost:{place.api.edge_port}"


def told(said: Said) -> tuple[int, Any]:
    """A refusal as E2B's clients read it."""
    return said.status, json.loads(said.body)


def dead(place: Box) -> tuple[int, Any]:
    """What is said of a sandbox that is no more."""
    return 502, {"sandboxId": place.id, "message": "The sandbox was not found", "code": 502}


def test_every_port_is_reached_without_being_named_first(api: EdgeApi, ada: Box) -> None:
    """By its number, whatever stands behind the id, and by nothing that is no port."""
    made = publish_all(ada, public=True)
    assert made["url"] == f"http://{{port}}-{ada.id}.sbx.localhost:{api.edge_port}"
    assert made["token"] is None
    with Program(answering(plain(b"one"))) as one, Program(answering(plain(b"last"))) as last:
        ada.lead(one, 1)
        ada.lead(last, 65_535)
        assert ask(api, host(ada, 1)).body == ask(api, host(ada, 1, "-client")).body == b"one"
        assert ask(api, host(ada, 65_535)).body == b"last"
        assert ask(api, "localhost", f"/p/{ada.id}/1/").code == "not_published"
        for port in ("0", "01", "065535", "65536", "99999", "-1", "+1", "1e0", "x", ""):
            assert ask(api, host(ada, port)).status in {400, 404}, port
        for suffix in ("-", "client", "--" + "a" * 40, "-A"):
            assert ask(api, host(ada, 1, suffix)).status == 404, suffix
        assert len(one.heads) == 2
        assert len(last.heads) == 1


def test_a_closed_port_is_told_from_a_dead_sandbox(api: EdgeApi) -> None:
    """In the words that E2B's clients look for; a browser gets a page."""
    with box(api) as mine:
        publish_all(mine, public=True)
        closed = {
            "sandboxId": mine.id,
            "message": "The sandbox is running but port is not open",
            "port": 81,
            "code": 502,
        }
        assert told(ask(api, host(mine, 81))) == (502, closed)
        assert ask(api, host(mine, 81), Accept="text/html").header("content-type").startswith("text/html")
        mine.client.delete(f"/v1/sandboxes/{mine.id}")
        assert told(ask(api, host(mine, 81))) == dead(mine)
        assert told(ask(api, host(mine, 8000))) == dead(mine)


def test_a_sandbox_that_dies_breaks_off_what_is_under_way(api: EdgeApi) -> None:
    """No clean end; and from then on it was not found."""
    with box(api) as mine, Program(pausing) as program:
        publish_all(mine, public=True)
        mine.lead(program)
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host(mine, 8000)}\r\n\r\n".encode())
            first_bytes(connection)
            mine.client.delete(f"/v1/sandboxes/{mine.id}")
            assert drained(connection) == "reset"
        assert told(ask(api, host(mine, 8000))) == dead(mine)


def test_a_token_is_wanted_where_one_was_set(api: EdgeApi, ada: Box) -> None:
    """The right one, once; the owner's key opens too; and none of them goes inside."""
    with Program(answering(plain(b"inside"))) as program:
        assert publish_all(ada, token=TOKEN)["token"] == TOKEN
        ada.lead(program)
        for wrong in ({}, {"E2B_Traffic_Access_Token": "wrong"}, {"E2B_Traffic_Access_Token": TOKEN + "x"}):
            said = ask(api, host(ada, 8000), **wrong)
            status, body = told(said)
            assert (status, body["code"], body["sandboxId"]) == (403, 403, ada.id)
        assert ask(api, host(ada, 8000), X_Ringfence_Access=api.bob).status == 403
        assert not program.heads
        assert ask(api, host(ada, 8000), E2B_Traffic_Access_Token=TOKEN).body == b"inside"
        assert ask(api, host(ada, 8000), X_Ringfence_Access=api.ada).body == b"inside"
        assert all(TOKEN.encode() not in head and api.ada.encode() not in head for head in program.heads)
        assert TOKEN not in ada.client.get(f"/v1/sandboxes/{ada.id}/ports").text


def test_a_token_that_was_made_is_shown_once(api: EdgeApi, ada: Box) -> None:
    """A new one ends the old one, and what it had under way."""
    with Program(pausing) as program:
        first = publish_all(ada)["token"]
        assert len(first) >= 32
        ada.lead(program)
        with api.open() as connection:
            head = f"GET / HTTP/1.1\r\nHost: {host(ada, 8000)}\r\nE2b-Traffic-Access-Token: {first}\r\n\r\n"
            connection.sendall(head.encode())
            first_bytes(connection)
            second = publish_all(ada)["token"]
            assert drained(connection) == "reset"
        assert second != first
        assert ask(api, host(ada, 8000), E2B_Traffic_Access_Token=first).status == 403


def test_ports_published_one_by_one_keep_their_answers(api: EdgeApi, ada: Box) -> None:
    """A private port stays private beside a publication of all; without it, an unknown port is 404 as ever."""
    with Program(answering(plain(b"inside"))) as program:
        own = ada.publish(program, 8000)
        assert ask(api, host(ada, 8001)).status == 404
        publish_all(ada, public=True)
        ada.lead(program, 8001)
        assert (ask(api, own).status, ask(api, own).code) == (404, "not_published")
        assert ask(api, host(ada, 8001)).body == b"inside"
        ada.client.delete(f"/v1/sandboxes/{ada.id}/ports/any")
        assert ask(api, host(ada, 8001)).status == 404
        assert ada.client.delete(f"/v1/sandboxes/{ada.id}/ports/any").status_code == 404


@pytest.mark.parametrize(
    "how",
    [
        {"token": "short"}, {"token": "with spaces in its middle"}, {"token": "\u00e9" * 20}, {"token": "x" * 300},
        {"token": 1}, {"public": True, "token": TOKEN}, {"public": "yes"}, {"wait_seconds": -1}, {"port": "any"},
    ],
)  # fmt: skip
def test_what_is_asked_is_checked(ada: Box, how: dict[str, Any]) -> None:
    """And nothing is published."""
    assert ada.client.post(f"/v1/sandboxes/{ada.id}/ports/any", json=how).status_code == 400
    assert ada.client.get(f"/v1/sandboxes/{ada.id}/ports").json()["any"] is None


def test_anothers_sandbox_has_none(api: EdgeApi, ada: Box) -> None:
    """Every verb answers bob as if it did not exist."""
    publish_all(ada, public=True)
    with api.client(api.bob) as bob:
        assert bob.post(f"/v1/sandboxes/{ada.id}/ports/any", json={"public": True}).status_code == 404
        assert bob.delete(f"/v1/sandboxes/{ada.id}/ports/any").status_code == 404


def test_a_restarted_api_knows_it_still() -> None:
    """With its token."""
    with EdgeApi() as api, box(api) as mine, Program(answering(plain(b"inside"))) as program:
        publish_all(mine, token=TOKEN)
        api.stop_api()
        api.start_api()
        mine.lead(program)
        assert ask(api, host(mine, 8000)).status == 403
        assert ask(api, host(mine, 8000), E2B_Traffic_Access_Token=TOKEN).body == b"inside"


def test_a_restarted_api_knows_which_sandboxes_are_dead() -> None:
    """And tells so: to E2B's clients a dead sandbox is no unknown one. One whose ports were withdrawn is unknown."""
    with EdgeApi() as api, box(api) as mine, box(api) as withdrawn:
        for place in (mine, withdrawn):
            publish_all(place, public=True)
        withdrawn.client.delete(f"/v1/sandboxes/{withdrawn.id}/ports/any")
        for place in (mine, withdrawn):
            place.client.delete(f"/v1/sandboxes/{place.id}")
        for _ in range(2):
            assert told(ask(api, host(mine, 81))) == dead(mine)
            assert ask(api, host(withdrawn, 81)).status == 404
            api.stop_api()
            api.start_api()


def test_a_scan_of_every_port_leaves_nothing(api: EdgeApi, ada: Box) -> None:
    """Ports nobody uses are forgotten again."""
    publish_all(ada, public=True)
    with api.open() as connection:
        for port in range(1000, 2000):
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host(ada, port)}\r\n\r\n".encode())
            assert read(connection).status == 502
    whole = api.edge.ports._whole[ada.id]
    assert len(whole._routes) <= 256


# --- by header --------------------------------------------------------------------------------------------------------

PAIRS = [("E2b_Sandbox_Id", "E2b_Sandbox_Port"), ("X_Ringfence_Sandbox", "X_Ringfence_Port")]


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("where", ["localhost", "127.0.0.1:{port}", "[::1]", "10.1.2.3", "sbx.localhost:{port}"])
def test_two_headers_route_where_the_host_names_nobody(
    api: EdgeApi, ada: Box, names: tuple[str, str], where: str
) -> None:
    """For places without wildcard names. The program is told its own host; it can leave nothing on the shared one."""
    with Program(answering(plain(b"inside", b"Set-Cookie: a=1"))) as program:
        ada.publish(program, public=True)
        said = ask(api, where.format(port=api.edge_port), **{names[0]: ada.id, names[1]: "8000"})
        assert said.body == b"inside"
        assert not said.header("set-cookie")
        head = program.heads[0].lower()
        assert b"\r\nhost: localhost:8000\r\n" in head
        assert b"sandbox-id" not in head
        assert b"x-ringfence-sandbox" not in head


def test_private_ports_stay_private_by_header(api: EdgeApi, ada: Box) -> None:
    """A key or a link's token opens; a cookie of the shared host does not, and a link sets none there."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program)
        routed = {"E2b_Sandbox_Id": ada.id, "E2b_Sandbox_Port": "8000"}
        link = ada.link()
        entered = ask(api, f"8000-{ada.id}.sbx.localhost", "/" + link["url"].rpartition("/")[2])
        pair = entered.header("set-cookie").partition(";")[0]
        assert ask(api, "localhost", Cookie=pair, **routed).status == 404
        said = ask(api, "localhost", "/" + link["url"].rpartition("/")[2], **routed)
        assert (said.status, said.header("set-cookie")) == (404, "")
        assert ask(api, "localhost", X_Ringfence_Access=link["token"], **routed).body == b"inside"
        assert ask(api, "localhost", X_Ringfence_Access=api.bob, **routed).status == 404


WRONG_ROUTING = {
    "no port": ["E2b-Sandbox-Id: {id}"],
    "no id": ["E2b-Sandbox-Port: 8000"],
    "two ids": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 8000"],
    "two ports": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 8000", "E2b-Sandbox-Port: 8000"],
    "halves of both": ["E2b-Sandbox-Id: {id}", "X-Ringfence-Port: 8000"],
    "both": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 1", "X-Ringfence-Sandbox: {id}", "X-Ringfence-Port: 8000"],
    "an empty id": ["E2b-Sandbox-Id:", "E2b-Sandbox-Port: 8000"],
    "an id of nobody's form": ["E2b-Sandbox-Id: ../x", "E2b-Sandbox-Port: 8000"],
    "an id in capitals": ["E2b-Sandbox-Id: {upper}", "E2b-Sandbox-Port: 8000"],
    "a run's id": ["E2b-Sandbox-Id: r{rest}", "E2b-Sandbox-Port: 8000"],
    "port zero": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 0"],
    "a padded port": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 08000"],
    "a signed port": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: +8000"],
    "a port too large": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 65536"],
    "a list of ports": ["E2b-Sandbox-Id: {id}", "E2b-Sandbox-Port: 8000, 8000"],
}


@pytest.mark.parametrize("kind", WRONG_ROUTING)
def test_headers_that_do_not_route_are_refused(api: EdgeApi, ada: Box, kind: str) -> None:
    """With 400, whichever of them is wrong."""
    with Program(answering(plain(b"inside"))) as program:
        ada.publish(program, public=True)
        lines = "\r\n".join(WRONG_ROUTING[kind]).format(id=ada.id, upper=ada.id.upper(), rest=ada.id[1:])
        with api.open() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode())
            said = read(connection)
        assert (said.status, said.code) == (400, "bad_routing")
        assert not program.heads


def test_a_name_counts_and_headers_do_not(api: EdgeApi, ada: Box) -> None:
    """A page of one sandbox cannot send its reader's request to another; a foreign name is refused, headers or not."""
    with box(api) as other, Program(answering(plain(b"a"))) as mine, Program(answering(plain(b"b"))) as theirs:
        one, _ = ada.publish(mine, public=True), other.publish(theirs, public=True)
        routed = {"E2b_Sandbox_Id": other.id, "E2b_Sandbox_Port": "8000"}
        assert ask(api, one, **routed).body == b"a"
        for name in ("evil.example", "x.sbx.localhost.evil.example", "8000-x.sbx.localhost"):
            assert ask(api, name, **routed).status in {404, 421}
        assert not theirs.heads


# --- the api behind the edge ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> Any:
    """An edge that serves the API too."""
    with EdgeApi(msgspec.structs.replace(SETTINGS, serve_api=True)) as made:
        yield made


def ended(connection: socket.socket) -> bool:
    """Whether it ends, however."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def request(host: str, path: str = "/health", *lines: str) -> bytes:
    """A request as bytes."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines]).encode() + b"\r\n\r\n"


def test_the_api_is_not_here_unless_asked_for(api: EdgeApi) -> None:
    """By default a stranger at the edge reaches no control plane."""
    assert ask(api, "api.sbx.localhost", "/health").status == 404


def test_the_api_answers_at_its_name(both: EdgeApi) -> None:
    """On the edge's own port, several times on one connection, pipelined too, with bodies."""
    where = f"api.sbx.localhost:{both.edge_port}"
    key = f"Authorization: Bearer {both.ada}"
    with both.open() as connection:
        for _ in range(2):
            connection.sendall(request(where))
            assert read(connection).status == 200
        connection.sendall(request(where, "/v1/sandboxes", key) * 2)
        assert read(connection).status == 200
    made = ask(both, where, "/v1/sandboxes", "POST", b'{"ttl_seconds": 60}',
               Authorization=f"Bearer {both.ada}", Content_Type="application/json")  # fmt: skip
    assert made.status == 201, made.body
    assert ask(both, where, "/v1/sandboxes").status == 401


def test_a_connection_for_the_api_is_for_one_host(both: EdgeApi) -> None:
    """The next request for another host is misdirected, and ends it."""
    with box(both) as mine, Program(answering(plain(b"inside"))) as program:
        other = mine.publish(program, public=True)
        for second in (other, "localhost", f"49983-{mine.id}.sbx.localhost", "api.sbx.localhost", "evil.example"):
            with both.open() as connection:
                connection.sendall(request(f"api.sbx.localhost:{both.edge_port}"))
                assert read(connection).status == 200
                connection.sendall(request(second))
                said = read(connection)
                assert (said.status, said.header("connection")) == (421, "close"), second
                assert connection.recv(1) == b""
        assert not program.heads


def test_a_proxys_connection_is_not_the_apis_for_good() -> None:
    """Its next request may be for anybody, so the api answers one and hangs up."""
    trusting = msgspec.structs.replace(SETTINGS, serve_api=True, trusted_proxies=["127.0.0.1/32"])
    with EdgeApi(trusting) as api, api.open() as connection:
        connection.sendall(request("api.sbx.localhost") * 2)
        said = read(connection)
        assert (said.status, said.header("connection")) == (200, "close")
        assert connection.recv(1) == b""


def test_ports_of_the_api_are_the_apis(both: EdgeApi) -> None:
    """By name and by header they reach it, whatever listens inside; they cannot be published, nor asked for by path."""
    with box(both) as mine, Program(answering(plain(b"inside"))) as program:
        publish_all(mine, public=True)
        for port in (49983, 49999):
            mine.lead(program, port)
            assert not ask(both, f"{port}-{mine.id}-client.sbx.localhost").code  # an answer of the api, not the edge's
            said = ask(both, "localhost", "/health", E2b_Sandbox_Id=mine.id, E2b_Sandbox_Port=str(port))
            assert not said.code
            assert ask(both, "localhost", f"/p/{mine.id}/{port}/").status == 404
            answer = mine.client.post(f"/v1/sandboxes/{mine.id}/ports", json={"port": port})
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "port_reserved")
        assert not program.heads


def test_a_half_sent_head_for_the_api_is_timed_as_any_other() -> None:
    """What the edge gave away is still bounded: by the api's own clocks."""
    settings = msgspec.structs.replace(SETTINGS, serve_api=True)
    with EdgeApi(settings, clocks=Clocks(header_seconds=1, stall_seconds=60)) as hasty, hasty.open() as connection:
        connection.sendall(request("api.sbx.localhost"))
        assert read(connection).status == 200
        connection.sendall(b"GET /health HT")
        assert ended(connection)


def test_requests_two_parsers_could_read_differently_never_reach_the_api(both: EdgeApi) -> None:
    """The first head on a connection is read by the strict parser before anybody else sees it."""
    for lines in (["Host: api.sbx.localhost"], ["Content-Length: 1", "Transfer-Encoding: chunked"], ["X : y"]):
        with both.open() as connection:
            connection.sendall(request("api.sbx.localhost", "/health", *lines))
            assert read(connection).status == 400
            assert connection.recv(1) == b""


def test_a_connection_given_away_is_the_apis_to_close(both: EdgeApi) -> None:
    """A client that leaves is gone there too: the edge holds nothing of it."""
    for _ in range(20):
        with both.open() as connection:
            connection.sendall(request("api.sbx.localhost"))
            assert read(connection).status == 200
    until(lambda: not both._server.server_state.connections and not both.edge._tasks)
