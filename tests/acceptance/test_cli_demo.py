"""`ringfence demo`, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ringfence.cli.demo.hostile import deeds
from ringfence.cli.demo.job import ROWS, orders_csv
from tests.support.served import TEMPLATES, free_port


def test_the_demo_does_its_job_contains_every_attack_and_stops() -> None:
    """A chart that is a picture, a table without a cross, an exit code of 0, and no server left."""
    with tempfile.TemporaryDirectory(prefix="ringfence-demo-") as state:
        Path(state).chmod(0o755)
        chart = Path(state) / "out" / "chart.png"
        words = ["demo", "--no-stay", "--json", "--state", state, "--port", str(free_port()), "--out", str(chart)]
        done = subprocess.run(
            [sys.executable, "-m", "ringfence", *words],
            env={**os.environ, "RINGFENCE_TEMPLATES": TEMPLATES},
            capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, done.stderr + done.stdout
        assert chart.read_bytes().startswith(b"\x89PNG")
        assert told[0]["job"]["rows"] == ROWS
        assert [row["title"] for row in told[1:-1]] == [deed.title for deed in deeds("", "", 0)]
        assert all(row["contained"] for row in told[1:-1])
        assert told[-1]["running"] is False
        assert not (Path(state) / "serve.json").exists()


def test_the_data_is_the_same_every_time_and_large_enough_to_be_real() -> None:
    """A demo that differs from run to run cannot be compared."""
    first = orders_csv(1000)
    assert first == orders_csv(1000)
    assert first.count(b"\n") == 1001
    assert ROWS >= 100_000
