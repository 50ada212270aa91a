"""What every runtime promises, asked of each: start, programs and their streams, signals, stop.

A test speaks the frame protocol over the sandbox's own channel, as the node does. Where a runtime may differ, its
Capabilities or its Subject (tests/support/subjects.py) say so, and the test asks them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ringfence.guest import frames
from tests.conformance.conftest import Bench, Box
from tests.support.guestharness import Host, Reply
from tests.support.subjects import SMALL

EVERY_BYTE = bytes(range(256)) * 40


def run_shell(host: Host, line: str, **fields: Any) -> Reply:
    """A shell line, to its end."""
    reply = host.open("exec", shell=line, **fields)
    reply.answer()
    return reply


def fate(reply: Reply) -> tuple[str, int | None, int | None]:
    """How it ended, with which code, by which signal."""
    end = reply.answer()["exit"]
    return end["how"], end["code"], end["signal"]


def detached(host: Host, line: str, **fields: Any) -> int:
    """A program that outlives its asker; returns its pid."""
    reply = host.open("exec", shell=line, detach=True, **fields)
    pid = int(reply.started()["pid"])
    reply.cancel()
    reply.answer()
    return pid


# -- start ------------------------------------------------------------------------------------------------------------


def test_a_started_sandbox_answers(bench: Bench, box: Box) -> None:
    """start() returns a sandbox whose agent is ready, under the id it was asked for."""
    assert box.host.ask("ping") == {}
    assert box.host.ask("list") == {"processes": []}
    assert box.id in bench.found()


def test_it_says_which_layers_are_in_force(bench: Bench, box: Box) -> None:
    """A sandbox's layers are those the runtime declares in force on this host; each missing one has a reason."""
    declared = {layer.name: layer for layer in bench.runtime.layers()}
    assert len(declared) == len(bench.runtime.layers())
    assert all(layer.in_force or layer.reason for layer in declared.values())
    assert {name for name, layer in declared.items() if layer.in_force} == set(box.started.layers)


def test_it_says_what_it_can(bench: Bench) -> None:
    """Capabilities are a record with words a user may read; a fake says that it isolates nothing."""
    can = bench.can
    assert can.enforces <= {"memory", "cpu", "pids"}
    assert "user" in can.users
    assert can.limits_by
    assert can.isolation.startswith("none") != bench.subject.real


# -- programs and their streams ---------------------------------------------------------------------------------------


def test_an_argument_list_is_not_a_shell_line(host: Host) -> None:
    """Every part of argv reaches the program as it is."""
    reply = host.open("exec", argv=["echo", "two  words", "$HOME;exit 3", "it's"])
    assert fate(reply) == ("exited", 0, None)
    assert bytes(reply.out) == b"two  words $HOME;exit 3 it's\n"


def test_a_shell_line_is(host: Host) -> None:
    """A shell line is read by a shell."""
    reply = run_shell(host, "echo one && false || echo 'two;three'; echo four | cat; exit 5")
    assert bytes(reply.out) == b"one\ntwo;three\nfour\n"
    assert fate(reply) == ("exited", 5, None)


def test_stdout_and_stderr_are_kept_apart(host: Host) -> None:
    """What is written to one never appears in the other."""
    reply = run_shell(host, "echo out; echo err >&2; echo out; echo err >&2")
    assert (bytes(reply.out), bytes(reply.err)) == (b"out\nout\n", b"err\nerr\n")


@pytest.mark.parametrize("line", ["cat", "cat >&2"])
def test_every_byte_survives_both_ways(host: Host, line: str) -> None:
    """Input and output are bytes: NUL, newlines and what is not UTF-8 included."""
    reply = host.open("exec", shell=line, stdin=True)
    reply.send(EVERY_BYTE)
    reply.close_input()
    assert fate(reply) == ("exited", 0, None)
    assert bytes(reply.out + reply.err) == EVERY_BYTE


def test_far_more_than_the_window_passes_both_ways(host: Host) -> None:
    """Megabytes through a program: credit goes back and forth, and not a byte is lost."""
    data = os.urandom(3_000_000)
    reply = host.open("exec", argv=["cat"], stdin=True)
    reply.send(data)
    reply.close_input()
    assert fate(reply) == ("exited", 0, None)
    assert bytes(reply.out) == data


