"""Amounts, pairs and exit codes are read and given as `ringfence --help` says."""

from __future__ import annotations

import click
import pytest

from ringfence import wire
from ringfence.cli import codes
from ringfence.cli.copying import Place, place, plain
from ringfence.cli.options import limits, pairs, seconds
from ringfence.cli.output import size, span
from ringfence.cli.shell import Escape
from ringfence.domain.errors import BadRequest, NotFound, Overloaded
from ringfence.domain.process import How


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("250ms", 0.25)])
def test_lengths_of_time(text: str, value: float) -> None:
    """A time is written as people write it."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "soon", "1d", "1 s s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    """A time that cannot be read is not guessed."""
    with pytest.raises(click.BadParameter):
        seconds(text)


def test_limits_take_units_and_short_names() -> None:
    """`memory=64MiB` and `memory_bytes=67108864` are one limit; times take time units."""
    assert limits(["memory=64MiB", "wall=2m", "cpus=0.5", "processes=8"]) == {
        "memory_bytes": 64 * 1024 * 1024, "wall_seconds": 120, "cpus": 0.5, "processes": 8,
    }  # fmt: skip
    assert limits(["memory_bytes=67108864"]) == {"memory_bytes": 67108864}


@pytest.mark.parametrize("entry", ["memry=1", "memory", "memory=lots", "=1", "memory=-1"])
def test_a_limit_that_is_not_one_is_refused(entry: str) -> None:
    """A misspelt limit is an error here, not a missing wall there."""
    with pytest.raises(click.UsageError):
        limits([entry])


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    """A value may hold an equals sign; an empty name is no pair."""
    assert pairs(["a=b=c", "d="], "--env") == {"a": "b=c", "d": ""}
    with pytest.raises(click.UsageError):
        pairs(["nothing"], "--env")


@pytest.mark.parametrize(
    ("exit_", "code"),
    [
        (wire.Exit(how=How.EXITED, code=0), 0),
        (wire.Exit(how=How.EXITED, code=77), 77),
        (wire.Exit(how=How.SIGNALLED, signal=11), 139),
        (wire.Exit(how=How.OUTPUT_CAPPED), 121),
        (wire.Exit(how=How.DISK_FULL), 122),
        (wire.Exit(how=How.POLICY_KILLED), 123),
        (wire.Exit(how=How.TIMED_OUT), 124),
        (wire.Exit(how=How.OUT_OF_MEMORY), 137),
        (wire.Exit(how=How.STOPPED), 143),
    ],
)
def test_every_fate_has_its_documented_code(exit_: wire.Exit, code: int) -> None:
    """A script can tell the fates apart."""
    assert codes.for_exit(exit_) == code


def test_every_fate_and_both_kinds_of_error_are_in_the_help() -> None:
    """No exit code is given that `ringfence --help` does not explain."""
    explained = {first for first, _ in codes.MEANING}
    assert {str(code) for code in codes.BY_HOW.values()} <= explained
    assert set(codes.BY_HOW) == set(How) - {How.EXITED, How.SIGNALLED}
    assert {str(codes.FAULT), str(codes.REFUSED), str(codes.USAGE), str(codes.INTERRUPTED)} <= explained


def test_our_fault_and_a_refusal_differ() -> None:
    """125 is ours, 126 is the caller's."""
    assert codes.for_error(Overloaded("full")) == 125
    assert codes.for_error(NotFound("none")) == 126


def test_a_place_in_a_sandbox_is_known_by_the_form_of_its_id() -> None:
    """A local file with a colon in its name is still a local file."""
    identity = "s" + "a" * 26
    assert place(f"{identity}:/tmp/a:b") == Place(identity, "/tmp/a:b")
    assert place("s3:notes.txt") == Place(None, "s3:notes.txt")
    assert place("-") == Place(None, "-")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
def test_a_name_from_a_sandbox_is_one_plain_step_or_refused(name: str) -> None:
    """A hostile listing cannot lead a copy elsewhere."""
    with pytest.raises(BadRequest):
        plain(name)


@pytest.mark.parametrize(
    ("keys", "leaves"),
    [([b"~."], True), ([b"a~."], False), ([b"ls\r", b"~", b"."], True), ([b"\r~~."], False), ([b"\r~x."], False)],
)
def test_the_sign_to_leave_counts_only_at_the_start_of_a_line(keys: list[bytes], leaves: bool) -> None:
    """`~.` in the middle of a line is typed, not obeyed."""
    sign = Escape()
    found = [sign.leaves(key) for key in keys]
    assert any(found) is leaves


def test_numbers_for_people() -> None:
    """Sizes and times are shown in their own unit."""
    assert [size(n) for n in (0, 512, 2048, 5 * 1024**2, 3 * 1024**3)] == [
        "0 B",
        "512 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
    assert [span(n) for n in (None, 0.0023, 2, 150, 8000)] == ["-", "2 ms", "2.0 s", "2 min 30 s", "2 h 13 min"]
