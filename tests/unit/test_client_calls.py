"""Requests are plain values that say exactly what the caller said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ringfence import wire
from ringfence.client import Unreachable, calls


def body(call: calls.Call) -> dict[str, Any]:
    """A request's JSON."""
    found: dict[str, Any] = json.loads(call.body or b"null")
    return found


def test_a_run_says_only_what_was_said() -> None:
    """Fields left at their defaults are not sent, so that an older server meets no name it does not know."""
    call = calls.run({"code": "1", "argv": None, "shell": None}, {}, stream=False, key=None)
    assert body(call) == {"code": "1"}


def test_false_is_sent_where_the_default_is_true() -> None:
    """Leaving out defaults must not turn a no into a yes."""
    assert body(calls.make_directory("s1", "/a", parents=False)) == {"path": "/a", "parents": False}


def test_bytes_that_are_not_text_travel_as_base64() -> None:
    """Files and input may be any bytes."""
    call = calls.run({"code": "1"}, {"files": {"a": b"\xff", "b": "text"}, "stdin": b"\xfe"}, stream=False, key=None)
    assert body(call)["files"] == {"a": {"base64": "/w=="}, "b": "text"}
    assert body(call)["stdin"] == {"base64": "/g=="}


def test_every_create_carries_its_own_idempotency_key() -> None:
    """A create may be repeated because the server can tell the repeat from a second wish."""
    first, second = (calls.create(wire.SandboxRequest(), None) for _ in range(2))
    assert first.repeatable
    assert dict(first.headers)["Idempotency-Key"] != dict(second.headers)["Idempotency-Key"]
    assert dict(calls.create(wire.SandboxRequest(), "mine").headers)["Idempotency-Key"] == "mine"


def test_starting_a_process_is_never_repeatable() -> None:
    """A program that may have run is not run again by the client's own decision."""
    assert not calls.start_process("s1", {"code": "1"}, {}).repeatable
    assert not calls.send_input("s1", 3, b"x", close=False).repeatable


@pytest.mark.parametrize("identity", ["../keys", "a/b", "a?b", "a#b", "%2e%2e"])
def test_an_id_cannot_leave_its_place_in_the_path(identity: str) -> None:
    """What a caller passes as an id stays one path segment."""
    path = calls.get_sandbox(identity).path
    assert path.count("/") == 3
    assert "?" not in path
    assert "#" not in path


def test_labels_become_one_parameter_each() -> None:
    """A list can be narrowed by several labels at once."""
    call = calls.list_sandboxes({"a": "1", "b": "2"}, "running", 5, "next")
    assert call.params == (("state", "running"), ("limit", "5"), ("cursor", "next"), ("label", "a=1"), ("label", "b=2"))


def test_an_answer_of_another_shape_is_named_as_such() -> None:
    """A client that cannot read a server says that, not KeyError."""
    with pytest.raises(Unreachable, match="not understood"):
        calls.decoded(wire.Sandbox, b'{"id": 3}')


def test_a_newer_servers_extra_fields_are_tolerated() -> None:
    """An older client can read a newer server."""
    found = calls.decoded(wire.Written, b'{"path": "a", "size": 1, "brand_new": true}')
    assert found.size == 1
