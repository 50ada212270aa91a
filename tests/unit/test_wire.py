"""The JSON shapes: strict toward what clients send, tolerant toward what servers add."""

from __future__ import annotations

import msgspec
import pytest

from ringfence import wire


@pytest.mark.parametrize(
    "body",
    [
        '{"code": "1", "unknown": 1}',
        '{"timeout": "1"}',
        '{"timeout": true}',
        '{"timeout": NaN}',
        '{"timeout": 1e999}',
        '{"timeout": -1}',
        '{"timeout": 0}',
        '{"code": 1}',
        '{"stream": 1}',
        '{"argv": "ls"}',
        '{"user": "daemon"}',
        '{"files": {"a": {"base64": "not base64!"}}}',
        '{"files": {"a": {"base64": "aGk=", "mode": 1}}}',
        '{"code": "\\ud800"}',
        "[]",
        "null",
        "",
        '{"code": "x"',
        "[" * 100_000,
        '{"limits": {"cpus": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        '{"limits": {"cpus": ' + "9" * 1_000_000 + "}}",
    ],
)
def test_a_run_request_that_is_not_one_is_refused(body: str) -> None:
    """Unknown fields, wrong types, broken and bottomless JSON never become a request."""
    with pytest.raises((msgspec.MsgspecError, ValueError, RecursionError)):
        msgspec.json.decode(body, type=wire.RunRequest)


def test_files_may_be_text_or_bytes() -> None:
    """Base64 arrives as bytes, text as text."""
    request = msgspec.json.decode('{"files": {"a": "text", "b": {"base64": "/w=="}}}', type=wire.RunRequest)
    assert request.files == {"a": "text", "b": wire.Data(base64=b"\xff")}


def test_an_answer_with_a_later_field_is_still_read() -> None:
    """An older client reads a newer server."""
    exit_ = msgspec.json.decode('{"how": "exited", "code": 0, "mood": "good"}', type=wire.Exit)
    assert exit_.ok


def test_every_request_refuses_unknown_fields() -> None:
    """No request struct was forgotten."""
    kinds = [kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, wire.Request)]
    assert len(kinds) > 8
    assert all(kind.__struct_config__.forbid_unknown_fields and kind.__struct_config__.frozen for kind in kinds)
