"""The agent's side of `sudo`: a program of the sandbox asks for a command to be run as another of its users.

No set-id bit works in a sandbox. Its agent can start programs as root all the same, because its owner may ask it to;
here its programs may, too. That root is nobody outside and has no capability: all fences stand before either.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable

from ringfence.guest import processes
from ringfence.guest.annotations import Any, Final
from ringfence.guest.asks import BadAsk
from ringfence.guest.loop import Loop

NAME: Final = b"\0ringfence-sudo"  # abstract: there is no file that a program could put another in place of
PROGRAM: Final = "/usr/bin/sudo"
MOST_BYTES: Final = 192 * 1024
MOST_AT_ONCE: Final = 32
STANDARD: Final = 3  # descriptors that come with a request

Start = Callable[[dict[str, Any], processes.Ends], int]


class Given(processes.Ends):
    """Standard streams that the asker brought."""

    def __init__(self, fds: list[int]) -> None:
        self.child = (fds[0], fds[1], fds[2])
        self.tty = False
        self.stdin = self.stdout = self.stderr = -1


class Door:
    """Hears requests, starts their commands, tells how they ended. `start` raises BadAsk or OSError."""

    def __init__(self, loop: Loop, start: Start, held: int) -> None:
        self._loop = loop
        self._start = start
        self._held = held
        self._talks: set[Talk] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(NAME)
        self._listener.listen(16)
        loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # no descriptor to spare, or the asker is gone again
            connection, _ = self._listener.accept()
            if len(self._talks) >= MOST_AT_ONCE:
                connection.close()
                return
            connection.setblocking(False)
            talk = Talk(connection, self._start, self._held)
            self._talks.add(talk)
            self._loop.add_reader(connection.fileno(), lambda: self._hear(talk))

    def _hear(self, talk: Talk) -> None:
        if not talk.hear():
            self._forget(talk)

    def _forget(self, talk: Talk) -> None:
        self._talks.discard(talk)
        self._loop.forget(talk.connection.fileno())
        talk.connection.close()

    def ended(self, pid: int, code: int) -> None:
        """A child of ours is dead; whoever asked for it, if anybody, is told."""
        for talk in list(self._talks):
            if talk.pid == pid:
                talk.pid = 0
                talk.say({"code": code})
                self._forget(talk)


class Talk:
    """One asker and its command."""

    def __init__(self, connection: socket.socket, start: Start, held: int) -> None:
        self.connection = connection
        self.pid = 0
        self._start = start
        self._held = held

    def hear(self) -> bool:
        """Take one message; False when there is nothing more to talk about."""
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(self.connection, MOST_BYTES, STANDARD, socket.MSG_CMSG_CLOEXEC)
            message = json.loads(data) if data else None
            if not isinstance(message, dict):
                raise BadAsk("bad_request", "not a request")
            if self.pid:
                self._signal(message)
            else:
                self._begin(message, fds)
            return True
        except BlockingIOError:
            return True
        except (BadAsk, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.say({"error": str(error)[:500]})
            self._hang_up()
            return False
        finally:
            for fd in fds:
                os.close(fd)

    def _begin(self, message: dict[str, Any], fds: list[int]) -> None:
        if len(fds) != STANDARD:
            raise BadAsk("bad_request", "a request brings its standard streams")
        self.pid = self._start(message, Given(fds))

    def _signal(self, message: dict[str, Any]) -> None:
        number = message["signal"]
        if type(number) is not int or not 1 <= number <= 64:
            raise BadAsk("bad_request", "signal must be a number from 1 to 64")
        self._kill(number)

    def _hang_up(self) -> None:
        """Who asked is gone, or talks nonsense: its command goes, too."""
        if self.pid:
            self._kill(signal.SIGKILL)

    def _kill(self, number: int) -> None:
        for target in (-self.pid, self.pid):  # between its fork and its setsid it leads no group yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                processes.kill(target, number, self._held)
                return

    def say(self, message: dict[str, Any]) -> None:
        """Tell the asker; one that does not read is not waited for."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode())
