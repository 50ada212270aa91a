"""How programs are started outside of sandboxes, and in other people's."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.bench import groups, peers, processes
from ringfence.bench.calm import Gate
from ringfence.bench.latency import Pace, Row, alternate
from ringfence.bench.peers import PEERS, Peer, Place, look, oci_config
from ringfence.bench.programs import PLAIN, Command, FailedRun, Outside, timed
from ringfence.domain.errors import PlatformFault
from ringfence.domain.limits import Limits


def shell(text: str) -> Command:
    """A shell line."""
    return Command(("/bin/sh", "-c", text), {"PATH": "/usr/bin:/bin"})


def test_a_program_is_timed_to_its_end() -> None:
    """What it prints is read, and a time comes back."""
    assert timed(shell("echo 1"), b"1\n") > 0


@pytest.mark.parametrize("text", ["echo 2", "echo 1; exit 3", "true"])
def test_a_program_that_did_something_else_is_not_measured(text: str) -> None:
    """Wrong output or a bad exit is a failure, however quick it was."""
    with pytest.raises(FailedRun, match="/bin/sh ended with"):
        timed(shell(text), b"1\n")


def test_the_host_runs_what_a_template_cannot(tmp_path: Path) -> None:
    """Without a binary of the template's that works here, it is the host's python3, and it says so."""
    outside = Outside({"base": tmp_path, "python": tmp_path})
    assert (outside.own, outside.version[:8]) == (False, "Python 3")
    assert timed(outside.command(PLAIN), PLAIN.printed) > 0


def test_without_any_python_there_is_no_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything was started."""
    monkeypatch.setattr("ringfence.bench.programs.HOST_PYTHON", tmp_path / "python3")
    with pytest.raises(PlatformFault, match="no python3"):
        Outside({"base": tmp_path})


def words(*given: str) -> Callable[[Place, str, object], list[str]]:
    """A peer's command that does not look at what it should run."""
    return lambda _place, binary, _program: [binary, *given]


def test_peers_are_measured_absent_or_say_why_not(tmp_path: Path) -> None:
    """A peer that is not there, and one that does not work, cost nothing but their rows."""
    found = look(
        Place({"base": tmp_path}, tmp_path),
        [PLAIN],
        (
            Peer("echo", words("1"), "nothing"),
            Peer("ls", words("/no/such/place"), "nothing"),
            Peer("no-such-sandbox", words(), "nothing"),
        ),
    )
    echo, ls, none = (each.told() for each in found)
    assert (echo["state"], echo["encloses"], none["state"]) == ("measured", "nothing", "absent")
    assert ls["state"].startswith("does not run here: ")
    assert "No such file" in ls["state"]


def test_every_peer_says_what_it_encloses() -> None:
    """A figure beside ours is only fair with what stands around the program."""
    assert all(peer.encloses for peer in PEERS)


def test_an_oci_bundle_has_our_limits() -> None:
    """Others are measured with the limits our sandboxes have."""
    config = oci_config("/root", "print(1)", "/group")
    resources, limits = config["linux"]["resources"], Limits()
    assert resources["memory"]["limit"] == limits.memory_bytes
    assert resources["pids"]["limit"] == limits.processes
    assert config["root"] == {"path": "/root", "readonly": True}
    assert config["process"]["args"][-1] == "print(1)"


def test_rounds_alternate_and_survive_failures() -> None:
    """Every row takes part in every round; a failure costs its own sample."""
    calls = {"good": 0, "bad": 0}

    def take(name: str) -> float:
        calls[name] += 1
        if name == "bad" and calls[name] > 1:
            raise FailedRun("broke")
        return 1.0

    rows = [Row(name, lambda name=name: take(name)) for name in calls]  # type: ignore[misc]
    found = alternate(rows, Pace(5, 60.0), Gate(0.0), random.Random(1))
    assert (calls, found.failures) == ({"good": 6, "bad": 6}, {"bad": 5})
    assert found.samples == [{"good": 1.0}] * 5
    assert found.reasons[0] == "bad: broke"


def test_a_dear_peer_takes_part_less_often() -> None:
    """A peer that takes long does not use up the time of the others."""
    rows = [Row("quick", lambda: 1.0), Row("dear", lambda: 130.0, peer=True)]
    found = alternate(rows, Pace(6, 60.0), Gate(0.0), random.Random(1))
    assert [len(each) for each in found.samples] == [2, 1, 2, 1, 2, 1]


def test_a_gate_without_time_does_not_wait() -> None:
    """When the time for waiting is used up, samples are taken and counted as forced."""
    gate = Gate(0.0)
    for _ in range(5):
        gate.wait()
    assert gate.calm + gate.forced == 5


def test_a_process_without_groups_of_ours_has_none() -> None:
    """Where the server has no control groups, every figure of them is absent rather than wrong."""
    found = groups.Groups.of([1])
    assert (found.charged_bytes(), found.cpu_seconds(), found.sandboxes(), found.exist()) == (None, None, 0, False)


def test_the_machine_can_be_read() -> None:
    """Processor time grows, memory is there, and this process has a command line."""
    assert processes.machine_cpu_seconds() > 0
    assert sum(processes.machine_cost().values()) > 0
    assert "python" in processes.command_line(os.getpid())


def test_clearing_what_is_not_there_is_harmless(tmp_path: Path) -> None:
    """Nothing was left, so nothing is deleted."""
    peers.clear(Place({}, tmp_path))
