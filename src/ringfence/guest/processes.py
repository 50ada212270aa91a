"""Programs inside the sandbox: start them, move their bytes with back-pressure, learn their fate."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import signal
import struct
import termios
import time
from collections import deque
from collections.abc import Callable

from ringfence.guest import frames
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.init import FULL_BYTES
from ringfence.guest.loop import Loop, Timer
from ringfence.guest.plan import HOME, USER_ID
from ringfence.guest.steps import BUILDING_CAPABILITIES
from ringfence.guest.stream import Handler, Stream

TAIL: Final = 64 * 1024  # bytes of each output kept for whoever attaches later
GOING_SECONDS: Final = 0.25  # a runner that reported its end and is still there by then is made to go
ENDING_SECONDS: Final = 1.0  # between a process's descriptors being closed and its end being told
TERMINAL_HOLDS: Final = 128 * 1024  # more bytes than a terminal keeps on their way (64 KiB, and 4 KiB to be read)


def scratch_full() -> bool:
    """Whether the sandbox's scratch has no bytes or no files left."""
    room = os.statvfs(HOME)
    return room.f_bavail * room.f_bsize < FULL_BYTES or 0 == room.f_favail < room.f_files  # gVisor counts no files


def doomed(pid: int) -> bool | None:
    """Whether our child is dead, or has yet to notice that it was killed; None where the kernel does not say."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        return True
    try:
        with open(f"/proc/{pid}/status") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except OSError:
        return True
    return any(int(mask, 16) for mask in pending) if pending else None  # gVisor has no such lines


def was_killed(pid: int) -> bool:
    """Whether our child, which is ending or has ended, does so by a signal; it stays to be reaped.

    One that has not ended within ENDING_SECONDS was not killed.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return ended.si_code in {os.CLD_KILLED, os.CLD_DUMPED}


def kill(pid: int, number: int, held: int) -> None:
    """Signal a process or, for a negative pid, a group; raises ProcessLookupError when there is none.

    `held` are the agent's capabilities (steps.held); zero: it has none, and one uid.
    """
    if not held:
        os.kill(pid, number)
        return
    sc.execute(sc.set_capabilities(1 << sc.CAP_KILL, held))
    try:
        os.kill(pid, number)
    finally:
        sc.execute(sc.set_capabilities(0, held))


def become(uid: int, gid: int, held: int) -> None:
    """In a fork: give up the agent's identity for good, to a process with every capability set empty.

    Only a build's `root` keeps some, over its own files.
    """
    if held:
        sc.execute(sc.set_capabilities(held, held))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    kept = held if uid == 0 and held == BUILDING_CAPABILITIES else 0
    sc.do([sc.set_capabilities(kept, kept), sc.prctl(sc.PR_SET_DUMPABLE, 1)])
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(score, b"1000")  # out of memory: programs die before the agent that reports it
    os.close(score)


def reset_signals() -> None:
    """In a fork: back to what a fresh program expects."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Ends:
    """Both sides of a program's standard streams."""

    def __init__(self, pty: dict[str, Any] | None, stdin: bool) -> None:
        self.child: tuple[int, int, int]
        self.tty = pty is not None
        self.stdin = self.stdout = self.stderr = -1
        if pty is not None:
            master, slave = os.openpty()
            set_size(master, pty)
            self.stdin, self.stdout, self.child = os.dup(master), master, (slave, slave, slave)
            return
        null = -1
        if stdin:
            null, self.stdin = os.pipe()
        else:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.stdout, out = os.pipe()
        self.stderr, err = os.pipe()
        self.child = (null, out, err)

    def into_place(self) -> None:
        """In the fork: become descriptors 0, 1 and 2, and the controlling terminal if there is one."""
        os.setsid()
        for number, fd in enumerate(self.child):
            os.dup2(fd, number)
        if self.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def close_child(self) -> None:
        """In the agent: the program has its own copies now."""
        for fd in set(self.child):
            os.close(fd)


