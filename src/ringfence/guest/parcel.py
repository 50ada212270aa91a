"""A sandbox's files taken out and put back by its agent: `pack` and `unpack`.

Every program is ended first, so that nothing changes while it is read. The reading and the writing (archive.py) are
done by a fork of the agent, which is whoever owns what it reads; the agent moves the bytes, at most a window of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable

from ringfence.guest import archive, processes, steps
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.context import CODES, Refused
from ringfence.guest.loop import Loop
from ringfence.guest.plan import CHANNEL_FD, HOME
from ringfence.guest.stream import Handler, Stream

#: Places for what belongs to running programs (sockets, pid files, shared memory), as empty afterwards as after a boot.
PASSING: Final = ("/run", "/dev/shm")  # noqa: S108 - names of mounts
ALONE_SECONDS: Final = 10.0  # within which every program has gone, memory taken apart included
LOOK_SECONDS: Final = 0.005
REPORT_BYTES: Final = 4096
REPORT_FD: Final = CHANNEL_FD + 1
PIECE: Final = 64 * 1024

Work = Callable[[int, archive.Identity], "dict[str, Any]"]


class Yard:
    """What a parcel needs of its agent."""

    def __init__(
        self, loop: Loop, reap: Callable[[], None], helpers: dict[int, Callable[[], None]], held: int, tid: int
    ) -> None:
        self.loop = loop
        self.reap = reap
        self.helpers = helpers  # what to call when a child of ours that is no program has ended
        self.held = held
        self.tid_address = tid


def kept() -> list[str]:
    """The places that are put away: those that were bound into this sandbox, but the passing ones."""
    places = [place for _, place, _, _, _ in steps.SCRATCH_BINDS if place not in PASSING]
    workspace = steps.WORKSPACE[1]
    return [*places, workspace] if os.path.ismount(workspace) else places


def _packed(fd: int, identity: archive.Identity) -> dict[str, Any]:
    packer = archive.Packer(fd, identity)
    packer.pack(kept())
    return {"count": packer.entries, "size": packer.size}


def _unpacked(fd: int, identity: archive.Identity) -> dict[str, Any]:
    unpacker = archive.Unpacker(fd, identity)
    unpacker.unpack(kept())
    return {"count": unpacker.entries}


def _said(error: BaseException) -> dict[str, Any]:
    """What went wrong, as the asker is told it."""
    if isinstance(error, Refused):
        code, cause = error.code, str(error)
    elif isinstance(error, OSError):
        code, cause = CODES.get(error.errno or 0, "io"), f"{error.strerror}: {os.fsdecode(error.filename or '')[:200]}"
    else:
        code, cause = "io", type(error).__name__
    return {"error": {"code": code, "cause": cause.encode("utf-8", "replace").decode()}}


class Parcel(Handler):
    """One request being served: alone, then a helper at one end of a pipe and the stream at the other."""

    def __init__(self, yard: Yard, stream: Stream) -> None:
        self._yard = yard
        self._stream = stream
        self._pid = 0
        self._data = -1  # our end of the pipe
        self._report = -1
        self._ended = False
        self._until = time.monotonic() + ALONE_SECONDS
        stream.handler = self
        self._clear()

    # -- alone --------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """End every other process of this sandbox, and look again until there is none."""
        if self._stream.closed:
            return
        if os.getpid() != 1:  # the signal below goes to everybody that can be seen
            self._stream.fail("busy", "the agent is not alone in its process namespace")
            return
        with contextlib.suppress(ProcessLookupError):
            processes.kill(-1, signal.SIGKILL, self._yard.held)
        self._yard.reap()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # orphans come to process 1: without a child there is nobody
            self._begin()
            return
        if time.monotonic() > self._until:
            self._stream.fail("busy", "a program does not end")
        else:
            self._yard.loop.call_later(LOOK_SECONDS, self._clear)

    def _begin(self) -> None:
        raise NotImplementedError

    # -- the helper ---------------------------------------------------------------------------------------------

    def _help(self, work: Work, theirs: int, ours: int) -> None:
        report, theirs_report = os.pipe()
        try:
            self._pid = sc.fork(self._yard.tid_address)
        except OSError as error:
            for fd in (report, theirs_report, theirs, ours):
                os.close(fd)
            self._stream.fail("busy", str(error))
            return
        if self._pid == 0:
            _become_helper(work, theirs, theirs_report, bool(self._yard.held))
        os.close(theirs)
        os.close(theirs_report)
        os.set_blocking(ours, False)
        self._data, self._report = ours, report
        self._yard.helpers[self._pid] = self._gone

    def _gone(self) -> None:
        """The helper has ended."""
        self._ended = True
        self._finish()

    def _finish(self) -> None:
        """Answer, once the helper has ended and nothing of it is on its way."""
        if not self._ended or self._data >= 0:
            return
        try:
            answer = json.loads(os.read(self._report, REPORT_BYTES))
        except ValueError:
            answer = {"error": {"code": "busy", "cause": "it was killed; the sandbox may have too little memory"}}
        self._close()
        self._stream.end(answer)

    def _close_data(self) -> None:
        if self._data >= 0:
            self._yard.loop.forget(self._data)
            os.close(self._data)
            self._data = -1

    def _close(self) -> None:
        self._close_data()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def on_cancel(self) -> None:
        """Nobody wants it any more."""
        if self._pid and not self._ended:
            self._yard.helpers[self._pid] = lambda: None
            with contextlib.suppress(ProcessLookupError):
                processes.kill(self._pid, signal.SIGKILL, self._yard.held)
        self._close()
        self._stream.end({})


class Packing(Parcel):
    """Files on their way out."""

    def _begin(self) -> None:
        ours, theirs = os.pipe()
        self._help(_packed, theirs, ours)
        if self._data >= 0:
            self._yard.loop.add_reader(self._data, self._readable)

    def _readable(self) -> None:
        room = self._stream.room
        if not room:
            self._yard.loop.remove_reader(self._data)  # on_room resumes
            return
        data = os.read(self._data, min(room, PIECE))
        if data:
            self._stream.out(data)
            return
        self._close_data()
        self._finish()

    def on_room(self) -> None:
        """The other end caught up."""
        if self._data >= 0:
            self._yard.loop.add_reader(self._data, self._readable)


class Unpacking(Parcel):
    """Files on their way in."""

    def __init__(self, yard: Yard, stream: Stream) -> None:
        self._pending = bytearray()
        self._eof = False
        super().__init__(yard, stream)

    def _begin(self) -> None:
        theirs, ours = os.pipe()
        self._help(_unpacked, theirs, ours)
        self._flush()

    def on_stdin(self, data: bytes) -> None:
        """A window of it at most is held here."""
        waiting = bool(self._pending)
        self._pending += data
        if not waiting:
            self._flush()

    def on_eof(self) -> None:
        """All of it was sent."""
        self._eof = True
        self._flush()

    def _flush(self) -> None:
        if self._data < 0:
            if self._pid:  # the helper is gone and takes nothing more
                self._drop()
            return
        try:
            sent = os.write(self._data, self._pending) if self._pending else 0
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            self._close_data()
            self._drop()
            self._finish()
            return
        del self._pending[:sent]
        self._stream.consumed(sent)
        if self._pending:
            self._yard.loop.add_writer(self._data, self._flush)
            return
        self._yard.loop.remove_writer(self._data)
        if self._eof:
            self._close_data()
            self._finish()

    def _drop(self) -> None:
        self._stream.consumed(len(self._pending))
        self._pending.clear()

    def _gone(self) -> None:
        """Whatever still comes, nobody reads it."""
        self._close_data()
        self._drop()
        super()._gone()


def _become_helper(work: Work, data: int, report: int, privileged: bool) -> None:
    """In the fork; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(data, CHANNEL_FD)
        os.dup2(report, REPORT_FD)
        sc.execute(sc.close_from(REPORT_FD + 1))
        sc.do([sc.prctl(sc.PR_SET_DUMPABLE, 1)])  # else its own /proc entries are not its to write
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(score, b"1000")  # out of memory: it dies before the agent that reports it
        os.close(score)
        answer = work(CHANNEL_FD, archive.Identity(privileged))
    except BaseException as error:  # noqa: BLE001 - nothing may unwind into the agent's loop
        answer = _said(error)
    try:
        os.write(REPORT_FD, json.dumps(answer).encode()[:REPORT_BYTES])
    finally:
        os._exit(0)


def op_measure(stream: Stream) -> None:
    """How many bytes the scratch holds, so that nobody begins what cannot end well; answers {"size"}."""
    room = os.statvfs(HOME)
    stream.end({"size": (room.f_blocks - room.f_bfree) * room.f_frsize})


def op_pack(yard: Yard, stream: Stream, _: dict[str, Any]) -> None:
    """End every program, then send what is in the kept places; answers {"count", "size"}."""
    Packing(yard, stream)


def op_unpack(yard: Yard, stream: Stream, _: dict[str, Any]) -> None:
    """End every program, then make the kept places what the stream says; answers {"count"}."""
    Unpacking(yard, stream)
