"""`ringfence run` as a user's shell sees it, against a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.served import TEMPLATES, served


def test_a_file_runs_as_if_it_ran_here(tmp_path: Path) -> None:
    """Output, errors and exit code are the program's own."""
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:]); print('e', file=sys.stderr); raise SystemExit(5)")
    done = served().run("run", str(script), "a", "b")
    assert (done.stdout, done.stderr, done.returncode) == (b"['a', 'b']\n", b"e\n", 5)


def test_a_pipe_goes_through() -> None:
    """Binary input and output pass unchanged."""
    data = bytes(range(256)) * 100
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    assert served().run("run", "-c", code, stdin=data).stdout == data[::-1]


def test_a_program_can_come_from_standard_input() -> None:
    """`-` runs what is piped in."""
    assert served().run("run", "-", stdin=b"print(6 * 7)").stdout == b"42\n"


def test_files_go_in_and_come_out(tmp_path: Path) -> None:
    """What is collected lands where the command says, whatever its name inside."""
    (tmp_path / "in.txt").write_text("data")
    code = "open('out.txt', 'w').write(open('renamed.txt').read().upper())"
    target = tmp_path / "here.txt"
    done = served().run("run", "-c", code, "-f", f"{tmp_path}/in.txt:renamed.txt", "-o", f"out.txt:{target}")
    assert done.returncode == 0
    assert target.read_text() == "DATA"


def test_shell_variables_and_labels() -> None:
    """A command line of the sandbox's shell, with variables."""
    done = served().run("run", "-s", 'echo "$WHO at $PWD"', "-e", "WHO=ada", "-l", "a=b")
    assert done.stdout == b"ada at /home/user\n"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["-c", "while True: pass", "--timeout", "1s"], 124, b"timed out"),
        (["-c", "x = b'x' * 10**9", "-L", "memory=64MiB"], 137, b"out of memory"),
        (["-c", "while True: print('x' * 1000)", "-L", "output=100k"], 121, b"output capped"),
        (["-c", "import os; os.kill(os.getpid(), 11)"], 139, b"killed by signal 11"),
    ],
)
def test_a_program_that_did_not_just_exit_is_explained(words: list[str], code: int, line: bytes) -> None:
    """The exit code is the documented one and the last line on stderr says why."""
    done = served().run("run", *words)
    assert done.returncode == code
    assert line in done.stderr.splitlines()[-1]
    assert b"ringfence why r" in done.stderr.splitlines()[-1]


def test_refusals_and_wrong_keys_exit_126() -> None:
    """What the server refuses is told apart from what the program did."""
    assert served().run("run", "-c", "1", "-t", "no-such-template").returncode == 126
    done = served().run("run", "-c", "1", RINGFENCE_KEY="rf_" + "x" * 43)
    assert done.returncode == 126
    assert done.stderr.startswith(b"error[")


def test_json_is_one_object_with_everything() -> None:
    """A program can read how another one ended."""
    done = served().run("run", "--json", "-c", "print('hi'); raise SystemExit(3)")
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"] == 3
    assert (found["stdout"], found["exit"]["how"], found["id"][0]) == ("hi\n", "exited", "r")
    assert json.loads(served().run("why", "--json", found["id"]).stdout)["kind"] == "run"


def test_output_is_made_safe_for_a_terminal_and_left_alone_in_a_pipe() -> None:
    """The same hostile bytes: neutral on our terminal, exact in a file."""
    code = r"print('a\x1b]52;c;eA==\x07\x1b[31mred\x1b[0m\x1b[2Jz')"
    assert served().run("run", "-c", code).stdout == b"a\x1b]52;c;eA==\x07\x1b[31mred\x1b[0m\x1b[2Jz\n"
    assert on_terminal("run", "-c", code, "--no-stdin") == b"a\x1b[31mred\x1b[0mz\r\n"


def test_an_interrupt_stops_the_run_and_exits_130() -> None:
    """Ctrl-C ends the command, and the program with it."""
    command = [sys.executable, "-m", "ringfence", "run", "--no-stdin", "-l", "case=interrupt", "-c"]
    endless = "import time\nwhile True: print('tick', flush=True); time.sleep(0.05)"
    # Tests may be run in the background, where a shell has children ignore it; at a terminal they do not.
    words = ["env", "--default-signal=INT", *command, endless]
    with subprocess.Popen(words, env=served().env, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"tick\n"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode == 130
    with served().client() as client:
        deadline = time.monotonic() + 60
        while [record.state for record in client.runs({"case": "interrupt"})] == ["running"]:
            assert time.monotonic() < deadline, "the run goes on without its client"
            time.sleep(0.05)


def test_without_a_server_one_is_started_for_the_run(tmp_path: Path) -> None:
    """A newcomer's first `ringfence run` works; nothing of the server is on the program's output."""
    tmp_path.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    env |= {
        "RINGFENCE_STATE": str(tmp_path / "state"),
        "RINGFENCE_TEMPLATES": TEMPLATES,
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "ringfence", "run", "--no-stdin", "-c", "print(6 * 7); raise SystemExit(4)"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=250, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"42\n", b"", 4)


def on_terminal(*words: str) -> bytes:
    """What a command writes when its output is a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "ringfence", *words]
    with subprocess.Popen(
        command, env=served().env, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    ) as child:
        os.close(follower)
        seen = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        child.wait(60)
    os.close(leader)
    return seen
