"""What counts as a difference, and what counts as its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.compare import ABSENT, Difference, Reason, agree, differences, read_reasons, reason_for
from tests.compat.page import Report, page
from tests.compat.places import FAILED, HOST, ISOLATIONS, Ending
from tests.compat.programs import Program, everything, left_out, modules
from tests.compat.results import Results

MODULE = Program("test.test_x", "")
SMALL = Program("program: small", "")


def ended(text: str, code: int = 0, how: str = "exited") -> Ending:
    """A program that wrote this."""
    return Ending(how, code if how == "exited" else None, None, text.encode())


def test_the_same_is_no_difference() -> None:
    """Equal output and equal exit."""
    assert differences(SMALL, "jail", [ended("a\n")], [ended("a\n")]) == []


def test_once_the_same_is_the_same() -> None:
    """What varies on the host by itself is not held against a sandbox."""
    assert agree([ended("a"), ended("b")], [ended("c"), ended("b")])
    assert not agree([ended("a"), ended("b")], [ended("c")])


def test_another_exit_is_a_difference() -> None:
    """Equal output with another code, or no end at all."""
    assert differences(SMALL, "jail", [ended("a")], [ended("a", 1)]) == [
        Difference(SMALL.name, "jail", "exit", "exited 0", "exited 1")
    ]
    assert differences(MODULE, "jail", [ended("")], [ended("", how="timed_out")]) == [
        Difference(MODULE.name, "jail", "exit", "exited 0", "timed_out")
    ]


def test_output_is_compared_by_its_first_different_line() -> None:
    """The reader is shown where to look; a missing line is one too."""
    new = differences(SMALL, "jail", [ended("a\nb\nc\n")], [ended("a\nx\nc\n")])
    assert new == [Difference(SMALL.name, "jail", "output", "b", "x")]
    new = differences(SMALL, "jail", [ended("a\nb\n")], [ended("a\n")])
    assert new == [Difference(SMALL.name, "jail", "output", "b", ABSENT)]


def test_a_module_is_compared_test_by_test() -> None:
    """Only the tests that ended otherwise are named; the exit code follows from them."""
    here = ended("test.test_x.T.a ok\ntest.test_x.T.b ok\ntest.test_x.T.c skipped\n")
    there = ended("test.test_x.T.a ok\ntest.test_x.T.b failed\n", 1)
    assert differences(MODULE, "gvisor", [here], [there]) == [
        Difference(MODULE.name, "gvisor", "test.test_x.T.b", "ok", "failed"),
        Difference(MODULE.name, "gvisor", "test.test_x.T.c", "skipped", ABSENT),
    ]


def test_a_failure_of_the_platform_is_never_explained_nor_hidden(tmp_path: Path) -> None:
    """Not by a reason for the program's exit, not by a second attempt that went well; the next run tries again."""
    failed, ok = ended("", how=f"{FAILED}unknown_template: none"), ended("test.test_x.T.a ok\n")
    new = differences(MODULE, "jail", [ok], [failed, ok])
    assert new == [Difference(MODULE.name, "jail", "platform", "ran", failed.how)]
    anything = Reason("All of it", "Because.", ISOLATIONS, ("test.test_x*",))
    assert reason_for(new[0], [anything]) is None
    path = tmp_path / "results.jsonl"
    Results(path, {"compat": "root"}).add(MODULE, "jail", failed)
    assert Results(path, {"compat": "root"}).of(MODULE, "jail") == []


def test_a_test_that_varies_is_no_difference() -> None:
    """A test that failed in one attempt and not in another, on either side."""
    ok, failed = ended("test.test_x.T.a ok\n"), ended("test.test_x.T.a failed\n", 1)
    other = ended("test.test_x.T.a ok\ntest.test_x.T.b ok\n")
    assert differences(MODULE, "jail", [ok], [failed, ok]) == []
    assert differences(MODULE, "jail", [ok, failed], [failed]) == []
    assert differences(MODULE, "jail", [ok, other], [failed, other]) == []


@pytest.mark.parametrize(
    ("pattern", "place", "explained"),
    [
        ("test.test_x.T.*", "jail", True),
        ("test.test_x.T.a", "jail", True),
        ("test.test_x.T.*", "gvisor", False),
        ("test.test_y.*", "jail", False),
    ],
)
def test_a_reason_speaks_of_its_patterns_in_its_places(pattern: str, place: str, explained: bool) -> None:
    """Both must fit."""
    reason = Reason("Why", "Because.", ("jail", "container"), (pattern,))
    difference = Difference(MODULE.name, place, "test.test_x.T.a", "ok", "failed")
    assert (reason_for(difference, [reason]) is reason) == explained


def test_the_committed_reasons_are_whole() -> None:
    """Each has a title of its own, words, known places and patterns that name a program."""
    reasons = read_reasons()
    assert len({reason.title for reason in reasons}) == len(reasons)
    for reason in reasons:
        assert reason.why.strip()
        assert set(reason.places) <= set(ISOLATIONS)
        assert reason.patterns
        assert all(pattern.startswith(("test.test_", "program: ", "row: ")) for pattern in reason.patterns)


def test_there_are_enough_programs() -> None:
    """500 at least, each of its own name, none both chosen and left out."""
    names = [program.name for program in everything()]
    assert len(names) >= 500
    assert len(set(names)) == len(names)
    assert not {name for name, _ in left_out()} & set(modules())


def test_results_survive_an_interruption(tmp_path: Path) -> None:
    """What was written is there again; a changed program or root has no results yet."""
    path, odd = tmp_path / "results.jsonl", Ending("exited", 0, None, b"\xff\0\n", b"err")
    Results(path, {"compat": "root"}).add(SMALL, HOST, odd)
    again = Results(path, {"compat": "root"})
    assert again.of(SMALL, HOST) == [odd]
    assert again.of(Program(SMALL.name, "changed"), HOST) == []
    assert Results(path, {"compat": "another"}).of(SMALL, HOST) == []
    again.forget(HOST, {"another program"})
    assert again.of(SMALL, HOST) == [odd]
    again.forget(HOST)
    assert Results(path, {"compat": "root"}).of(SMALL, HOST) == []


def test_the_page_names_every_difference(tmp_path: Path) -> None:
    """Under its reason, or under none; programs the host could not finish are not counted."""
    results = Results(tmp_path / "results.jsonl", {"compat": "root"})
    slow = Program("test.test_slow", "")
    for place in (HOST, *ISOLATIONS):
        results.add(MODULE, place, ended(f"test.test_x.T.a {'skipped' if place == 'gvisor' else 'ok'}\n"))
        results.add(SMALL, place, ended("words" if place != "jail" else "other"))
        results.add(slow, place, ended("", how="timed_out"))
    reasons = [
        Reason("No such file", "It is not there.", ("gvisor",), ("test.test_x.T.a",)),
        Reason("Long gone", "It was so once.", ISOLATIONS, ("test.test_y.*",)),
    ]
    report = Report.of([MODULE, SMALL, slow], results, reasons)
    assert [d.key for d in report.unexplained] == ["program: small: output"]
    assert report.unused == ["Long gone"]
    assert report.everywhere == 0
    text = page(report)
    assert "### No such file\n\nIt is not there. (gvisor 1)\n\n- `test.test_x` on gvisor: T.a (ok → skipped)" in text
    assert "### Without a reason" in text
    assert "| programs compared | 2 | 2 | 2 |" in text