def test_without_stdin_the_input_is_empty(host: Host) -> None:
    """A program that was given no input reads the end of it at once."""
    assert fate(host.open("exec", argv=["cat"])) == ("exited", 0, None)


def test_input_nobody_reads_is_taken_and_dropped(host: Host) -> None:
    """Bytes sent to a program without input neither block nor arrive."""
    reply = host.open("exec", shell="sleep 0.3; echo done")
    reply.send(b"x" * 1_000_000)
    assert fate(reply) == ("exited", 0, None)
    assert bytes(reply.out) == b"done\n"


def test_a_command_that_is_not_there(host: Host) -> None:
    """An unknown command is the program's fate, as a shell would tell it: 127."""
    reply = host.open("exec", argv=["no-such-command"])
    assert fate(reply) == ("exited", 127, None)
    assert b"not found" in reply.err


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_codes(host: Host, code: int) -> None:
    """The code is the program's own."""
    assert fate(run_shell(host, f"exit {code}")) == ("exited", code, None)


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("USR1", 10)])
def test_a_program_that_kills_itself(host: Host, name: str, number: int) -> None:
    """Death by signal is told as that, with the signal's number."""
    assert fate(run_shell(host, f"kill -{name} $$")) == ("signalled", None, number)


# -- what a program finds ---------------------------------------------------------------------------------------------


def test_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables asked for are set, HOME is the sandbox's, and none of the host's own get in."""
    reply = run_shell(host, "echo $GREETING $HOME; env", env={"GREETING": "hello"})
    assert reply.out.startswith(b"hello /home/user\n")
    names = {line.split(b"=")[0].decode() for line in reply.out.splitlines()[1:]}
    assert not names & ({name for name in os.environ if name.startswith(("RINGFENCE", "PYTEST", "VIRTUAL", "SSH"))})


def test_working_directory(host: Host) -> None:
    """Home unless asked otherwise; a relative one starts at home; one that is not there is refused."""
    host.ask("mkdir", path="work")
    assert bytes(run_shell(host, "pwd").out) == b"/home/user\n"
    assert bytes(run_shell(host, "pwd", cwd="/tmp").out) == b"/tmp\n"
    assert bytes(run_shell(host, "pwd", cwd="work").out) == b"/home/user/work\n"
    assert run_shell(host, "pwd", cwd="nowhere").error == "not_found"


@pytest.mark.parametrize("cwd", ["/proc/self/fd/7", "/dev", "/sys", "/proc/self/cwd", "a\0b"])
def test_a_working_directory_that_is_none(host: Host, cwd: str) -> None:
    """The kernel's own places are no working directories (CVE-2024-21626)."""
    assert run_shell(host, "pwd", cwd=cwd).error == "bad_request"


def test_users(bench: Bench, host: Host) -> None:
    """uid 1000 unless asked otherwise; other users are there if declared, else refused by name."""
    assert bytes(run_shell(host, "id -u").out) == b"1000\n"
    as_root = run_shell(host, "id -u", user="root")
    if "root" in bench.can.users:
        assert bytes(as_root.out) == b"0\n"
    else:
        assert as_root.error == "permission"
    assert run_shell(host, "id -u", user="nobody-here").error in {"not_found", "permission"}


# -- requests that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"not json",
        b"[]",
        b'"exec"',
        b"{}",
        b'{"op": "no such op"}',
        b'{"op": "exec"}',
        b'{"op": ["exec"]}',
        b'{"op": "exec", "argv": [1]}',
        b'{"op": "exec", "argv": ["a\\u0000b"]}',
        b'{"op": "exec", "shell": "true", "env": {"A=B": "1"}}',
        b'{"op": "exec", "shell": "true", "env": {"A": 1}}',
        b'{"op": "run", "code": 3}',
        b'{"op": "signal", "pid": 99999, "signal": "TERM"}',
        b"[" * 100_000,
    ],
)
def test_a_request_that_is_none_is_refused(host: Host, request_: bytes) -> None:
    """Whatever it holds, the answer is a refusal, and the agent lives on."""
    assert host.open_raw(request_).answer()["error"]["code"] in {"bad_request", "not_found"}
    assert host.ask("ping") == {}


# -- time, signals, leaving -------------------------------------------------------------------------------------------


