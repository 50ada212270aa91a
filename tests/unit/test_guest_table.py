"""The machine that executes a table of system calls does exactly what the plain loop does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringfence.guest import syscalls as sc
from ringfence.guest.table import CODE, Machine, Table

ENGINES = [Machine(), None]
NAMES = ["machine", "plain loop"]
both = pytest.mark.parametrize("engine", ENGINES, ids=NAMES)


@both
def test_every_call_is_made_in_order(engine: Machine | None, tmp_path: Path) -> None:
    """A table that succeeds reports as many calls as it holds, and their effects are there."""
    target = tmp_path / "made"
    calls = [sc.call("mkdir", str(target).encode(), 0o700), sc.call("chmod", str(target).encode(), 0o711)]
    assert Table(engine, calls).execute() == 2
    assert target.stat().st_mode & 0o777 == 0o711


@both
def test_the_first_error_stops_the_table_and_is_named(engine: Machine | None, tmp_path: Path) -> None:
    """What comes after a failed call is not made, and the failure says which call and why."""
    after = tmp_path / "after"
    calls = [
        sc.call("umask", 0o022),
        sc.call("mkdir", str(tmp_path).encode(), 0o700, what="make the directory again"),
        sc.call("mkdir", str(after).encode(), 0o700),
    ]
    table = Table(engine, calls)
    assert table.execute() == 1
    assert table.failure(1) == "make the directory again: File exists"
    assert not after.exists()


@both
def test_a_result_that_is_not_the_expected_one_is_a_failure(engine: Machine | None) -> None:
    """A call that succeeds with a wrong result, as a descriptor that is not the one promised, stops the table."""
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    table = Table(engine, [sc.call("open", b"/dev/null", os.O_RDONLY, 0, what="open", expect=spare + 1)])
    try:
        assert table.execute() == 0
        assert table.failure(0) == f"open: gave {spare} instead of {spare + 1}"
    finally:
        os.close(spare)


@both
def test_all_six_arguments_arrive(engine: Machine | None) -> None:
    """A call with a value in every register gets each of them."""
    prepared = sc.call("prlimit64", 0, 7, 0, sc.buffer(bytes(16)))
    assert Table(engine, [prepared]).execute() == 1
    held = prepared.keeps[0]
    assert int.from_bytes(bytes(held)[:8], "little") > 0  # type: ignore[call-overload]


def test_the_machine_is_the_code_its_docstring_describes() -> None:
    """88 bytes, one syscall instruction, and no memory written but the result of a failure."""
    assert len(CODE) == 88
    assert CODE.count(b"\x0f\x05") == 1


def test_the_machine_s_page_cannot_be_written() -> None:
    """Once made, the code is executable and no longer writable."""
    machine = Machine()
    lines = Path("/proc/self/maps").read_text().splitlines()
    modes = {line.split()[1] for line in lines if "x" in line.split()[1]}
    assert all("w" not in mode for mode in modes), machine
