"""`ringfence sandbox shell` on a real pseudo-terminal, against a real server."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from ringfence import Sandbox
from tests.support.served import served


class Terminal:
    """A terminal with `ringfence sandbox shell` on it."""

    def __init__(self, sandbox: str) -> None:
        self.leader, follower = pty.openpty()
        self.follower = follower
        self.resize(24, 80)
        self.before = termios.tcgetattr(follower)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "ringfence", "sandbox", "shell", sandbox],
            env=served().env, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        """Give the terminal a size."""
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.leader, keys)

    def await_(self, words: bytes, seconds: float = 60) -> None:
        """Read until these words are shown."""
        until = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.leader], [], [], 0.1)[0]:
                self.seen += os.read(self.leader, 65536)

    def restored(self) -> bool:
        """Whether the terminal is as it was before."""
        return termios.tcgetattr(self.follower)[:4] == self.before[:4]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A shell in a new sandbox, ready to be typed at."""
    with served().client() as client, Sandbox.create(ttl=600, client=client) as place:
        made = Terminal(place.id)
        made.type(b"echo rea''dy\n")
        made.await_(b"ready\r\n")
        yield made
        made.child.kill()
        made.child.wait()


def test_what_is_typed_runs_there_and_its_exit_code_is_ours(terminal: Terminal) -> None:
    """The shell's end ends the command, with its code, and the terminal is as it was."""
    terminal.type(b"exit 7\n")
    assert terminal.child.wait(60) == 7
    assert terminal.restored()


def test_ctrl_c_goes_to_the_program_inside(terminal: Terminal) -> None:
    """Interrupting a program in the sandbox does not leave the sandbox."""
    # The program says so itself: a bash that is interrupted while it begins one may lose the key, or itself.
    terminal.type(b"sh -c \"echo be''gun; exec sleep 100\"\n")
    terminal.await_(b"begun\r\n")
    terminal.type(b"\x03")
    terminal.type(b"echo st''ill here\n")
    terminal.await_(b"still here\r\n")


def test_a_resize_is_passed_on(terminal: Terminal) -> None:
    """The program inside sees the size of the window outside."""
    terminal.resize(40, 132)
    terminal.child.send_signal(signal.SIGWINCH)
    for _ in range(150):
        terminal.type(b"stty size\n")
        try:
            terminal.await_(b"40 132", 0.4)
        except AssertionError:
            continue
        return
    pytest.fail("the new size never arrived")


def test_the_sign_to_leave_leaves_and_restores_the_terminal(terminal: Terminal) -> None:
    """Enter ~ . ends the session here."""
    terminal.type(b"\r")
    terminal.type(b"~.")
    assert terminal.child.wait(60) == 0
    assert terminal.restored()


def test_a_killed_command_still_restores_the_terminal(terminal: Terminal) -> None:
    """A user whose session is ended from outside has a usable terminal afterwards."""
    terminal.child.terminate()
    terminal.child.wait(60)
    assert terminal.restored()


def test_the_clipboard_cannot_be_written_from_inside(terminal: Terminal) -> None:
    """Control strings of the program do not reach the terminal; its text does."""
    terminal.type(b"printf 'a\\033]52;c;eA==\\007b\\n'\n")
    terminal.await_(b"ab\r\n")
    assert b"]52" not in terminal.seen.replace(b"\\033]52", b"")


def test_without_a_terminal_it_says_what_to_use_instead() -> None:
    """In a script, `shell` is a usage error."""
    done = served().run("sandbox", "shell", "s" + "a" * 26)
    assert done.returncode == 2
    assert b"sandbox exec" in done.stderr
