"""Cells that break their kernel, talk in its name, or do not stop: told, bounded, and over."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.e2b_interpreter.harness import Sandbox, Server

FORGED = """
import os
for fd in range(3, 1024):
    try: os.write(fd, {said!r})
    except OSError: pass
"""


@pytest.fixture(scope="module")
def victim(server: Server, isolation: str) -> Iterator[Sandbox]:
    """A sandbox for these tests alone."""
    with server.sandbox(isolation, processes=48, memory_bytes=512 << 20, output_bytes=2 << 20) as made:
        yield made


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import time; time.sleep(60)"),
        ("python", "while True: pass"),
        ("python", "!sleep 60"),
        ("python", "import asyncio; await asyncio.sleep(60)"),
        ("bash", "sleep 60; echo not reached"),
        ("bash", "while :; do :; done"),
        ("js", "while (true) {}"),
        ("js", "await new Promise(r => setTimeout(r, 60000))"),
        ("js", "new Promise(r => setTimeout(r, 60000))"),
    ],
)
def test_a_client_that_leaves_interrupts(victim: Sandbox, language: str, code: str) -> None:
    """The cell stops, its context keeps what it had, and the next one is answered."""
    keep, ask = ("kept=1", "echo $kept") if language == "bash" else ("kept = 1", "kept")
    victim.run(keep, language=language)
    with pytest.raises(httpx.ReadTimeout):
        victim.run(code, timeout=0.7, language=language)
    done = victim.run(ask, language=language)
    assert (done.text or done.printed().strip()) == "1"  # a kernel that had to be ended would not know it


@pytest.mark.parametrize(
    ("language", "code", "why"),
    [
        ("python", "import os; os._exit(3)", "exit code 3"),
        ("python", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("python", "import ctypes; ctypes.string_at(0)", "signal 11"),
        ("python", "import os; os.closerange(3, 1024)", "exit code 70"),
        ("python", "import os, sys; sys.setswitchinterval(60); os.closerange(3, 1024)", "exit code 70"),
        ("python", "x = bytearray(3 << 30)", "memory limit"),
        ("bash", "exit 4", "exit code 4"),
        ("bash", "kill -9 $$", "exit code 137"),
        ("js", "process.exit(5)", "exit code 5"),
    ],
)
def test_a_kernel_that_dies_is_told_and_replaced(
    victim: Sandbox, isolation: str, language: str, code: str, why: str
) -> None:
    """The cell ends with an error that says how; the next one has a fresh kernel."""
    if why == "memory limit" and isolation == "gvisor":
        pytest.skip("gVisor ends the whole sandbox")
    done = victim.run(code, language=language)
    assert done.error["name"] in {"KernelDied", "MemoryError"}, done.lines
    assert why in done.error["value"] or done.error["name"] == "MemoryError"
    after = victim.run("echo 2" if language == "bash" else "1 + 1", language=language)
    assert (after.text or after.printed().strip()) == "2"


def test_standard_descriptors_closed_by_a_cell_are_there_for_the_next(victim: Sandbox) -> None:
    """Closing 0 to 2, sys.stdout, or putting files there, costs the cell its output and no other."""
    victim.run("import os, sys; os.closerange(0, 3); sys.stdout.close()")
    assert victim.run("print('printed')\n!echo echoed").printed() == "printed\nechoed\n"


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"no json\n",
        b'{"kind": "junk"}\n',
        b'{"kind": "output", "name": "stdout", "text": 1}\n',
        b'{"kind": "output", "name": "stdin", "text": "x"}\n',
        b'{"kind": "shown", "main": true, "data": {"a": "b"}, "more": 1}\n',
        b'{"kind": "shown", "main": true, "data": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b"\n",
        b'{"kind": "error", "name": "a", "value": "\\ud800", "traceback": ""}\n',
        b'{"kind": "done", "id": "1"}\n',
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_message_ends_the_kernel_alone(victim: Sandbox, said: bytes) -> None:
    """A cell that finds the kernel's descriptor and writes what is no message loses its kernel."""
    done = victim.run(FORGED.format(said=said))
    assert done.error["name"] == "KernelDied", done.lines
    assert victim.run("1 + 1").text == "2"


