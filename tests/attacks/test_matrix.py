"""The whole table on every way to isolate, and the committed document of what held where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ringfence.attack import command, differences, matrix, table
from ringfence.attack.observation import Observation, Ran, Verdict
from ringfence.attack.own_server import OwnServer
from ringfence.attack.runner import BREACHED, DIFFERS, HELD, Result, Row
from ringfence.client import Client
from tests.attacks.conftest import need
from tests.support.canaries import Canaries

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "attack-matrix.md"
RUNTIMES = ("jail", "container", "gvisor")


@pytest.fixture(scope="module")
def committed() -> dict[tuple[str, str], str]:
    """(probe, runtime) -> verdict, as the document has it."""
    return matrix.compared(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def rows(server: OwnServer, client: Client, canaries: Canaries) -> list[Row]:
    """Every probe of the table, on all runtimes side by side; the server's ledger is even afterwards."""
    for runtime in RUNTIMES:
        need(runtime)
    return command.attacked(client, matrix.Columns(RUNTIMES, {}), table.PROBES, lambda _: None, canaries.tokens)


@pytest.mark.timeout(400)
def test_every_probe_is_held_on_every_runtime(rows: list[Row]) -> None:
    """No fence of any runtime gives way; what differs was judged by what must hold there instead."""
    assert [f"{one.name} on {one.runtime}: {one.seen}" for row in rows for one in row if not one.held] == []
    assert [row[0].name for row in rows] == [probe.name for probe in table.PROBES]
    assert {tuple(one.runtime for one in row) for row in rows} == {RUNTIMES}


@pytest.mark.timeout(400)
def test_the_committed_matrix_is_what_happens(rows: list[Row], committed: dict[tuple[str, str], str]) -> None:
    """Names, verdicts and reasons of docs/attack-matrix.md are those of the attacks above, to the letter."""
    now = {(one.name, one.runtime): one.word for row in rows for one in row}
    changed = {cell: (committed.get(cell), now.get(cell)) for cell in committed.keys() | now.keys()}
    assert {cell: words for cell, words in changed.items() if words[0] != words[1]} == {}
    columns = matrix.Columns(RUNTIMES, {})
    assert matrix.markdown(columns, rows, "docs/attack-matrix.md") == DOCUMENT.read_text()


def test_the_committed_matrix_has_every_probe_and_runtime(committed: dict[tuple[str, str], str]) -> None:
    """Also without root and tools it can be seen whether somebody forgot to generate it again."""
    assert set(committed) == {(probe.name, runtime) for probe in table.PROBES for runtime in RUNTIMES}
    assert set(committed.values()) == {HELD, DIFFERS}


def test_every_difference_has_a_reason_and_a_probe(committed: dict[tuple[str, str], str]) -> None:
    """A cell that differs is one a reason is written for, in a sentence, and the other way round."""
    written = {(name, runtime) for runtime, found in differences.DIFFERENCES.items() for name in found}
    assert {cell for cell, word in committed.items() if word == DIFFERS} == written
    reasons = [one.reason for found in differences.DIFFERENCES.values() for one in found.values()]
    assert [reason for reason in reasons if not re.fullmatch(r"[A-Zg].*\.", reason)] == []
    assert all(reason in DOCUMENT.read_text() for reason in reasons)


def silent(**fields: object) -> Observation:
    """An observation of one program that said nothing."""
    return Observation((Ran("exited", 0),), **fields)  # type: ignore[arg-type]


def test_no_difference_accepts_silence() -> None:
    """A program that reports nothing has not shown that anything held, on any runtime."""
    accepted = {
        (name, runtime)
        for runtime, found in differences.DIFFERENCES.items()
        for name, difference in found.items()
        if difference.judge(silent()).held
    }
    assert accepted == set()


def test_a_difference_excuses_neither_host_nor_neighbour() -> None:
    """A touched canary or a hurt neighbour is a breach, whatever reason there is for another answer."""
    probe = table.named("landlock")
    good = Ran("exited", 0, said={"landlock": "not usable: ENOSYS", "host_landlock": 7})
    assert differences.verdict(probe, "gvisor", Observation((good,))).differs
    assert not differences.verdict(probe, "container", Observation((good,))).held
    for looked in ({"host": ("/etc/passwd changed",)}, {"neighbour": "stopped"}):
        assert not differences.verdict(probe, "gvisor", Observation((good,), **looked)).held  # type: ignore[arg-type]


def test_a_difference_that_is_gone_shows_as_held() -> None:
    """When a runtime learns to answer as the others do, its cell changes, and the document must be made again."""
    probe = table.named("landlock")
    usual = Ran("exited", 0, said={"landlock": "1", "host_landlock": 7})
    assert differences.verdict(probe, "gvisor", Observation((usual,))) == Verdict(
        held=True, seen="1 Landlock domain holds the program"
    )


def result(name: str, runtime: str, *, held: bool = True, differs: str = "") -> Result:
    """One cell."""
    return Result(name, (1, 2), "Escape", "Try.", runtime, held, "seen", 1.0, differs)


def test_the_document_shows_breaches_and_absent_runtimes() -> None:
    """A breach is a word of its own, a missing runtime a column with a reason, never an empty cell."""
    rows = [(result("a", "jail"), result("a", "gvisor", differs="It is so.")), (result("b", "jail", held=False),) * 2]
    text = matrix.markdown(matrix.Columns(("jail", "gvisor"), {"container": "runc is not installed"}), rows, "x.md")
    cells = matrix.compared(text)
    assert cells["a", "gvisor"] == DIFFERS
    assert cells["b", "jail"] == BREACHED
    assert cells["a", "container"] == "absent"
    assert "runc is not installed" in text
    assert "It is so." in text
