"""The parts of E2B's face that need no server: network options, filters, multipart bodies, keys, paths."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence import wire
from ringfence.api.compat.e2b import listing
from ringfence.api.compat.e2b.connect import ConnectError
from ringfence.api.compat.e2b.multipart import Parts, boundary_of
from ringfence.api.compat.e2b.network import egress
from ringfence.api.compat.e2b.records import Face, Record
from ringfence.api.compat.e2b.shapes import Network
from ringfence.api.compat.e2b.users import ACCOUNTS, from_basic
from ringfence.api.compat.e2b.watching import told
from ringfence.config import E2bSettings
from ringfence.domain.egress import policy_from
from ringfence.domain.errors import BadRequest
from ringfence.domain.sandbox import State, new_id
from ringfence.store.base import digest_of, e2b_spelling

CLOSED, OPEN = E2bSettings(), E2bSettings(internet={"bundles": ["pypi"], "allow": ["a.example.com"]})


# --- network ---------------------------------------------------------------------------------------------------------


def test_nothing_is_reached_unless_somebody_said_so() -> None:
    """No options, no internet policy: no network; the old clients' constant true changes nothing."""
    assert egress(None, None, CLOSED) is None
    assert egress(None, False, OPEN) is None
    assert egress(None, True, CLOSED, always_said=True) is None
    assert egress(Network(deny_out=["0.0.0.0/0"]), None, OPEN) == []
    with pytest.raises(BadRequest, match="internet"):
        egress(None, True, CLOSED)


def test_options_become_a_policy_that_says_the_same() -> None:
    """Names by TLS and HTTP, addresses by their ports, the operator's internet where it is not closed."""
    wanted = egress(Network(allow_out=["*.example.com", "9.9.9.0/24"], deny_out=["0.0.0.0/0"]), None, OPEN)
    assert [rule.text for rule in policy_from(wanted).rules] == [
        "*.example.com:443/tls", "*.example.com:80/http", "9.9.9.0/24:22,80,443/tcp",
    ]  # fmt: skip
    both = policy_from(egress(Network(allow_out=["b.example.com"]), True, OPEN))
    assert {"a.example.com", "b.example.com", "pypi.org"} <= {rule.domain for rule in both.rules}


@pytest.mark.parametrize("network", [Network(allow_out=["0.0.0.0/0"]), Network(deny_out=["1.2.3.4"])])
def test_what_no_policy_can_say_is_refused(network: Network) -> None:
    """Everything, and everything but."""
    with pytest.raises(BadRequest):
        egress(network, None, OPEN)


# --- lists -----------------------------------------------------------------------------------------------------------


def pair(at: float, **metadata: str) -> listing.Pair:
    """A sandbox of a moment."""
    name = new_id("s")
    row = wire.Sandbox(id=name, template="base", state=State.RUNNING, created_at=at)
    return Face("ada", name, Record(token="t", template="base", metadata=metadata)), row


def test_pages_stay_put_while_sandboxes_come_and_go() -> None:
    """Each is shown once, newest first or oldest first; one that came later changes no page that follows."""
    rows = [pair(float(at)) for at in range(7)]
    for order in ("asc", "desc"):
        seen, token = [], ""
        while True:
            query = {"limit": "2", "order": order, **({"nextToken": token} if token else {})}
            shown, following = listing.page(rows, listing.wanted(query), lambda _: "running")
            seen += [row.created_at for _, row in shown]
            if following is None:
                break
            token = following
            rows.append(pair(99.0 if order == "desc" else -1.0))
        assert seen == sorted(range(7), reverse=order == "desc")
        rows = rows[:7]


def test_filters_hold_together() -> None:
    """Metadata, state, time and template."""
    rows = [pair(1.0, a="x&y", **{"b c": "1"}), pair(2.0, a="x&y"), pair(3.0)]
    asked = listing.wanted({"metadata": "a=x%2526y&b%2520c=1"})
    assert [row.created_at for _, row in listing.page(rows, asked, lambda _: "running")[0]] == [1.0]
    asked = listing.wanted({"startedAfter": "1970-01-01T00:00:02Z", "template": "base", "state": "running"})
    assert [row.created_at for _, row in listing.page(rows, asked, lambda _: "running")[0]] == [3.0]
    assert listing.page(rows, listing.wanted({"state": "paused"}), lambda _: "running") == ([], None)


# --- multipart -------------------------------------------------------------------------------------------------------


