"""Every example runs as its reader would run it, against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.served import served

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "run_script.py": ["printed: 10 words", "collected: question", "endless: timed_out", "greedy: out_of_memory not ok"],
    "stream_output.py": ["stdout: 3", "stderr: lift-off", "ended: exited", "seen enough of run r"],
    "session.py": ["shell: 2 lines", "watched: remove", "process said: ['HELLO', 'GOODBYE']", "stopped: stopped"],
    "background_server_tunnel.py": ["<h1>served from inside</h1>"],
    "ingress_publish.py": [
        "a stranger: refused with 404",
        "its owner: <h1>served from inside</h1>",
        "a guest: <h1>served from inside</h1>",
        "a guest, revoked: refused with 404",
        "everybody: <h1>served from inside</h1>",
    ],
    "many_runs.py": ["50 exited 0", "25 exited 3", "25 signalled None"],
}


@pytest.mark.parametrize("name", sorted(SAYS))
def test_it_runs_and_says_what_its_page_promises(name: str) -> None:
    """An example that does not run is worse than none."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=served().env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[name]:
        assert words in done.stdout


def test_every_example_is_tested_and_described() -> None:
    """No file lies in examples/ that the tests or the README do not know."""
    files = {file.name for file in EXAMPLES.glob("*.py")}
    assert files == set(SAYS)
    assert all(name in (EXAMPLES / "README.md").read_text() for name in files)
