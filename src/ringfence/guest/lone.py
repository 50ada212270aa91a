"""A lone run: one piece of source code in the interpreter that waits, and no agent beside it.

The interpreter reads its order from the channel itself and closes it before the program begins. Its outputs are
descriptors that the node reads, and its exit code goes onto a page that the node can read: no descriptor of ours is
ever in a program's hands. What a program scribbles over that page is a lie about its own fate, and about nothing else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import json
import mmap
import os
import select

from ringfence.guest import frames, reseed, runner, table
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.asks import BadAsk, order_of
from ringfence.guest.init import STREAM
from ringfence.guest.plan import CHANNEL_FD, FATE_FD, OUTPUT_FDS, USER_ID, Plan
from ringfence.guest.processes import scratch_full
from ringfence.guest.steps import StepFailed

NAME: Final = "main.py"
STARTED: Final = frames.encode(frames.CONTROL, STREAM, b'{"started": {"pid": 2}}')
#: Nobody has asked for this long: time to have pages copied that a run will write. Where sandboxes are asked for as
#: fast as they are made, that costs each a tenth of its processor time and saves nobody any waiting.
IDLE_MS: Final = 50
FATE_SIZE: Final = 3  # what the page says: that it is over, the exit code, whether the scratch was full
_MAP_SHARED_FIXED: Final = 0x11
_READ_WRITE: Final = 3


def fate(page: bytes) -> dict[str, Any] | None:
    """What the page says, in the words of an agent's END; None when the interpreter has not come to its end."""
    if len(page) < FATE_SIZE or page[0] != runner.DONE:
        return None
    return {"how": "exited", "code": page[1], "signal": None, "scratch_full": bool(page[1] and page[2])}


def read_frame(fd: int) -> frames.Frame:
    """One frame, waiting for it. Raises EOFError when the other side hangs up, FrameError for what is none."""
    parser = frames.Parser()
    found: list[frames.Frame] = []
    while not found:
        data = os.read(fd, frames.MAX_DATA)
        if not data:
            raise EOFError
        found = parser.feed(data)
    return found[0]


def rehearse() -> None:
    """Take an order that is none, as a real one is taken: the pages this dirties are copied while nobody waits."""
    reader, writer = os.pipe()
    try:
        os.write(writer, frames.encode(frames.OPEN, STREAM, b'{"op": "run", "code": "", "argv": []}'))
        order_of(json.loads(read_frame(reader).payload), NAME)
    finally:
        os.close(reader)
        os.close(writer)


class Place:
    """How the interpreter's process is arranged, prepared in the zygote: descriptors, name, and the page."""

    def __init__(self, plan: Plan, machine: table.Machine | None) -> None:
        self.page = mmap.mmap(
            -1, mmap.PAGESIZE
        )  # its address is what counts: the sandbox's own page comes to lie there
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        out, err = OUTPUT_FDS
        ids = (USER_ID,) * 3
        self._calls = [
            *([sc.call("setresgid", *ids), sc.call("setresuid", *ids)] if plan.root else []),
            sc.call("setsid"),
            sc.call("dup2", out, 1),
            sc.call("dup2", err, 2),
            sc.call("mmap", address, mmap.PAGESIZE, _READ_WRITE, _MAP_SHARED_FIXED, FATE_FD, 0, expect=address),
            sc.close_from(CHANNEL_FD + 1),
            sc.prctl(sc.PR_SET_DUMPABLE, 1),  # its own /proc entries are a program's to read
            *sc.write_file("/proc/self/oom_score_adj", "1000", CHANNEL_FD + 1),  # it goes before process 1 does
            sc.set_name("python3"),
        ]
        self._table = table.Table(machine, self._calls)

    def take(self) -> None:
        """Make every call. Raises StepFailed."""
        made = self._table.execute()
        if made != len(self._calls):
            raise StepFailed("agent", self._table.failure(made))


class Lone:
    """The interpreter's side of a lone run."""

    def __init__(self, plan: Plan, place: Place, ready: bytes, reseeders: list[reseed.Reseeder]) -> None:
        self._plan = plan
        self._page = place.page
        self._ready = ready
        self._reseeders = reseeders

    def serve(self) -> int:
        """Renew random state, say ready, run the one order that comes. Gives the exit code of this process."""
        # Without the words and enumerations that signal.signal() puts around them.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if self._plan.fault == "reseed":
            raise StepFailed("reseed", "failed on a test's wish")
        if "reseed" not in self._plan.without:
            reseed.apply(self._reseeders)
        runner.prepare(streams=False)
        os.write(CHANNEL_FD, self._ready)
        asked = select.poll()
        asked.register(CHANNEL_FD, select.POLLIN)
        if not asked.poll(IDLE_MS):
            runner.rehearse()
            rehearse()
        try:
            request = json.loads(read_frame(CHANNEL_FD).payload)
        except EOFError:
            return 0
        return self._run(request)

    def _run(self, request: dict[str, Any]) -> int:
        myself = os.getpid()
        try:
            order = order_of(request, NAME)
        except BadAsk as refusal:
            return _refuse(refusal.code, str(refusal))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return _refuse("bad_request", f"{type(error).__name__}: {error}")
        os.write(CHANNEL_FD, STARTED)
        os.close(CHANNEL_FD)
        code = runner.perform(order) & 0xFF
        if os.getpid() == myself:  # a child that the program forked speaks for nobody
            self._page[:FATE_SIZE] = bytes((runner.DONE, code, code != 0 and scratch_full()))
            for fd in (1, 2):
                try:
                    os.close(fd)
                except OSError:  # the program closed it before us
                    continue
        return code


def _refuse(code: str, cause: str) -> int:
    answer = {"error": {"code": code, "cause": cause}}
    os.write(CHANNEL_FD, frames.encode(frames.END, STREAM, json.dumps(answer).encode()))
    return 1
