"""One very short bench of everything, and what the unsandboxed yardstick refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ringfence.bench.comparison import unfenced
from ringfence.bench.exchange import Connection
from ringfence.bench.latency import Pace
from ringfence.bench.measure import bench
from ringfence.bench.plan import Plan
from ringfence.bench.programs import PLAIN, PROGRAMS, Command, Outside
from ringfence.bench.unfenced import inherited
from ringfence.domain.errors import PlatformFault
from tests.support.served import TEMPLATES

TINY = Plan(
    oneshot=Pace(2, 5), numpy=Pace(1, 5), pandas=Pace(1, 5), interactive=Pace(1, 5), runtimes=Pace(1, 5),
    egress=Pace(2, 5), ingress=Pace(5, 5), e2b={"jail": 1}, edge_seconds={2: 1.0}, published=3,
    load_seconds={1: 0.5, 8: 1.0}, yardstick_seconds=0.3, density=3, seconds=300, calm_part=0.05,
)  # fmt: skip
built = pytest.mark.skipif(
    os.geteuid() != 0 or not all((Path(TEMPLATES) / f"index/{name}.json").exists() for name in ("base", "python")),
    reason="needs root and the built-in templates",
)


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, Command]:
    """The bench's programs, run by the host's python3."""
    outside = Outside({"base": tmp_path, "python": tmp_path})
    return {name: outside.command(program) for name, program in PROGRAMS.items()}


@built
@pytest.mark.timeout(400)
def test_a_short_bench_measures_everything_and_leaves_nothing() -> None:
    """Every measure gives figures, nothing fails, the picture is one, and the machine is as before."""
    report, picture = bench(TINY, Path(TEMPLATES), plot=True, say=lambda _words: None)
    found = json.loads(msgspec.json.encode(report))
    assert (found["failed"], found["left_out"], found["left"]) == ({}, [], [])
    assert (found["failures"], found["density_n"], found["execs_answered"]) == (0, 3, 3)
    assert found["walls"]["missing"] == []
    for figure in ("oneshot_ratio", "oneshot_numpy_ratio", "runs_per_second_8", "idle_charged_mib"):
        assert found[figure] > 0
    assert (found["ingress"]["wrong_answers"], found["ingress"]["strangers_let_in"]) == (0, 0)
    assert found["ingress"]["loads"]["ringfence"]["2"]["runs"] > 0
    assert found["egress"]["connection_ms"]["gate"]["p50"] > 0
    assert set(found["throughput"]["ringfence"]["8"]["cpu_ms_per_run"]) >= {"api", "node", "sandboxes"}
    steps = found["e2b"]["isolations"]["jail"]
    assert all(steps["ringfence"].values())
    assert "e2b" in found["e2b"]["absent"] or all(steps["e2b"].values())
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_the_yardstick_runs_the_benchs_programs_only(tmp_path: Path, commands: dict[str, Command]) -> None:
    """It isolates nothing, so whoever gets at it still cannot run code of their own."""
    tmp_path.chmod(0o755)
    with unfenced(tmp_path / "state", commands) as target, Connection(target) as connection:
        assert connection.ask("POST", "/v1/runs", {"code": PLAIN.code})["stdout"] == "1\n"
        refused = connection.exchange(target.request("POST", "/v1/runs", {"code": "print(2)"}))
        stranger = connection.exchange(target._replace(key="rf_x").request("POST", "/v1/runs", {"code": PLAIN.code}))
    assert (refused.status, b"not_a_measured_program" in refused.body) == (403, True)
    assert stranger.status == 401


def test_the_yardstick_listens_on_loopback_only() -> None:
    """A socket that others could reach is refused."""
    with socket.create_server(("0.0.0.0", 0)) as listener, pytest.raises(PlatformFault, match="loopback only"):
        inherited(os.dup(listener.fileno()))


def test_the_yardstick_is_nobodys_to_start() -> None:
    """Without the bench's descriptors there is no such server."""
    done = subprocess.run([sys.executable, "-m", "ringfence.bench.unfenced"], capture_output=True, check=False)
    assert (done.returncode, b"required" in done.stderr) == (2, True)