async def taken(body: bytes, boundary: bytes, step: int) -> list[tuple[str | None, bytes]]:
    """Every part's file name and contents, the body coming in pieces of `step` bytes."""

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), step):
            yield body[at : at + step]

    parts, found = Parts(chunks(), boundary), []
    while (words := await parts.next()) is not None:
        found.append((words.get("filename"), b"".join([piece async for piece in parts.contents()])))
    return found


@given(
    contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    step=st.integers(min_value=1, max_value=50),
)
def test_parts_come_whole_however_the_body_is_cut(contents: list[bytes], step: int) -> None:
    """Contents are what was sent, boundaries look-alikes included."""
    boundary = b"xXx" + secrets.token_hex(8).encode()
    contents = [data.replace(boundary, b"") + b"\r\n--xXx" for data in contents]
    body = b""
    for number, data in enumerate(contents):
        head = f'Content-Disposition: form-data; name="file"; filename="/tmp/{number} \\"q\\".txt"'
        body += b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
    found = asyncio.run(taken(body + b"--" + boundary + b"--\r\n", boundary, step))
    assert found == [(f'/tmp/{number} "q".txt', data) for number, data in enumerate(contents)]


def test_a_file_name_is_a_whole_path_in_every_spelling() -> None:
    """Directories stay; quotes, percent signs and other alphabets come back."""
    for head, path in (
        ('name="file"; filename="/a/b c.txt"', "/a/b c.txt"),
        ('name="file"; filename="a%22b"', 'a"b'),
        ("name=file; filename=/plain/word", "/plain/word"),
        ("name=\"file\"; filename*=UTF-8''/gr%C3%BCn", "/grün"),
        ('name="file"; filename="/grün"', "/grün"),
    ):
        body = f"--b\r\nContent-Type: x\r\nContent-Disposition: form-data; {head}\r\n\r\n1\r\n--b--".encode()
        assert asyncio.run(taken(body, b"b", 7)) == [(path, b"1")], head
    assert boundary_of('multipart/form-data; charset=x; boundary="a b"') == b"a b"


# --- names -----------------------------------------------------------------------------------------------------------


def test_both_spellings_of_a_key_are_one_key() -> None:
    """And nothing that looks like one is another's."""
    secret = "rf_" + secrets.token_urlsafe(32)
    spelt = e2b_spelling(secret)
    assert spelt.startswith("e2b_")
    assert set(spelt[4:]) <= set("0123456789abcdef")
    assert digest_of(spelt) == digest_of(secret)
    assert digest_of(spelt.upper()) != digest_of(secret)
    assert digest_of(spelt[:-1]) != digest_of(secret)


def test_paths_start_at_the_users_own_home() -> None:
    """~ and relative ones; .. is undone before it can be asked; another's ~ is refused."""
    user, root = ACCOUNTS["user"], ACCOUNTS["root"]
    assert [user.resolved(path) for path in ("a", "~/a", "~", "", "/a/../b/./c//d", "../x", "/../..")] == [
        "/home/user/a", "/home/user/a", "/home/user", "/home/user", "/b/c/d", "/home/x", "/",
    ]  # fmt: skip
    assert root.resolved("a") == "/root/a"
    for bad in ("~root/x", "a\0b", "x" * 5000):
        with pytest.raises(ConnectError):
            user.resolved(bad)


def test_basic_names_a_user_and_nothing_else() -> None:
    """Without one it is `user`; unknown or unreadable, unauthenticated."""
    assert from_basic(None).name == from_basic("Bearer x").name == from_basic("Basic dXNlcjo=").name == "user"
    assert from_basic("basic cm9vdDphbnk=").name == "root"
    for bad in ("Basic bm9ib2R5Og==", "Basic !", "Basic /w=="):
        with pytest.raises(ConnectError) as refused:
            from_basic(bad)
        assert refused.value.code == "unauthenticated"


def test_a_watch_tells_of_both_names_and_hides_our_own() -> None:
    """Names are relative to the watched directory."""
    event = wire.FileEvent(type="rename", path="/d/new", source="/d/sub/old")
    assert [(each["name"], each["type"]) for each in told(event, "/d")] == [
        ("sub/old", "EVENT_TYPE_RENAME"), ("new", "EVENT_TYPE_CREATE"),
    ]  # fmt: skip
    assert told(wire.FileEvent(type="write", path="/d/.ringfence-0"), "/d") == []