def test_a_program_past_its_time_is_ended(host: Host) -> None:
    """A timeout ends the program and says so."""
    for seconds in (0.3, 3, 20):  # on a busy machine it may not have begun by then
        reply = host.open("exec", shell="echo begun; sleep 60", timeout=seconds)
        assert fate(reply)[0] == "timed_out"
        if reply.out:
            break
    assert bytes(reply.out) == b"begun\n"


def test_a_program_within_its_time_is_left_alone(host: Host) -> None:
    """A timeout that is not reached changes nothing."""
    assert fate(run_shell(host, "exit 4", timeout=30)) == ("exited", 4, None)


def test_signals_from_outside(host: Host) -> None:
    """A running program is signalled by its pid; afterwards it is not there to signal."""
    reply = host.open("exec", argv=["sleep", "60"])
    pid = reply.started()["pid"]
    assert host.ask("signal", pid=pid, signal=15) == {}
    assert fate(reply) == ("signalled", None, 15)
    assert host.ask("signal", pid=pid, signal=15)["error"]["code"] == "not_running"


@pytest.mark.parametrize("number", [0, -9, 65, 1.5, None, True])
def test_a_signal_that_is_none(own: Host, number: object) -> None:
    """Numbers the kernel does not know, or that mean something else to it, are refused."""
    pid = detached(own, "sleep 60")
    assert own.ask("signal", pid=pid, signal=number)["error"]["code"] == "bad_request"
    assert own.ask("list")["processes"][0]["running"] is True


def test_a_pid_nobody_has(host: Host) -> None:
    """Only programs that were asked for can be named."""
    for op in ("attach", "signal", "input", "resize"):
        assert host.ask(op, pid=1, signal=9, rows=1, cols=1)["error"]["code"] == "not_found"


def test_whoever_leaves_takes_the_program_along(host: Host) -> None:
    """CANCEL of the asker's stream ends a program that was not detached."""
    reply = host.open("exec", argv=["sleep", "60"])
    pid = reply.started()["pid"]
    reply.cancel()
    reply.answer()
    watching = host.open("attach", pid=pid)
    assert fate(watching)[0] == "stopped"


def test_whoever_leaves_at_once_takes_the_program_along_too(own: Host) -> None:
    """CANCEL in the same breath as the request finds the program however young it is."""
    for _ in range(20):
        reply = own.open("exec", argv=["sleep", "600"])
        reply.cancel()
        reply.answer()
    for row in own.ask("list")["processes"]:
        assert fate(own.open("attach", pid=row["pid"]))[0] == "stopped"


def test_a_detached_program_stays(own: Host) -> None:
    """It goes on without its asker, and can be found in the list."""
    pid = detached(own, "sleep 60", tag="mine")
    (row,) = own.ask("list")["processes"]
    assert (row["pid"], row["tag"], row["kind"], row["running"], row["exit"]) == (pid, "mine", "exec", True, None)
    assert row["argv"][-1] == "sleep 60"


def test_the_list_keeps_the_ended(own: Host) -> None:
    """A program that ended is still listed, with its fate."""
    run_shell(own, "exit 9")
    (row,) = own.ask("list")["processes"]
    assert row["running"] is False
    assert row["exit"]["code"] == 9


# -- attaching --------------------------------------------------------------------------------------------------------


def test_attaching_shows_what_was_and_what_comes(host: Host) -> None:
    """Who attaches gets the tail, then everything live, then the fate."""
    pid = detached(host, "echo early; cat; exit 6", stdin=True)
    watching = host.open("attach", pid=pid)
    watching.until(lambda reply: bytes(reply.out) == b"early\n")
    sending = host.open("input", pid=pid, close=True)
    sending.send(b"late\n")
    sending.close_input()
    assert sending.answer() == {}
    assert fate(watching) == ("exited", 6, None)
    assert bytes(watching.out) == b"early\nlate\n"


def test_attaching_after_the_end(own: Host) -> None:
    """The tail and the fate can be had when it is all over."""
    run_shell(own, "echo words; echo more >&2; exit 2")
    pid = own.ask("list")["processes"][0]["pid"]
    watching = own.open("attach", pid=pid)
    assert fate(watching) == ("exited", 2, None)
    assert (bytes(watching.out), bytes(watching.err)) == (b"words\n", b"more\n")


