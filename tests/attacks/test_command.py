"""`ringfence attack` itself: what it prints, and that its exit code cannot be green by mistake."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from ringfence.attack import command, table
from ringfence.attack.observation import Ran
from ringfence.attack.runner import Attack
from ringfence.domain.errors import BadRequest, RingfenceError
from tests.attacks.conftest import TEMPLATES

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
