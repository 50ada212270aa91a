"""The table itself: complete, readable, harmless to read, and judged by judges that can say no."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.attack import judges as j
from ringfence.attack import measures, posture, programs, table
from ringfence.attack.observation import Judge, Observation, Ran, Verdict, judge
from tests.attacks.rows import CATALOGUE, CONTAINER_ONLY, EVERYWHERE, NOT_YET, WHATEVER_THE_RUNTIME

MARK = re.compile(r"pytest\.mark\.row\(([0-9, ]+)\)")


HERE = Path(__file__).parent
GROUP_E = HERE.parent / "network" / "test_group_e.py"  # in an internet of its own, on all three runtimes


def rows_tested() -> set[int]:
    """Every row that a test of this package, or one with servers at the far end, carries."""
    return {row for file in (*HERE.glob("test_*.py"), GROUP_E) for row in marked(file)}


def test_every_row_is_tested_or_excused() -> None:
    """Each row of the groups that concern a sandbox has a test, or a reason why it has none."""
    rows = {row for group in CATALOGUE.values() for row in group}
    assert rows - rows_tested() - set(NOT_YET) - set(WHATEVER_THE_RUNTIME) == set()


def test_every_row_of_the_other_runtimes_is_tried_on_them() -> None:
    """The rows that apply to containers and gVisor are in the matrix, tried by API or in a lab, or held elsewhere."""
    by_probe = {row for probe in table.PROBES for row in probe.rows}
    by_api = marked(HERE / "test_runtimes.py") | marked(GROUP_E)
    elsewhere = set(NOT_YET) | set(WHATEVER_THE_RUNTIME)
    assert {row for group in CATALOGUE.values() for row in group} >= EVERYWHERE | CONTAINER_ONLY
    assert set() == EVERYWHERE & CONTAINER_ONLY
    assert (EVERYWHERE | CONTAINER_ONLY) - by_probe - by_api - elsewhere == set()


def marked(file: Path) -> set[int]:
    """Rows that tests of this file carry."""
    return {int(number) for found in MARK.findall(file.read_text()) for number in found.split(",")}


def test_no_row_is_both_tested_and_excused() -> None:
    """An excuse is removed when its test is written."""
    assert set(NOT_YET) & rows_tested() == set()


def test_names_are_unique_and_sentences_are_sentences() -> None:
    """A probe can be named on the command line, and says in one sentence what it tries."""
    names = [probe.name for probe in table.PROBES]
    assert sorted(set(names)) == sorted(names)
    assert [probe.name for probe in table.PROBES if not re.fullmatch(r"[A-Z].*[.?]", probe.tries)] == []


@pytest.mark.parametrize("name", programs.names())
def test_a_program_arrives_whole(name: str) -> None:
    """Each program is used, compiles by itself, and no longer imports from this package."""
    text = programs.text(name)
    compile(text, name, "exec")
    assert "ringfence.attack" not in text
    assert name in {probe.source for probe in table.PROBES} or name == "outlive"


def test_a_program_fits_into_one_request() -> None:
    """Sources are small: they travel in the body of a run."""
    assert max(len(programs.text(name)) for name in programs.names()) < 64 * 1024


GOOD: dict[str, Any] = {
    "status": {
        "Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000", "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), posture.NO_CAPABILITIES),
    },
    "no_new_privileges": 1, "uids": [1000, 1000, 1000], "gids": [1000, 1000, 1000], "groups": [], "threads": [],
    "namespaces": {kind: f"{kind}:[2]" for kind in posture.NAMESPACES},
    "host_namespaces": {kind: f"{kind}:[1]" for kind in posture.NAMESPACES},
    "beside": {kind: f"{kind}:[3]" for kind in posture.NAMESPACES},
    "uid_map": ["0", "1", "2047", "65534", "2048", "1"], "parent": 1, "cgroup": ["0::/"],
    "limits": {name: [0, 0] for name in posture.CEILINGS}, "oom_score_adj": "1000", "umask": "0o22",
    "descriptors": [], "walkable": [], "cwd": "/home/user", "environment": ["PATH"],
    "landlock": "1", "host_landlock": 7,
    "mounts": [{"at": "/", "options": "ro,nosuid,nodev", "root": "/", "type": "ext4", "source": "none"}],
}  # fmt: skip


def said(**fields: Any) -> Observation:
    """An observation of one program that exited well and said this."""
    return Observation((Ran("exited", 0, said=fields),))


def worse(change: Callable[[dict[str, Any]], None]) -> Observation:
    """The good report with one thing wrong."""
    report = copy.deepcopy(GOOD)
    change(report)
    return said(**report)


@pytest.mark.parametrize(
    "by",
    [posture.privileges, posture.namespaces, posture.limits, posture.descriptors, posture.landlock, posture.mounts],
)
def test_a_good_posture_is_accepted(by: Judge) -> None:
    """Each judge of the posture says yes to the report it wants to see."""
    assert by(said(**GOOD)).held


WRONGS: list[tuple[Judge, Callable[[dict[str, Any]], Any]]] = [
    (posture.privileges, lambda r: r["status"].update(NoNewPrivs="0")),
    (posture.privileges, lambda r: r.update(no_new_privileges=0)),
    (posture.privileges, lambda r: r["status"].update(Seccomp="0")),
    (posture.privileges, lambda r: r["status"].update(CapBnd="0000000000000001")),
    (posture.privileges, lambda r: r["status"].update(CapPrm="0000000000000080")),
    (posture.privileges, lambda r: r.update(uids=[0, 0, 0])),
    (posture.privileges, lambda r: r.update(uids=[1000, 1000, 0])),
    (posture.privileges, lambda r: r.update(groups=[27])),
    (posture.privileges, lambda r: r.update(threads=["7"])),
    *((posture.namespaces, lambda r, k=kind: r["namespaces"].update({k: f"{k}:[1]"})) for kind in posture.NAMESPACES),
    *((posture.namespaces, lambda r, k=kind: r["namespaces"].update({k: f"{k}:[3]"})) for kind in posture.NAMESPACES),
    (posture.namespaces, lambda r: r.update(host_namespaces={})),
    (posture.namespaces, lambda r: r.update(uid_map=["0", "0", "4294967295"])),
    (posture.namespaces, lambda r: r.update(parent=4711)),
    (posture.namespaces, lambda r: r.update(cgroup=["0::/user.slice"])),
    *((posture.limits, lambda r, n=name: r["limits"].update({n: [-1, -1]})) for name in posture.CEILINGS),
    (posture.limits, lambda r: r.update(oom_score_adj="0")),
    (posture.descriptors, lambda r: r.update(descriptors=["7: /"])),
    (posture.descriptors, lambda r: r.update(walkable=["7"])),
    (posture.descriptors, lambda r: r.update(cwd="/")),
    (posture.descriptors, lambda r: r.update(environment=["AWS_SECRET_ACCESS_KEY"])),
    (posture.landlock, lambda r: r.update(landlock="0")),
    (posture.mounts, lambda r: r["mounts"][0].update(options="rw,nosuid,nodev")),
    (posture.mounts, lambda r: r["mounts"][0].update(options="ro,nodev")),
    (posture.mounts, lambda r: r["mounts"][0].update(options="ro,nosuid")),
    (posture.mounts, lambda r: r["mounts"].append(dict(r["mounts"][0], at="/sys", type="sysfs"))),
    (posture.mounts, lambda r: r["mounts"].clear()),
]


@pytest.mark.parametrize(("by", "change"), WRONGS)
def test_one_wrong_thing_turns_a_posture_red(by: Judge, change: Callable[[dict[str, Any]], None]) -> None:
    """Each field that can be wrong is noticed when it is."""
    assert not by(worse(change)).held


def test_a_program_that_says_nothing_has_not_shown_anything() -> None:
    """No judge of the table that reads a report accepts silence."""
    silent = Observation((Ran("exited", 0),))
    by_fate_alone = {"fork-bomb-left", "ignored-signals", "spinning", "stopped", "deadline-dodged", "closed-streams"}
    accepted = {probe.name for probe in table.PROBES if probe.judge(silent).held}
    assert accepted - by_fate_alone - {"kill-everything"} == set()


def test_refused_calls_are_told_from_calls_that_reached_the_kernel() -> None:
    """EPERM, ENOSYS and SIGSYS are refusals; ok, EFAULT and EINVAL mean that the call was begun."""
    by = j.refused_calls()
    assert by(said(calls={"a": "EPERM", "b": "ENOSYS", "c": "SIGSYS"})).held
    assert [outcome for outcome in ("ok", "EFAULT", "EINVAL", "hung") if by(said(calls={"a": outcome})).held] == []


def test_a_search_that_tried_little_is_not_believed() -> None:
    """Finding nothing counts only when enough places were looked into."""
    assert not j.empty("found", least=10)(said(found=[], tried=3)).held
    assert not j.empty("found")(said(found=["/etc/shadow exists"], tried=30)).held


def test_equal_draws_are_noticed() -> None:
    """Two siblings that draw the same from one source turn the probe red."""
    runs = tuple(Ran("exited", 0, said={"values": {"random": str(n // 2), "urandom": str(n)}}) for n in range(4))
    verdict = j.distinct("values", 2)(Observation(runs))
    assert verdict == Verdict(held=False, seen="random: 2 different values in 4 runs")


def test_memory_past_the_limit_is_noticed() -> None:
    """A program that took and held more than its limit, and lived, turns the probe red."""
    by = j.memory_bounded(64 << 20)
    assert not by(Observation((Ran("exited", 0, said={"taken": 256 << 20}, peak_memory_bytes=256 << 20),))).held
    assert not by(Observation((Ran("exited", 0, said={"taken": 256 << 20}),))).held
    assert by(Observation((Ran("out_of_memory", said={"taken": 32 << 20}, peak_memory_bytes=64 << 20),))).held


def test_a_group_past_its_limit_is_noticed_but_not_the_pages_of_who_is_dying() -> None:
    """The kernel counts a few pages beyond a limit when it ends a group; a group that was not limited has far more."""

    def held(peak: int) -> bool:
        ran = Ran("out_of_memory", peak_memory_bytes=peak)
        return measures.held_at_most(160 << 20)(Observation((ran,))).held

    assert held(160 << 20)
    assert held((160 << 20) + 3 * 4096)
    assert not held(162 << 20)


def test_a_changed_host_or_neighbour_is_a_breach_whatever_the_program_saw() -> None:
    """The host's canaries and the neighbour's health come before the probe's own judge."""
    calm: Judge = lambda _: Verdict(held=True, seen="fine")  # noqa: E731 - a judge is a function
    runs = (Ran("exited", 0),)
    assert judge(calm, Observation(runs)).held
    assert not judge(calm, Observation(runs, host=("/etc/passwd changed",))).held
    assert not judge(calm, Observation(runs, neighbour="stopped")).held
    assert not judge(calm, Observation((Ran("refused", refused="no_capacity: busy"),))).held


def test_a_collected_file_of_the_hosts_is_noticed() -> None:
    """Collecting something that the program itself could not read turns the probe red."""
    made = dict.fromkeys(("r", "d", "p", "fifo"), "ok")
    ran = Ran("exited", 0, said={"made": made, "readable": {}}, files={"out/r": "root:x:0:0"})
    assert not measures.traps_defused(Observation((ran,))).held