def test_the_tail_is_bounded(own: Host) -> None:
    """64 KiB per stream are kept, the last ones."""
    run_shell(own, "head -c 200000 /dev/zero; echo end")
    watching = own.open("attach", pid=own.ask("list")["processes"][0]["pid"])
    watching.answer()
    assert len(watching.out) == 64 * 1024
    assert watching.out.endswith(b"\0end\n")


def test_two_may_watch(host: Host) -> None:
    """Everybody attached gets everything."""
    owner = host.open("exec", argv=["cat"], stdin=True)
    watching = host.open("attach", pid=owner.started()["pid"])
    watching.started()
    owner.send(b"for both\n")
    owner.close_input()
    assert fate(owner) == fate(watching) == ("exited", 0, None)
    assert bytes(owner.out) == bytes(watching.out) == b"for both\n"


def test_who_only_watches_may_leave(host: Host) -> None:
    """CANCEL of an attached stream leaves the program to its owner."""
    owner = host.open("exec", argv=["cat"], stdin=True)
    watching = host.open("attach", pid=owner.started()["pid"])
    watching.started()
    watching.cancel()
    watching.answer()
    owner.send(b"still here\n")
    owner.close_input()
    assert fate(owner) == ("exited", 0, None)
    assert bytes(owner.out) == b"still here\n"


def test_a_slow_watcher_who_leaves_frees_the_others(host: Host) -> None:
    """Output waits for the slowest, and no longer than the slowest stays."""
    owner = host.open("exec", shell="sleep 0.3; head -c 1000000 /dev/zero")
    slow = host.open("attach", pid=owner.started()["pid"], automatic=False)
    slow.until(lambda reply: len(reply.out) == frames.WINDOW)
    assert owner.end is None
    slow.cancel()
    assert fate(owner) == ("exited", 0, None)
    assert len(owner.out) == 1_000_000


# -- input to a running program ---------------------------------------------------------------------------------------


def test_two_may_feed_a_program(host: Host) -> None:
    """Bytes from two senders all arrive, and each sender gets its own credit back."""
    reply = host.open("exec", argv=["wc", "-c"], stdin=True)
    pid = reply.started()["pid"]
    first, second = host.open("input", pid=pid), host.open("input", pid=pid)
    piece = bytes(50_000)
    for _ in range(20):
        first.send(piece)
        second.send(piece)
    for sender in (first, second):
        sender.close_input()
        assert sender.answer() == {}
    reply.close_input()
    reply.answer()
    assert reply.out.strip() == b"2000000"


def test_a_sender_hears_that_the_program_ended(host: Host) -> None:
    """What nobody will ever read does not hold its sender up."""
    reply = host.open("exec", argv=["sleep", "60"], stdin=True)
    pid = reply.started()["pid"]
    sender = host.open("input", pid=pid)
    while sender.credit:
        sender.send(bytes(sender.credit))
        host.settle(0.2)
    host.ask("signal", pid=pid, signal=9)
    reply.answer()
    sender.send(bytes(100_000))
    sender.close_input()
    assert sender.answer() == {}


def test_input_that_is_not_read_comes_back_as_no_credit(host: Host) -> None:
    """A program that does not read stops its sender after the window and what the kernel buffers."""
    reply = host.open("exec", argv=["sleep", "60"], stdin=True)
    sent = 0
    while reply.credit:
        sent += reply.credit
        reply.send(bytes(reply.credit))
        host.settle(0.2)
    assert frames.WINDOW <= sent <= frames.WINDOW + 128 * 1024
    assert host.ask("ping") == {}


# -- terminals --------------------------------------------------------------------------------------------------------


def test_a_terminal_of_a_size(bench: Bench, host: Host) -> None:
    """A program on a terminal sees its size, and hears of a new one; where there are none, that is said."""
    reply = host.open("exec", shell="tty; stty size; read x; stty size", pty={"cols": 100, "rows": 30})
    if not bench.can.pty:
        assert reply.answer()["error"]["code"] == "bad_request"
        return
    reply.until(lambda r: b"30 100\r\n" in r.out)
    assert host.ask("resize", pid=reply.started()["pid"], cols=120, rows=40) == {}
    reply.send(b"\n")
    assert fate(reply) == ("exited", 0, None)
    assert reply.out.startswith(b"/dev/pts/")
    assert b"40 120" in reply.out
    assert not reply.err


