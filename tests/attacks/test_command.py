"""`ringfence attack` itself: what it prints, and that its exit code cannot be green by mistake."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ringfence import wire
from ringfence.attack import command, matrix, table
from ringfence.attack.observation import Ran
from ringfence.attack.runner import Attack, Result
from ringfence.domain.errors import BadRequest, RingfenceError
from tests.attacks.conftest import TEMPLATES, need

needs_template = pytest.mark.skipif(not (TEMPLATES / "index" / "base.json").exists(), reason="no built template")


class Beside:
    """A neighbour that answers as it is told."""

    namespaces: Mapping[str, str] = {}

    def __init__(self, trouble: str) -> None:
        self._trouble = trouble

    def trouble(self) -> str:
        """What is wrong with it."""
        return self._trouble

    def close(self) -> None:
        """Nothing to let go."""


class Scripted:
    """A target whose every run is the same, for judging the runner."""

    runtime = "scripted"
    forks = True

    def __init__(self, ran: Ran, trouble: str = "") -> None:
        self._ran, self._trouble = ran, trouble

    def run(self, probe: table.Probe, facts: Mapping[str, Any]) -> Ran:
        """The same answer to everything."""
        return self._ran

    def neighbour(self, secret: str) -> Beside:
        """The scripted neighbour."""
        return Beside(self._trouble)


def test_the_list_names_every_probe(capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON per probe, with its rows, class, sentence and layers; nothing is run."""
    assert command.main({"list_": True, "json": True}) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [probe.name for probe in table.PROBES]
    assert all(row["tries"] and row["class"] and row["rows"] for row in rows)


def test_a_name_that_is_no_probe_is_refused() -> None:
    """A misspelt probe is not an attack that held."""
    with pytest.raises(BadRequest, match="nosuch"):
        command.main({"names": ["nosuch"]})


def test_a_server_elsewhere_is_not_attacked() -> None:
    """Canaries lie on this machine: another machine's sandboxes would be judged by the wrong host."""
    with pytest.raises(BadRequest, match="this machine"):
        command.main({"names": ["landlock"], "url": "http://192.0.2.1:8642"})


def test_a_server_that_does_not_answer_is_no_success() -> None:
    """Nothing tried is not everything held."""
    with pytest.raises(RingfenceError):
        command.main({"names": ["landlock"], "url": "http://127.0.0.1:1"})


@needs_template
def test_it_starts_a_server_of_its_own_and_reports_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server it starts one, runs what was asked for, and answers with one object and exit code 0."""
    assert command.main({"names": ["landlock", "devices"], "json": True}) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held"] is True
    assert [(row["name"], row["runtime"], row["held"]) for row in found["probes"]] == [
        ("landlock", "jail", True),
        ("devices", "jail", True),
    ]


OFFERED = [
    wire.Runtime(name="jail", available=True, capabilities={"users": ["root", "user"]}),
    wire.Runtime(name="container", available=True, capabilities={"users": ["root", "user"]}),
    wire.Runtime(name="gvisor", available=False, reason="runsc is not installed"),
]


def test_all_means_every_runtime_that_is_there_and_names_the_others() -> None:
    """A runtime that is absent is a column with its reason; it is not left out in silence."""
    columns = command.columns(OFFERED, {"all_": True})
    assert columns.runtimes == ("jail", "container")
    assert columns.absent == {"gvisor": "runsc is not installed"}


def test_an_absent_runtime_cannot_be_asked_for() -> None:
    """Attacking what is not there is no success, and the reason is told; so is an unknown name."""
    with pytest.raises(BadRequest, match="runsc is not installed"):
        command.columns(OFFERED, {"isolation": "gvisor"})
    with pytest.raises(BadRequest, match="no such runtime"):
        command.columns(OFFERED, {"isolation": "chroot"})


def test_what_a_runtime_has_not_is_said_and_not_tried() -> None:
    """Probes that run as root, or under a policy, where there is neither: skipped by name, each with what it wants."""
    bare = [wire.Runtime(name="jail", available=True, capabilities={"users": ["user"], "offline": "it needs root"})]
    names = ["network", "network-root", "egress-floor", "egress-wire-root"]
    probes, skipped = command.applicable(bare, matrix.Columns(("jail",), {}), [table.named(name) for name in names])
    assert [probe.name for probe in probes] == ["network"]
    assert set(skipped) == set(names[1:])
    assert skipped["egress-floor"] == "a network (it needs root)"


def test_auto_is_the_first_runtime() -> None:
    """Without a word the runtime is attacked that a request without a word would get."""
    assert command.columns(OFFERED, {}).runtimes == ("jail",)


def test_all_and_one_cannot_both_be_meant() -> None:
    """Contradicting options are refused before anything is started."""
    with pytest.raises(BadRequest, match="choose"):
        command.main({"all_": True, "isolation": "jail"})


@needs_template
def test_all_attacks_every_runtime_side_by_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One entry for each probe and runtime in JSON, and a document that names every cell."""
    for runtime in ("container", "gvisor"):
        need(runtime)
    saved = tmp_path / "matrix.md"
    assert command.main({"names": ["landlock", "devices"], "all_": True, "json": True, "save": str(saved)}) == 0
    found = json.loads(capsys.readouterr().out)
    runtimes = ("jail", "container", "gvisor")
    cells = [(row["name"], row["runtime"]) for row in found["probes"]]
    assert cells == [(name, runtime) for name in ("landlock", "devices") for runtime in runtimes]
    assert all({"name", "class", "runtime", "held", "seen"} <= set(row) for row in found["probes"])
    assert set(matrix.compared(saved.read_text())) == set(cells)


