"""The zygote: holds a template's imports, and forks sandboxes on the node's word.

One per tenant and template, exec'd fresh. One thread, no secret, no socket but its control channel. It lives in
its tenant's user namespace: whatever a template's packages do at import reaches, at worst, that tenant.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable

from ringfence.guest import agent, immortal, init, lone, reseed, runner, settle, steps, table
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.birth import ENDS, Birth, Unborn
from ringfence.guest.plan import BROKEN, CHANNEL_FD, NOBODY, SLOT_SIZE, USER_ID, Plan, plan_from

CONTROL_FD: Final = 3
MAX_MESSAGE: Final = 4096
FD: Final = struct.Struct("=i")
FDS: Final = struct.Struct("=4i")  # a lone run brings its outputs and the page for its fate
FD_SPACE: Final = socket.CMSG_SPACE(FDS.size)
GO: Final = b"G"
ID_SIZE: Final = 27
HEADER: Final = struct.Struct(f">IBI{ID_SIZE}s")  # clone flags, how uids are mapped, uid slot, sandbox id; then JSON
RANGE: Final = 1  # a uid range of its own
SINGLE: Final = 2  # the one uid of whoever started us
MAX_SHAPES: Final = 64
REHEARSALS: Final = 8  # after these the interpreter has specialised what it runs: forks do not write that again
ONE_USER: Final = b"%d 0 1\n" % USER_ID
SPAWNED, FAILED, READY = b"S", b"F", b"R"  # the first byte of what the zygote says; or BROKEN


class Prepared:
    """A shape's plan, its compiled set-up and the frame that says it is in force."""

    __slots__ = ("births", "place", "plan", "program", "ready")

    def __init__(self, plan: Plan, program: steps.Program, ready: bytes, place: lone.Place | None) -> None:
        self.plan = plan
        self.program = program
        self.ready = ready
        self.place = place
        self.births: dict[int, Birth] = {}


class Zygote:
    """State shared by every fork: configuration, the imports, and the generators to reseed."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.seccomp = base64.b64decode(config["seccomp"])
        self.landlock_abi = sc.landlock_abi()
        self.preload: list[str] = config["preload"]
        self.python: str | None = config["python"]  # as runtimes/base.py says
        self.reseeders: list[reseed.Reseeder] = []
        self.fresh: list[str] = []
        self.machine = table.machine()
        self.cloners: dict[int, sc.Cloner] = {}
        self.shapes: dict[bytes, Prepared] = {}
        self.tid_address = sc.thread_id_address()
        self.init = init.Init(self.tid_address)
        self.plain = False  # whether births must go through Python

    def warm_up(self) -> None:
        """Import what the template asks for, run a throwaway program, and settle the heap for sharing."""
        hooks = agent.imported(self.preload)
        self.fresh = runner.fresh_argv(self.preload, agent.ORDER_FD, self.python)
        for name in agent.LATE_IMPORTS if self.python is not None else ():
            importlib.import_module(name)
        for _ in range(REHEARSALS):
            runner.rehearse()
            lone.rehearse()
        runner.hide()
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(f"preloading left {threads} threads running; a fork would lose them")
        self.reseeders = [*hooks, *reseed.find()]
        gc.collect()
        gc.disable()  # a collection in a child would touch, and so copy, every page
        immortal.make()  # before the next line, which hides what is alive
        runner.make_streams()
        gc.freeze()
        sc.trim_heap()
        settle.move(self.machine)

    def serve(self) -> None:
        """Fork on request until the node hangs up.

        Between two forks this touches as little as it can: every page written here after a fork is a page copied.
        What a request says in detail is read by the child.
        """
        while True:
            data, ancillary, _, _ = self.control.recvmsg(MAX_MESSAGE, FD_SPACE)
            if not data:
                return
            received = ancillary[0][2]
            ends = FDS.unpack(received) if len(received) == FDS.size else FD.unpack(received)
            try:
                self.spawn(data, ends)
            except OSError as error:
                self.control.send(FAILED + data[HEADER.size - ID_SIZE : HEADER.size] + str(error).encode())
            finally:
                for fd in ends:
                    os.close(fd)

    def spawn(self, request: bytes, ends: tuple[int, ...]) -> None:
        """Fork one sandbox around its channel (and what a lone run has beside it), map its uids, hand out a handle."""
        flags, mapped, slot, name = HEADER.unpack_from(request)
        prepared = self.prepared(request[HEADER.size :])
        cloner = self.cloners.get(flags) or self.cloners.setdefault(flags, sc.Cloner(flags, self.tid_address))
        birth = self.birth(prepared, cloner) if len(ends) == ENDS else None
        pid, pidfd = cloner.clone() if birth is None else self.give_birth(birth, ends)
        if pid == 0 and birth is not None:
            self.be_alone(prepared)
        if pid == 0:
            self.become_sandbox(prepared, ends)
        try:
            if mapped:
                _map_ids(pid, slot, ranges=mapped == RANGE)
            self.control.sendmsg([SPAWNED, name], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD.pack(pidfd))])
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(pidfd)

    def prepared(self, shape: bytes) -> Prepared:
        """The set-up for this shape of limits, compiled when it is first seen."""
        known = self.shapes.get(shape)
        if known is None:
            if len(self.shapes) >= MAX_SHAPES:
                self.shapes.clear()
            plan = plan_from(shape)
            program = steps.Program(steps.Context(plan, self.seccomp, self.landlock_abi), self.machine)
            ready = agent.first_frame({"ready": {"layers": steps.in_force(plan, self.landlock_abi)}})
            place = lone.Place(plan, self.machine) if plan.lone else None
            known = self.shapes[shape] = Prepared(plan, program, ready, place)
            gc.freeze()  # else each fork's collector looks through it, and copies every page that it is on
        return known

    def become_sandbox(self, prepared: Prepared, ends: tuple[int, ...]) -> None:
        """In the child: wait for the node's word, set up, serve. Never returns."""
        code = 1
        try:
            for place, fd in enumerate(ends, CHANNEL_FD):  # ascending, as received: none is overwritten unsaved
                os.dup2(fd, place)  # the first over the control channel: a sandbox has no way to the zygote
            if os.read(CHANNEL_FD, 1) == GO:
                prepared.program.set_up()
                if prepared.place is not None:
                    self.run_alone(prepared)
                serve = agent.serve_now if prepared.plan.warm_runner else agent.serve_when_asked
                serve(self.agent_of(prepared.plan), prepared.ready)
                code = 0
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the zygote's own loop
            _complain(error)
        finally:
            os._exit(code)

    def birth(self, prepared: Prepared, cloner: sc.Cloner) -> Birth | None:
        """How a lone run's sandbox of this shape comes about without Python; None where that cannot be."""
        if prepared.place is None or self.machine is None or not prepared.program.whole:
            return None
        known = prepared.births.get(id(cloner))
        if known is None and not self.plain:
            try:
                known = Birth(self.machine, cloner, prepared.program, self.init)
            except OSError:
                self.plain = True
                return None
            prepared.births[id(cloner)] = known
            gc.freeze()
        return known

    def give_birth(self, birth: Birth, ends: tuple[int, ...]) -> tuple[int, int]:
        """(pid, pidfd) here, (0, -1) in the interpreter; a process 1 that could not be set up says so and ends."""
        try:
            return birth.give(ends)
        except sc.SetupError:
            raise  # still the zygote: there is no child
        except Unborn:
            os._exit(1)
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the zygote's own loop
            try:
                _complain(error)
            finally:
                os._exit(1)

    def run_alone(self, prepared: Prepared) -> None:
        """Leave process 1 to reap, and become the interpreter of a lone run. Never returns."""
        self.init.fork()
        self.be_alone(prepared)

    def be_alone(self, prepared: Prepared) -> None:
        """Be the interpreter of a lone run, in a sandbox that is set up. Never returns."""
        code, place = 1, prepared.place
        try:
            if place is None:
                raise steps.StepFailed("agent", "this is no lone run")
            place.take()
            code = lone.Lone(prepared.plan, place, prepared.ready, self.reseeders).serve()
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the zygote's own loop
            _complain(error)
        finally:
            os._exit(code)

    def agent_of(self, plan: Plan) -> Callable[[], agent.Agent]:
        """How to make the agent, once it is needed."""
        return lambda: agent.Agent(plan, CHANNEL_FD, self.reseeders, self.fresh, self.tid_address)