def test_a_terminal_ends_with_its_input(bench: Bench, host: Host) -> None:
    """End of input is the end-of-file character on a terminal."""
    if not bench.can.pty:
        pytest.skip("declared: no terminals")
    reply = host.open("exec", shell="cat; echo over", pty={"cols": 80, "rows": 24})
    reply.send(b"typed\n")
    reply.close_input()
    assert fate(reply) == ("exited", 0, None)
    assert reply.out.endswith(b"typed\r\nover\r\n")


def test_resizing_on_the_open_stream(bench: Bench, own: Host) -> None:
    """A control message on the program's own stream resizes and signals too."""
    reply = own.open(
        "exec", shell="trap 'stty size; exit 3' WINCH; echo ready; sleep 60 & wait", pty={"cols": 80, "rows": 24}
    )
    if not bench.can.pty:
        assert reply.answer()["error"]["code"] == "bad_request"
        return
    reply.until(lambda r: b"ready" in r.out)
    reply.control({"resize": {"cols": 33, "rows": 44}})
    assert fate(reply) == ("exited", 3, None)
    assert b"44 33" in reply.out


def test_a_signal_on_the_open_stream(host: Host) -> None:
    """Whoever holds a program's stream can signal it there."""
    reply = host.open("exec", argv=["sleep", "60"])
    reply.started()
    reply.control({"signal": 15})
    assert fate(reply) == ("signalled", None, 15)


# -- back-pressure ----------------------------------------------------------------------------------------------------


def test_a_reader_that_grants_nothing_stops_the_program(host: Host) -> None:
    """An endless program sends exactly the window, then waits; everybody else is served meanwhile."""
    reply = host.open("exec", argv=["yes"], automatic=False)
    reply.until(lambda r: len(r.out) == frames.WINDOW)
    host.settle(0.3)
    assert len(reply.out) == frames.WINDOW
    assert bytes(run_shell(host, "echo served").out) == b"served\n"
    reply.grant(1000)
    reply.until(lambda r: len(r.out) == frames.WINDOW + 1000)
    host.settle(0.2)
    assert bytes(reply.out) == b"y\n" * ((frames.WINDOW + 1000) // 2)


def test_nothing_is_lost_on_a_slow_reader(host: Host) -> None:
    """Granted in small and odd pieces, a long output arrives whole and in order."""
    reply = host.open("exec", shell="head -c 600000 /dev/zero; echo end; echo error >&2; exit 3", automatic=False)
    while reply.end is None:
        host.pump(0.05)
        if reply.allowed <= 0:
            reply.grant(30_011)
    assert len(reply.out) == 600_004
    assert reply.out.endswith(b"\0end\n")
    assert bytes(reply.err) == b"error\n"
    assert fate(reply) == ("exited", 3, None)


def test_a_program_that_ends_unread_is_told_once_it_is_read(host: Host) -> None:
    """The fate follows the last byte, however late the reader is."""
    reply = host.open("exec", shell="head -c 300000 /dev/zero", automatic=False)
    reply.until(lambda r: len(r.out) == frames.WINDOW)
    host.settle(0.2)
    assert reply.end is None
    reply.grant(300_000)
    assert fate(reply) == ("exited", 0, None)
    assert len(reply.out) == 300_000


# -- breaking the protocol --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 64,
        frames.HEADER.pack(2**31, frames.STDIN, 1),
        frames.HEADER.pack(0, 99, 1),
        frames.HEADER.pack(3, frames.CREDIT, 1) + b"abc",
    ],
    ids=["noise", "2^31 bytes", "unknown type", "short credit"],
)
def test_lies_end_that_channel(start: Callable[..., Box], bench: Bench, lie: bytes) -> None:
    """A sandbox hangs up on a channel that lies; another goes on, and stop() cleans up as ever."""
    box, other = start(), start()
    box.host.connection.sendall(lie)
    with pytest.raises(ConnectionError):
        box.host.until(lambda: False)
    assert other.host.ask("ping") == {}
    bench.stop(box.id)
    assert box.id not in bench.found()


def test_a_stream_opened_twice_ends_that_channel(box: Box) -> None:
    """An id that is in use is nobody's to open."""
    reply = box.host.open("exec", argv=["sleep", "60"])
    reply.started()
    box.host.send(frames.OPEN, reply.id, b'{"op": "ping"}')
    with pytest.raises(ConnectionError):
        box.host.until(lambda: False)


