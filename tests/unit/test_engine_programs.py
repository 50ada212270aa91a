"""What became of a program: node above guest, and no fate where nobody knows one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ringfence.domain.errors import NotFound, RingfenceError, SandboxLost
from ringfence.domain.process import How
from ringfence.engine.answers import GuestEnd, guest_control, guest_end
from ringfence.engine.link import End
from ringfence.engine.output import Texts, whole
from ringfence.engine.programs import fate


def end(header: dict[str, Any], guest: Any = None) -> End:
    """A last frame."""
    return End(json.dumps(header).encode(), b"" if guest is None else json.dumps(guest).encode())


def killed(**more: Any) -> dict[str, Any]:
    """A program killed by signal 9."""
    return {"exit": {"how": "signalled", "code": None, "signal": 9, **more}}


@pytest.mark.parametrize(
    ("header", "guest", "how"),
    [
        ({}, {"exit": {"how": "exited", "code": 0}}, How.EXITED),
        ({}, {"exit": {"how": "timed_out", "signal": 9}}, How.TIMED_OUT),
        ({"oom_kills": 1}, killed(), How.OUT_OF_MEMORY),
        ({"oom_kills": 1}, {"exit": {"how": "exited", "code": 137}}, How.OUT_OF_MEMORY),
        ({"oom_kills": 1}, {"exit": {"how": "exited", "code": 1}}, How.EXITED),
        ({"oom_kills": 1, "oom_hidden": True}, {"exit": {"how": "exited", "code": 1}}, How.OUT_OF_MEMORY),
        ({"oom_kills": 1, "oom_hidden": True}, {"exit": {"how": "exited", "code": 0}}, How.EXITED),
        ({"oom_kills": 0, "oom_hidden": True}, {"exit": {"how": "exited", "code": 1}}, How.EXITED),
        ({"oom_kills": 0}, killed(), How.SIGNALLED),
        ({}, {"exit": {"how": "exited", "code": 1, "scratch_full": True}}, How.DISK_FULL),
        ({}, {"exit": {"how": "exited", "code": 0, "scratch_full": True}}, How.EXITED),
        ({"override": {"how": "output_capped", "reason": "r"}}, None, How.OUTPUT_CAPPED),
        ({"override": {"how": "policy_killed"}}, killed(), How.POLICY_KILLED),
    ],
)
def test_the_nodes_verdict_stands_above_the_guests_word(header: dict[str, Any], guest: Any, how: How) -> None:
    """Counters the guest cannot touch decide."""
    assert fate(end(header, guest)).exit.how is how


def test_an_old_memory_kill_is_not_blamed_on_a_new_program() -> None:
    """The counter of a living sandbox only counts where it grew."""
    assert fate(end({"oom_kills": 2}, killed()), oom_kills_before=2).exit.how is How.SIGNALLED
    assert fate(end({"oom_kills": 3}, killed()), oom_kills_before=2).exit.how is How.OUT_OF_MEMORY


def test_no_fate_is_invented() -> None:
    """Neither a verdict nor a word: the sandbox is lost."""
    with pytest.raises(SandboxLost):
        fate(end({}))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe",
        b"{",
        b"[]",
        b"[" * 200_000,
        b'{"exit": {"how": "escaped"}}',
        b'{"exit": {"how": "exited", "code": "0"}}',
        b'{"error": {"code": "made_up"}}',
        b'{"processes": 3}',
        b'{"entries": [{"name": "x", "path": "x", "type": "portal"}]}',
    ],
)
def test_a_guest_that_lies_loses_its_stream(payload: bytes) -> None:
    """Whatever it sends, the answer is one error of ours."""
    with pytest.raises(SandboxLost):
        guest_end(payload)
    assert fate(End(b'{"override": {"how": "timed_out"}}', payload)).exit.how is How.TIMED_OUT


def test_a_guests_refusal_is_told_in_our_terms() -> None:
    """Its code is ours with a prefix, its words are bounded."""
    with pytest.raises(NotFound, match="in the sandbox") as caught:
        guest_end(json.dumps({"error": {"code": "not_found", "cause": "x" * 10_000}}).encode())
    assert caught.value.code == "guest_not_found"
    assert len(caught.value.cause) < 600


def test_a_name_that_is_not_utf8_is_shown_not_fatal() -> None:
    """A lone surrogate is how the agent's JSON carries such a byte."""
    payload = json.dumps({"entries": [{"name": "a\udcff", "path": "a\udcff", "type": "file"}]}).encode()
    assert guest_end(payload).entries[0].name == "a?"


def test_silence_says_nothing() -> None:
    """An empty payload is no lie."""
    assert guest_end(b"") == GuestEnd()


def test_a_control_message_is_checked_too() -> None:
    """A pid is a number."""
    with pytest.raises(SandboxLost):
        guest_control(b'{"started": {"pid": "1; rm"}}')


def test_text_is_text_and_bytes_are_bytes() -> None:
    """UTF-8 stays text, the rest is base64, and a cap in mid-character does not spoil what came before."""
    assert whole("héé".encode(), truncated=False) == ("héé", None)
    assert whole("hé".encode()[:-1], truncated=True) == ("h", None)
    assert whole("hé".encode()[:-1], truncated=False) == (None, "hé".encode()[:-1])
    assert whole(b"\xff\xfe", truncated=True) == (None, b"\xff\xfe")


def test_a_character_cut_by_a_chunk_is_put_together() -> None:
    """Chunks end where they end; lines hold whole characters."""
    texts = Texts("stdout")
    assert texts.feed("é".encode()[:1]) is None
    line = texts.feed("é".encode()[1:] + b"x")
    assert line is not None
    assert line.stdout == "éx"
    assert texts.feed("é".encode()[:1]) is None
    raw = texts.feed(b"\xff")
    assert raw is not None
    assert raw.stdout_base64 == "é".encode()[:1] + b"\xff"
    assert texts.feed(b"", final=True) is None


@pytest.mark.parametrize("header", [b"", b"{", b'{"override": 3}', b"\xff", b"[" * 100_000])
def test_a_header_that_is_not_understood_is_our_fault(header: bytes) -> None:
    """A newer or broken node is a fault with a remedy, not a crash."""
    with pytest.raises(RingfenceError):
        fate(End(header, b""))