def test_a_line_without_an_end_is_bounded(victim: Sandbox) -> None:
    """The host keeps at most one line of twelve MiB, and then the kernel goes."""
    before = peak()
    code = FORGED.format(said=b"x" * 65536).replace("try:", "try:\n      for _ in range(1000):")
    assert victim.run(code).error["name"] == "KernelDied"
    assert peak() - before < 150 << 20
    assert victim.run("1 + 1").text == "2"


def peak() -> int:
    """The most memory this process (which is also the server) ever had."""
    with open(f"/proc/{os.getpid()}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def test_forged_messages_change_its_own_answer_only(victim: Sandbox) -> None:
    """Well-formed messages of a cell's own are its own lies; an early `done` of the wrong number is none."""
    lies = b'{"kind": "done", "id": 999999}\n{"kind": "output", "name": "stdout", "text": "forged"}\n'
    done = victim.run(FORGED.format(said=lies) + "\nprint('and on')")
    assert "forged" in done.printed()
    assert done.printed().endswith("and on\n")


def test_output_past_the_limit_ends_the_cell(victim: Sandbox) -> None:
    """The cell is told to stop, its client learns why, and its context lives on."""
    victim.run("kept = 5")
    done = victim.run("while True: print('x' * 1000)")
    assert done.error["name"] == "OutputLimitExceeded"
    assert len(done.printed()) < 3 << 20
    assert victim.run("kept").text == "5"


def test_results_too_large_are_left_out(victim: Sandbox) -> None:
    """What is shown is bounded; the cell is told, and its smaller representations are there."""
    done = victim.run(
        "class A:\n    def _repr_html_(self): return 'x' * (9 << 20)\n    def __repr__(self): return 'small'\nA()"
    )
    assert done.text == "small"
    assert "html" not in done.main
    assert "text/html" in done.printed("stderr")


def test_a_cell_that_will_not_stop_loses_its_kernel(victim: Sandbox) -> None:
    """It ignores SIGINT: after ten seconds its kernel is ended, and the next cell is told so."""
    victim.run("kept = 1")
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\nwhile True: time.sleep(1)"
    with victim.http.stream("POST", "/execute", json={"code": code}) as answer:
        lines = answer.iter_lines()
        while '"on' not in next(lines):
            pass
    done = victim.run("1 + 1")
    assert done.text == "2"
    assert "a fresh kernel" in done.printed("stderr")


def test_a_fork_bomb_is_over_with_its_kernel(server: Server, isolation: str) -> None:
    """Its processes go with its kernel; the same sandbox runs cells again."""
    if isolation == "gvisor":
        pytest.skip("gVisor ends the sandbox, which is shown elsewhere")
    with server.sandbox(isolation, processes=40) as bombed:
        bombed.run("1")
        with pytest.raises(httpx.ReadTimeout):
            bombed.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=1.5)
        done = bombed.run("1 + 1")
        assert done.text == "2", done.lines


def test_a_sandbox_killed_under_a_cell_cuts_the_stream(server: Server, isolation: str) -> None:
    """No end of the stream: the connection breaks, so that a client knows it did not hear the end."""
    with server.sandbox(isolation) as doomed:
        code = "import time; print('on', flush=True); time.sleep(60)"
        with doomed.http.stream("POST", "/execute", json={"code": code}) as answer:
            lines = answer.iter_lines()
            while '"on' not in next(lines):
                pass
            server.stop(doomed.id)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert not server.door.interpreter.waiting(doomed.id)


def test_a_kernel_waits_for_what_is_ending(server: Server, isolation: str) -> None:
    """One process may still be begun, and not its thread: what is left of a fork bomb is gone in a moment."""
    if isolation == "gvisor":
        pytest.skip("gVisor ends the sandbox, which is shown elsewhere")
    crowd = (
        "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nkids = []\n"
        "while True:\n    try: kids.append(os.fork())\n    except OSError: break\n"
        "    if not kids[-1]:\n        time.sleep(4)\n        os._exit(0)\n"
        "os.kill(kids[-1], 9)\nwhile os.path.exists(f'/proc/{kids[-1]}'): pass\nlen(kids) > 3"
    )
    with server.sandbox(isolation, processes=16) as crowded:
        assert crowded.run(crowd).text == "True"
        made = crowded.http.post("/contexts", json={"language": "python"}, timeout=60)
        assert made.status_code == 200, made.text
        assert crowded.run("1 + 1", context_id=made.json()["id"]).text == "2"