def _complain(error: BaseException) -> None:
    """The one word a sandbox may say before it is ready: which layer could not be put in force."""
    layer = error.layer if isinstance(error, steps.StepFailed) else "agent"
    answer = {"refused": {"layer": layer, "cause": f"{type(error).__name__}: {error}"[:500]}}
    with contextlib.suppress(OSError):  # the node hung up: nobody is left to be told
        os.write(CHANNEL_FD, agent.first_frame(answer))


def _map_ids(pid: int, slot: int, *, ranges: bool) -> None:
    """Give the child its own uid range; without privileges there is one uid, and it is called `user`."""
    base = slot * SLOT_SIZE
    lines = b"0 %d %d\n%d %d 1\n" % (base, SLOT_SIZE - 1, NOBODY, base + SLOT_SIZE - 1) if ranges else ONE_USER
    for kind in (b"uid_map", b"gid_map"):
        fd = os.open(b"/proc/%d/%s" % (pid, kind), os.O_WRONLY)
        try:
            os.write(fd, lines)
        finally:
            os.close(fd)


def main() -> None:
    """Entry point: configuration on descriptor 4, control channel on descriptor 3."""
    sc.do([sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL), sc.set_name("ringfence")])
    control = socket.socket(fileno=CONTROL_FD)
    with os.fdopen(4) as file:
        config = json.load(file)
    os.environ.clear()
    os.environ.update(config["env"])
    sys.argv = [""]
    zygote = Zygote(control, config)
    try:
        zygote.warm_up()
    except Exception as error:  # noqa: BLE001 - a template's imports can raise anything; the node must hear of it
        control.send(BROKEN + f"{type(error).__name__}: {error}"[:2000].encode())
        return
    os.environ.update(config["late_env"])
    if zygote.python is not None:
        sys.path[:] = []  # what lies there in an image is another library's
        sys.path_importer_cache.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead sandboxes are reaped by the kernel
    control.send(READY)
    with contextlib.suppress(ConnectionError):  # a node that was killed hangs up less politely
        zygote.serve()
