"""Attacks with processes, signals, streams and terminals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import pytest

from ringfence.attack import programs
from ringfence.attack.own_server import OwnServer
from tests.attacks.conftest import Box, Held, Run, output
from tests.support import ledger


@pytest.mark.row(28)
def test_a_fork_bomb_stops_at_the_limit(held: Held) -> None:
    """Forks and threads are refused at the limit of processes; a neighbour goes on beating."""
    held("fork-bomb")


@pytest.mark.row(28, 29)
def test_nothing_of_a_fork_bomb_survives_its_run(held: Held, server: OwnServer) -> None:
    """A run that ends with every child alive takes them all with it."""
    held("fork-bomb-left")
    assert survivors(server, "pause") == []


@pytest.mark.row(29)
def test_a_daemon_does_not_survive_its_run(held: Held, server: OwnServer) -> None:
    """A double fork that leaves the session and ignores every signal dies with its sandbox."""
    held("daemon")
    assert survivors(server, "still here") == []


def survivors(server: OwnServer, _: str) -> list[int]:
    """Processes of one-shot sandboxes that are still there after a while: none but the warm and idle ones' agents."""
    instance = ledger.instance_of(server.state)
    deadline = time.monotonic() + 60
    while True:
        busy = [pid for pid in ledger.pids() if f"/ringfence/{instance}/s" in ledger.group_of(pid) and stubborn(pid)]
        if not busy or time.monotonic() > deadline:
            return busy
        time.sleep(0.1)


def stubborn(pid: int) -> bool:
    """Whether a process ignores SIGTERM, as the daemons of these attacks do and no agent does."""
    try:
        with open(f"/proc/{pid}/status") as file:
            ignored = next((line.split()[1] for line in file if line.startswith("SigIgn")), "0")
    except OSError:
        return False
    return bool(int(ignored, 16) >> 14 & 1)


@pytest.mark.row(30)
def test_killing_everything_kills_only_oneself(held: Held, http: httpx.Client) -> None:
    """SIGKILL to every process number and to -1 reaches nothing outside; the server answers as before."""
    held("kill-everything")
    assert http.get("/health").status_code == 200


@pytest.mark.row(30)
def test_killing_everything_in_a_live_sandbox_leaves_the_agent(box: Box) -> None:
    """Process 1 cannot be killed, stopped or interrupted from inside; the sandbox still answers."""
    box.run("import contextlib, os\nfor n in (9, 19, 15, 2, 11):\n    with contextlib.suppress(OSError): os.kill(1, n)")
    box.run("import os; os.kill(-1, 9)")
    assert output(box.run("print(6 * 7)")) == b"42\n"


@pytest.mark.row(31)
def test_ignoring_every_signal_does_not_outlive_the_deadline(held: Held) -> None:
    """A program that ignores all signals, or spins, ends as timed_out."""
    held("ignored-signals")
    held("spinning")


@pytest.mark.row(32)
def test_a_stopped_program_does_not_outlive_the_deadline(held: Held) -> None:
    """SIGSTOP to oneself and to a child only delays until the deadline."""
    held("stopped")


@pytest.mark.row(31, 39)
def test_reporting_ones_own_end_does_not_dodge_the_deadline(box: Box) -> None:
    """A program that tells the agent it has ended, and runs on, is gone soon after its deadline all the same."""
    box.start({"code": programs.text("outlive"), "timeout": 1.0})
    deadline, before = time.monotonic() + 60, b"?"
    while (now := box.get("beat").content) != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(1)


@pytest.mark.row(34)
def test_other_processes_memory_is_out_of_reach(run: Run) -> None:
    """The agent's and the interpreter's memory, descriptors and directories cannot be opened through /proc."""
    code = """
import os
found = []
for pid in ["1", str(os.getppid()), *(p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid())]:
    for name in ("mem", "maps", "environ", "fd", "root/etc", "cwd", "exe", "task/1/mem"):
        path = f"/proc/{pid}/{name}"
        try:
            os.listdir(path) if name in ("fd", "root/etc", "cwd") else open(path, "rb").read(1)
            found.append((open(f"/proc/{pid}/comm").read().strip(), path))
        except OSError:
            pass
print([row for row in found if row[1].startswith("/proc/1/")])
"""
    assert output(run(code)) == b"[]\n"


@pytest.mark.row(34, 46, 49, 51, 52, 53)
def test_the_calls_that_reach_other_processes_are_refused(held: Held) -> None:
    """ptrace, process_vm_*, pidfd_getfd and kcmp are refused, also to the sandbox's root."""
    held("kernel-calls")
    held("kernel-calls-root")


@pytest.mark.row(35, 36, 37)
def test_no_privilege_can_be_had(held: Held) -> None:
    """No other user, capability, priority, pinned memory or protection from the out-of-memory killer is given."""
    held("more-privileges")
    held("more-privileges-root")
    held("privileges")
    held("privileges-exec")


@pytest.mark.row(39)
def test_forged_frames_are_only_output(run: Run) -> None:
    """Frames, absurd lengths and hostile JSON on every descriptor change nothing but the program's own output."""
    ran = run(programs.text("frames"), env={"PROBE_FACTS": json.dumps({"token": "mine"})})
    assert ran["exit"]["how"] == "exited"
    assert b"another stream's output" in output(ran)
    assert output(run("print(6 * 7)")) == b"42\n"


@pytest.mark.row(39)
def test_the_real_exit_code_is_reported(held: Held) -> None:
    """A program that forged a good end and then exited with 7 is reported as exited with 7."""
    held("forged-frames")


@pytest.mark.row(41)
def test_a_program_that_never_reads_its_input_holds_nobody_up(box: Box) -> None:
    """Much more input than a pipe holds, to a program that never reads: the deadline still ends it."""
    ran = box.start({"code": "import time; time.sleep(60)", "stdin": "x" * (8 << 20), "timeout": 2.0}).json()
    assert ran["exit"]["how"] == "timed_out"


@pytest.mark.row(41)
def test_a_program_that_closes_its_streams_is_still_bounded(held: Held) -> None:
    """A program without any stream left ends at its deadline."""
    held("closed-streams")


@pytest.mark.row(42, 43)
def test_terminals_of_others_cannot_be_reached(held: Held) -> None:
    """Typing into a terminal by ioctl, opening another one, and taking control of one are refused."""
    held("terminals")


@pytest.mark.row(42, 43)
def test_a_terminal_cannot_be_typed_into_from_itself(box: Box) -> None:
    """The same on a real terminal of the sandbox: TIOCSTI on standard input is refused there too."""
    pty = {"cols": 80, "rows": 24}
    ran = box.start({"argv": ["python3", "-c", programs.text("terminal")], "pty": pty}).json()
    line = next(line for line in output(ran).splitlines() if line.startswith(b"{"))
    seen = json.loads(line)
    assert {outcome for name, outcome in seen["calls"].items() if "TIOCSTI" in name} <= {"EPERM", "ENOTTY"}
    assert seen["others"] == []


@pytest.mark.row(43)
def test_two_terminals_do_not_see_each_other(boxes: Callable[..., Box]) -> None:
    """The terminal of one sandbox does not exist in another."""
    first, second = boxes(), boxes()
    pty = {"cols": 80, "rows": 24}
    first.start({"argv": ["sleep", "30"], "pty": pty, "detach": True})
    listing = output(second.run("import os; print(sorted(os.listdir('/dev/pts')))"))
    assert listing == b"['ptmx']\n"