def set_size(fd: int, size: dict[str, Any]) -> None:
    """Resize a terminal; the numbers are clamped to what the kernel's 16 bits hold."""
    rows, cols = (max(1, min(int(size.get(k, d)), 4096)) for k, d in (("rows", 24), ("cols", 80)))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class Process(Handler):
    """One program: its descriptors, its tail, whoever is attached, and finally its fate."""

    def __init__(self, loop: Loop, pid: int, ends: Ends, about: dict[str, Any], held: int) -> None:
        self._loop = loop
        self._held = held
        self._timer: Timer | None = None
        self._pending: deque[tuple[Stream, bytes]] = deque()  # input not yet taken, and who gets the credit for it
        self._stdin_eof = False
        self._attached: list[Stream] = []
        self._outputs: dict[int, int] = {}  # descriptor -> frame type
        self._left: dict[int, int] | None = None  # after exit: bytes still to be taken from each descriptor
        self._how = ""
        self._ends = ends
        self.tails: dict[int, bytearray] = {}
        self.pid = pid
        self.about = about
        self.started_at = time.time()
        self.fate: dict[str, Any] | None = None
        self.finished = False
        self.resized: Callable[[], None] | None = None  # where the kernel does not tell programs itself
        self.report: mmap.mmap | None = None  # where a runner leaves its exit code before it exits

    def begin(self, timeout: float | None) -> None:
        """Start moving bytes and watching the clock."""
        ends = self._ends
        for fd, type_ in ((ends.stdout, frames.STDOUT), (ends.stderr, frames.STDERR)):
            if fd >= 0:
                os.set_blocking(fd, False)
                self._outputs[fd] = type_
                self._loop.add_reader(fd, lambda fd=fd: self._readable(fd))  # type: ignore[misc]
        if ends.stdin >= 0:
            os.set_blocking(ends.stdin, False)
        if timeout is not None:
            self._timer = self._loop.call_later(timeout, self._too_late)

    # -- output ---------------------------------------------------------------------------------------------

    def _room(self) -> int:
        return min((s.room for s in self._attached), default=frames.MAX_DATA)

    def _readable(self, fd: int) -> None:
        while self._read_once(fd) and self._left is not None:
            pass  # nothing more is coming: what is there is taken at once

    def _read_once(self, fd: int) -> bool:
        """Move one piece; whether there may be another."""
        room = self._room()
        if not room:
            self._loop.remove_reader(fd)
            return False
        if self._left is not None:
            room = min(room, self._left[fd])
        try:
            data = os.read(fd, room) if room else b""
        except BlockingIOError:
            if self._left is None:
                return False
            data = b""
        except OSError:  # a terminal whose last user left says EIO
            data = b""
        if data:
            self._emit(self._outputs[fd], data)
        if self._left is not None:
            self._left[fd] -= len(data)
        if not data or (self._left is not None and not self._left[fd]):
            self._close_output(fd)
            return False
        return True

    def _emit(self, type_: int, data: bytes) -> None:
        tail = self.tails.setdefault(type_, bytearray())
        tail += data
        if len(tail) > TAIL:
            del tail[: len(tail) - TAIL]
        for stream in self._attached:
            (stream.out if type_ == frames.STDOUT else stream.err)(data)

    def _close_output(self, fd: int) -> None:
        self._loop.forget(fd)
        os.close(fd)
        del self._outputs[fd]
        if not self._outputs and self.fate is None and self.report is not None and self.report[0]:
            self._reported(self.report[1])
        self._maybe_finish()

    def _reported(self, code: int) -> None:
        """The interpreter said its code and closed its outputs: answer now, and see that it does go."""
        self.ended(code, None, None)
        self._timer = self._loop.call_later(GOING_SECONDS, lambda: self.signal_group(signal.SIGKILL))

    def on_room(self) -> None:
        """Whoever was slow has caught up: read on."""
        for fd in list(self._outputs):
            self._loop.add_reader(fd, lambda fd=fd: self._readable(fd))  # type: ignore[misc]
            self._readable(fd)

    # -- input ----------------------------------------------------------------------------------------------

    def takes(self, into: str) -> bool:
        """Whether it has an input of this kind that is open: "stdin" or "pty"; any program takes "" from anybody."""
        return not into or (self._ends.stdin >= 0 and not self._stdin_eof and self._ends.tty is (into == "pty"))

    def feed(self, stream: Stream, data: bytes) -> None:
        """Queue bytes for the program; credit goes back as it takes them."""
        if self._ends.stdin < 0:
            stream.consumed(len(data))  # nobody reads: taken and dropped, as with /dev/null
            return
        self._pending.append((stream, data))
        self._flush()
        if self._pending:
            self._loop.add_writer(self._ends.stdin, self._flush)

    def _flush(self) -> None:
        while self._pending:
            stream, data = self._pending.popleft()
            try:
                sent = os.write(self._ends.stdin, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(data)  # the program closed its input: the rest has nowhere to go
            stream.consumed(sent)
            if sent < len(data):
                self._pending.appendleft((stream, data[sent:]))
                return
        self._loop.remove_writer(self._ends.stdin)
        if self._stdin_eof:
            self.close_stdin()

    def close_stdin(self) -> None:
        """End of input, once everything queued is written. A terminal is sent its end-of-file character."""
        self._stdin_eof = True
        if self._ends.stdin < 0 or self._pending:
            return
        if self._ends.tty:
            self._stdin_eof = False
            with contextlib.suppress(OSError):  # nobody is left at the terminal
                os.write(self._ends.stdin, b"\x04")
            return
        self._loop.forget(self._ends.stdin)
        os.close(self._ends.stdin)
        self._ends.stdin = -1

    # -- the streams attached -------------------------------------------------------------------------------

    def attach(self, stream: Stream, *, replay: bool, owner: bool) -> None:
        """Send what is kept if asked, then everything live, then the fate. An owner is who started it."""
        stream.handler = Attached(self, stream, owner=owner)
        stream.control({"started": {"pid": self.pid}})
        if replay:
            for type_, tail in self.tails.items():
                (stream.out if type_ == frames.STDOUT else stream.err)(bytes(tail))
        if self.finished:
            stream.end(self._answer())
        else:
            self._attached.append(stream)

    def detach(self, stream: Stream) -> None:
        """Forget a stream that lost interest."""
        if stream in self._attached:
            self._attached.remove(stream)
            self.on_room()

    def notice(self, text: str) -> None:
        """A line of ours to everyone at this terminal."""
        for stream in self._attached if self._ends.tty else ():
            stream.out(f"\r\n[ringfence] {text}\r\n".encode()[: stream.room])

    def resize(self, size: dict[str, Any]) -> None:
        """Tell the terminal its new size."""
        if self._ends.tty and self._ends.stdin >= 0:
            set_size(self._ends.stdin, size)
            if self.resized is not None:
                self.resized()

    # -- the end --------------------------------------------------------------------------------------------

    def signal_group(self, number: int) -> None:
        """Signal the program and what it started in its own session; gone is fine."""
        # Between its fork and its setsid the program leads no group yet: then it is signalled alone.
        for target in (-self.pid, self.pid) if self.fate is None else (-self.pid,):
            try:
                kill(target, number, self._held)
            except (ProcessLookupError, PermissionError):
                continue
            return

    def _too_late(self) -> None:
        if self.fate is None:
            self._how = "timed_out"
            self.signal_group(signal.SIGKILL)

    def abandon(self) -> None:
        """Its owner lost interest: stop it."""
        if self.fate is None:
            self._how = self._how or "stopped"
            self.signal_group(signal.SIGKILL)

    def ended(self, code: int | None, number: int | None, usage: resource.struct_rusage | None) -> None:
        """Its fate is known: take what is in the pipes, then answer."""
        if self._timer is not None:
            self._timer.cancel()
        if self.fate is not None:
            return
        how = self._how or ("exited" if number is None else "signalled")
        self.fate = {
            "how": how,
            "code": code,
            "signal": number,
            "cpu_seconds": usage.ru_utime + usage.ru_stime if usage else 0.0,
            "peak_memory_bytes": usage.ru_maxrss * 1024 if usage else 0,
            "scratch_full": bool(code) and scratch_full(),
        }
        # A grandchild may hold the pipe and write on: only what was there at the end is the program's output.
        self._left = {fd: TERMINAL_HOLDS if self._ends.tty else _waiting(fd) for fd in self._outputs}
        self.on_room()
        self._maybe_finish()

    def _answer(self) -> dict[str, Any]:
        return {"exit": self.fate}

    def _maybe_finish(self) -> None:
        if self.fate is None or self._outputs or self.finished:
            return
        self.finished = True
        if self._ends.stdin >= 0:
            self._loop.forget(self._ends.stdin)
            os.close(self._ends.stdin)
            self._ends.stdin = -1
        while self._pending:
            stream, data = self._pending.popleft()
            stream.consumed(len(data))  # nobody will read it: its sender need not wait
        for stream in self._attached:
            stream.end(self._answer())
        self._attached.clear()


def _waiting(fd: int) -> int:
    """Bytes in a pipe. A terminal would not count what it has not yet passed from one side to the other."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


class Attached(Handler):
    """A stream's hooks, passed on to its process."""

    def __init__(self, process: Process, stream: Stream, *, owner: bool) -> None:
        self._process = process
        self._stream = stream
        self._owner = owner

    def on_stdin(self, data: bytes) -> None:
        """Bytes for the program."""
        self._process.feed(self._stream, data)

    def on_eof(self) -> None:
        """End of its input."""
        self._process.close_stdin()

    def on_room(self) -> None:
        """The reader caught up."""
        self._process.on_room()

    def on_control(self, message: dict[str, Any]) -> None:
        """resize or signal, on the open stream."""
        if isinstance(message.get("resize"), dict):
            self._process.resize(message["resize"])
        if isinstance(message.get("signal"), int):
            self._process.signal_group(message["signal"])

    def on_cancel(self) -> None:
        """The opener left: a program it started, and did not detach, goes with it."""
        self._process.detach(self._stream)
        if self._owner and not self._process.about.get("detach"):
            self._process.abandon()
        self._stream.end({"exit": self._process.fate} if self._process.fate else {})


def lookup_user(name: str) -> tuple[int, int]:
    """uid and gid of `user`, `root`, any name in the template's passwd, or digits. Raises KeyError."""
    if name in {"", "user"}:
        return USER_ID, USER_ID
    if name == "root":
        return 0, 0
    with open("/etc/passwd") as file:
        for line in file:
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2]), int(fields[3])
    raise KeyError(name)
