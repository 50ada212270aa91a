"""Errors from a server become the domain's classes; a program's fate never does unless asked."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from ringfence import wire
from ringfence.client import DeadlineExceeded, ProgramFailed, Unreachable
from ringfence.client.errors import BY_CODE, described, error_from, error_from_body, lost, may_repeat
from ringfence.client.results import process_result, run_result
from ringfence.domain import errors as domain
from ringfence.domain.process import How


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_code_of_the_domain_comes_back_as_its_own_class(code: str) -> None:
    """An error sent as JSON is raised as the class whose default code it carries."""
    error = error_from(500, {"code": code, "cause": "x", "remediation": "y"})
    assert type(error) is BY_CODE[code]
    assert (error.code, error.cause, error.remediation) == (code, "x", "y")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, domain.BadRequest),
        (401, domain.Unauthenticated),
        (403, domain.Forbidden),
        (404, domain.NotFound),
        (409, domain.Conflict),
        (413, domain.TooLarge),
        (418, domain.Refused),
        (422, domain.BadRequest),
        (429, domain.OverQuota),
        (500, domain.PlatformFault),
        (503, domain.PlatformFault),
    ],
)
def test_an_unknown_code_is_classed_by_its_status_and_keeps_its_code(status: int, kind: type[Exception]) -> None:
    """A code that only a newer server knows still has a class to catch."""
    error = error_from(status, {"code": "brand_new", "cause": "x"})
    assert type(error) is kind
    assert error.code == "brand_new"


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[]", b'{"error": 3}', b"\xff"])
def test_an_answer_that_is_not_ours_says_so(body: bytes) -> None:
    """Another service's error page is a plain fault with advice, not a crash of the client."""
    error = error_from_body(502, body)
    assert type(error) is domain.PlatformFault
    assert "502" in error.cause
    assert "URL" in error.remediation


def test_a_refused_connection_may_always_be_tried_again() -> None:
    """Nothing was sent, so nothing can happen twice."""
    assert may_repeat(httpx.ConnectError("refused"), repeatable=False)


def test_a_connection_lost_midway_is_tried_again_only_when_that_is_safe() -> None:
    """A request that may already have acted is not sent a second time by itself."""
    assert may_repeat(httpx.ReadError("reset"), repeatable=True)
    assert not may_repeat(httpx.ReadError("reset"), repeatable=False)
    assert not may_repeat(httpx.ReadTimeout("slow"), repeatable=True)


def test_connection_failures_say_what_to_do() -> None:
    """A user without a server is told how to start one; a passed deadline is told from a lost connection."""
    assert isinstance(lost(httpx.ConnectError("refused"), "http://h"), Unreachable)
    assert "ringfence serve" in lost(httpx.ConnectError("refused"), "http://h").remediation
    assert isinstance(lost(httpx.ReadTimeout("slow"), "http://h"), DeadlineExceeded)
    assert isinstance(lost(httpx.UnsupportedProtocol("x"), "h"), domain.BadRequest)


def test_a_fate_is_a_value_until_check_is_called() -> None:
    """A result with a bad exit raises nothing; `.check()` raises ProgramFailed with the fate in it."""
    result = process_result(wire.ProcessResult(pid=7, exit=wire.Exit(how=How.EXITED, code=3), stderr="a\nlast words\n"))
    assert not result.ok
    with pytest.raises(ProgramFailed, match="exited with code 3: last words") as raised:
        result.check()
    assert raised.value.exit.code == 3
    assert not isinstance(raised.value, domain.RingfenceError)


def test_a_good_result_checks_to_itself() -> None:
    """`.check()` of a success is the result, so that calls can be chained."""
    result = process_result(wire.ProcessResult(pid=7, exit=wire.Exit(how=How.EXITED, code=0), stdout="42\n"))
    assert result.check() is result


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (wire.Exit(how=How.EXITED, code=0), "exited with code 0"),
        (wire.Exit(how=How.SIGNALLED, signal=11), "killed by signal 11"),
        (wire.Exit(how=How.TIMED_OUT, reason="wall limit of 2 s"), "timed out: wall limit of 2 s"),
        (wire.Exit(how=How.OUT_OF_MEMORY), "out of memory"),
    ],
)
def test_each_fate_has_one_short_line(exit_: wire.Exit, words: str) -> None:
    """People read a fate as words, not as an enum."""
    assert described(exit_) == words


def test_output_that_is_not_text_survives_as_bytes() -> None:
    """A stream sent as base64 is the program's very bytes; its text form marks what is not UTF-8."""
    body = msgspec.json.encode(
        {
            "id": "r1", "state": "finished", "template": "base", "created_at": 1.0,
            "exit": {"how": "exited", "code": 0}, "stdout_base64": "/wBhCg==", "stderr": "e",
            "files": {"a": {"base64": "AAE=", "size": 2}, "b": {"error": {"code": "not_found", "cause": "no b"}}},
        }
    )  # fmt: skip
    result = run_result(msgspec.json.decode(body, type=wire.Run))
    assert result.stdout_bytes == b"\xff\x00a\n"
    assert result.stdout == "\N{REPLACEMENT CHARACTER}\x00a\n"
    assert result.files == {"a": b"\x00\x01"}
    assert isinstance(result.file_errors["b"], domain.NotFound)


def test_a_run_the_platform_failed_is_raised() -> None:
    """Our own fault is never dressed up as a program's exit."""
    failed = wire.Run(
        id="r1",
        state="failed",
        template="base",
        created_at=1.0,
        error=wire.ErrorBody(code="sandbox_lost", cause="gone"),
    )
    with pytest.raises(domain.SandboxLost, match="gone"):
        run_result(failed)