def test_the_table_on_a_screen_shows_each_runtime_and_what_broke(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a probe with a word for each runtime; below a breach, what was seen, in printable characters."""
    tell = command.printer(matrix.Columns(("jail", "gvisor"), {}), command.painter(colour=False))
    common = {"rows": (1,), "klass": "Escape", "tries": "Try.", "seconds": 0.1}
    tell((
        Result("a", runtime="jail", held=True, seen="fine", **common),
        Result("a", runtime="gvisor", held=True, seen="fine", differs="So.", **common),
    ))  # fmt: skip
    tell((
        Result("b", runtime="jail", held=False, seen="\x1b[31mshadow", **common),
        Result("b", runtime="gvisor", held=True, seen="fine", **common),
    ))  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["jail", "gvisor", "class", "probe"]
    assert lines[1].split() == ["held", "differs", "Escape", "a"]
    assert lines[2].split() == ["BREACH", "held", "Escape", "b"]
    assert lines[3].strip() == "jail: ?[31mshadow"


@pytest.mark.parametrize(
    "target",
    [
        Scripted(Ran("exited", 0)),
        Scripted(Ran("refused", refused="no_capacity: none")),
        Scripted(Ran("exited", 0, said={"found": ["/dev/mem"], "tried": 41})),
        Scripted(Ran("exited", 0, said={"found": [], "tried": 41}), "stopped"),
    ],
)
def test_nothing_but_a_clean_report_counts_as_held(target: Scripted) -> None:
    """Silence, a refusal, a finding and a hurt neighbour are all breaches."""
    with Attack(target) as attack:
        assert not attack.carry_out(table.named("devices")).held


def test_a_clean_report_counts_as_held() -> None:
    """The same probe with a clean report and a healthy neighbour holds."""
    with Attack(Scripted(Ran("exited", 0, said={"found": [], "tried": 41}))) as attack:
        assert attack.carry_out(table.named("devices")).held


def test_a_touched_canary_is_a_breach_whatever_the_program_says() -> None:
    """Changing a planted file on the host turns the next probe red."""
    with Attack(Scripted(Ran("exited", 0, said={"found": [], "tried": 41}))) as attack:
        (attack.host.folder / "open.txt").write_text("changed")
        result = attack.carry_out(table.named("devices"))
    assert not result.held
    assert "open.txt changed" in result.seen


def test_a_reached_listener_is_a_breach_whatever_the_program_says() -> None:
    """Somebody who connects to a planted socket of the host is noticed."""
    with Attack(Scripted(Ran("exited", 0, said={"found": [], "tried": 41}))) as attack:
        caller = socket.create_connection(("127.0.0.1", attack.host.listeners.ports[0]), 5)
        result = attack.carry_out(table.named("devices"))
        caller.close()
    assert not result.held