def test_more_input_than_credit_ends_that_channel(box: Box) -> None:
    """Credit is not advice."""
    reply = box.host.open("exec", argv=["sleep", "60"], stdin=True)
    reply.started()

    def oversend() -> None:
        for _ in range(frames.WINDOW // frames.MAX_DATA + 4):
            reply.credit -= frames.MAX_DATA
            box.host.send(frames.STDIN, reply.id, bytes(frames.MAX_DATA))
        box.host.until(lambda: False)

    with pytest.raises((ConnectionError, BrokenPipeError)):
        oversend()


# -- stop -------------------------------------------------------------------------------------------------------------


def test_stop_leaves_nothing(bench: Bench) -> None:
    """After stop() the sandbox is not found, and its channel is closed; programs under way end with it."""
    box = bench.start()
    box.host.open("exec", shell="sleep 600 | sleep 600").started()
    detached(box.host, "sleep 600")
    bench.stop(box.id)
    assert box.id not in bench.found()


def test_stop_may_be_repeated(bench: Bench) -> None:
    """Stopping what is gone, or never was, succeeds."""
    box = bench.start()
    for _ in range(3):
        bench.stop(box.id)
    bench.stop("s" + "a" * 26)
    assert bench.runtime.usage(box.id).cpu_seconds == 0


def test_many_sandboxes_come_and_go(bench: Bench) -> None:
    """Thirty sandboxes side by side, each used, then all stopped: none is found. Elsewhere than in CI ten, if dear."""
    boxes = [bench.start() for _ in range(10 if bench.keeps else 30)]
    for number, box in enumerate(boxes):
        assert bytes(run_shell(box.host, f"echo {number}").out) == f"{number}\n".encode()
    assert {box.id for box in boxes} <= bench.found()
    for box in boxes:
        bench.stop(box.id)
    assert not {box.id for box in boxes} & bench.found()


# -- usage ------------------------------------------------------------------------------------------------------------


def test_processor_time_is_counted(bench: Bench, box: Box) -> None:
    """A busy sandbox uses time that can be read from outside, where anybody counts."""
    line = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done" if bench.subject.real else "burn"
    reply = box.host.open("exec", shell=line, timeout=90 if bench.subject.real else 0.3)
    reply.answer(120)
    if bench.can.limits_by == "rlimits":
        pytest.skip("declared: this host cannot tell")
    assert bench.runtime.usage(box.id).cpu_seconds > 0.01


def test_running_out_of_memory_leaves_evidence(bench: Bench, start: Callable[..., Box]) -> None:
    """A program that needs more than the limit is killed, and the count says why; the sandbox lives."""
    if bench.subject.real and "memory" not in bench.can.enforces:
        pytest.skip("declared: this host does not limit memory")
    box = start(limits=replace(SMALL, memory_bytes=64 * 1024 * 1024))
    if bench.subject.memory_ends == "sandbox":
        with pytest.raises(ConnectionError):
            run_shell(box.host, f"exec {bench.subject.fill_memory}")
        assert bench.runtime.usage(box.id).oom_kills >= 1
        return
    reply = run_shell(box.host, f"exec {bench.subject.fill_memory}" if bench.subject.real else "fill-memory")
    assert fate(reply) == ("signalled", None, 9)
    assert bench.runtime.usage(box.id).oom_kills >= 1
    assert bytes(run_shell(box.host, "echo alive").out) == b"alive\n"


# -- alone ------------------------------------------------------------------------------------------------------------


def test_two_sandboxes_do_not_see_each_other(start: Callable[..., Box]) -> None:
    """Files, programs and ports of one are nothing to another of the same tenant."""
    one, two = start(), start()
    one.host.put("secret", b"mine")
    one.host.put("/tmp/secret", b"mine")
    pid = detached(one.host, one.bench.subject.echo_server)
    one.host.open("attach", pid=pid).until(lambda r: b"listening" in r.out)
    for path in ("secret", "/tmp/secret"):
        assert two.host.ask("stat", path=path)["error"]["code"] == "not_found"
    assert two.host.ask("list") == {"processes": []}
    assert two.host.ask("signal", pid=pid, signal=9)["error"]["code"] == "not_found"
    assert two.host.ask("tunnel", port=7000)["error"]["code"] == "not_listening"
