"""Process 1 of every sandbox: answers requests from the channel, starts programs, reaps orphans.

It runs as the sandbox's own user under the same filter as the programs. It is trusted with nothing outside:
were it taken over, the node would see wrong bytes from one sandbox.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import signal
import socket
from collections.abc import Callable

from ringfence.guest import acting, files, frames, parcel, processes, reseed, runner, sudo, tunnel, watch
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.asks import BadAsk, cwd_of, env_of, order_of
from ringfence.guest.context import Context
from ringfence.guest.loop import Loop
from ringfence.guest.plan import CHANNEL_FD, HOME, USER_ID, Plan
from ringfence.guest.steps import StepFailed, held
from ringfence.guest.stream import Channel, Handler, Stream

WARM_SECONDS: Final = 15.0  # a fresh interpreter (zygote = "none") imports the template's preload list first
FIRST_READ: Final = 4096  # a larger buffer would sit in every sandbox that nobody ever asks
NEXT_SPARE_SECONDS: Final = 0.05  # after a program began: its own start comes first
FINISHED_KEPT: Final = 64  # ended programs whose tail and fate can still be asked for
SHELLS: Final = ("/bin/bash", "/bin/sh")
ORDER_FD: Final = 3
#: Loaded while our files can still be seen; what a codec is asked for later would be looked for in vain.
LATE_IMPORTS: Final = ("encodings.idna", "encodings.latin_1", "encodings.ascii", "encodings.utf_8", "traceback")
#: Renews the locks of every logger there is, in case another thread held one. There is none, and they are many pages.
LOGGING_LOCKS: Final = ("logging", "_after_at_fork_child_reinit_locks")


def first_frame(message: dict[str, Any]) -> bytes:
    """The frame that precedes all streams: ready, or why not."""
    return frames.encode(frames.CONTROL, 0, json.dumps(message).encode())


def _shell() -> str:
    """The template's shell. Raises BadAsk where an image has none."""
    for path in SHELLS:
        if os.path.exists(path):
            return path
    raise BadAsk("no_shell", "this template has no shell; give the command as a list of arguments")


def imported(modules: list[str]) -> list[reseed.Reseeder]:
    """Import a template's preload list; returns what the modules want done in a child.

    Our bare forks run it by hand, in the interpreter's fork only.
    """
    hooks: list[reseed.Reseeder] = []
    register = os.register_at_fork

    def recording(**wanted: Any) -> None:
        register(**wanted)
        hook = wanted.get("after_in_child")
        if hook is not None and (getattr(hook, "__module__", ""), getattr(hook, "__name__", "")) != LOGGING_LOCKS:
            hooks.append(hook)

    os.register_at_fork = recording
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        os.register_at_fork = register
    return hooks


def _only_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


class Spare:
    """A fork of the interpreter that waits for its program."""

    def __init__(self, pid: int, ends: processes.Ends, orders: socket.socket, report: mmap.mmap) -> None:
        self.pid = pid
        self.ends = ends
        self.orders = orders
        self.report = report

    def answers(self) -> bool:
        """Whether it is still there: one that was killed says nothing more, however late it notices."""
        self.orders.settimeout(WARM_SECONDS)
        try:
            self.orders.sendall(runner.ASKED)
            while said := self.orders.recv(1):
                if said == runner.HERE:
                    return True
        except OSError:
            return False
        return False

    def discard(self) -> None:
        """Give back what was kept for it; it is dead."""
        self.orders.close()
        self.report.close()
        for fd in (self.ends.stdin, self.ends.stdout, self.ends.stderr):
            if fd >= 0:
                os.close(fd)


class Agent:
    """Requests in, frames out."""

    def __init__(
        self, plan: Plan, channel_fd: int, reseeders: list[reseed.Reseeder], fresh: list[str], tid_address: int
    ) -> None:
        self.plan = plan
        self.held = held(plan)
        self.fresh = fresh
        self.tid_address = tid_address
        self.loop = Loop()
        self.context = Context(loop=self.loop, home=HOME)
        self.channel = Channel(self.loop, channel_fd, self.opened, self.lost)
        self.reseeders = reseeders
        self.watch_children()
        os.chdir(HOME)
        self.programs: dict[int, processes.Process] = {}
        self.helpers: dict[int, Callable[[], None]] = {}  # children that are no programs, and whom their end concerns
        self.spare: Spare | None = None
        self.runs = 0
        self.base = HOME  # where programs start when nothing else is said
        self.extra: dict[str, str] = {}  # variables that every program from now on gets
        stays = plan.root and not plan.warm_runner
        self.sudo: sudo.Door | None = None
        if stays and os.path.exists(sudo.PROGRAM):
            with contextlib.suppress(OSError):  # no descriptor for it: then there is no sudo, and all else there is
                self.sudo = sudo.Door(self.loop, self.start_as, self.held)

    # -- requests -------------------------------------------------------------------------------------------

    def opened(self, stream: Stream, payload: bytes) -> None:
        """Answer one request; whatever it holds, the agent lives on."""
        try:
            request = json.loads(payload)
            name = request["op"]
            known = name in OWN_OPS or name in GUEST_OPS
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            stream.fail("bad_request", "not a request this agent knows")
            return
        try:
            if name in OWN_OPS:
                OWN_OPS[name](self, stream, request)
            elif request.get("user") in {None, "", "user"}:
                GUEST_OPS[name](self.context, stream, request)
            else:
                acting.serve(GUEST_OPS[name], self.context, stream, request, self._user(request))
        except BadAsk as refusal:
            stream.fail(refusal.code, str(refusal))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            stream.fail("bad_request", f"{type(error).__name__}: {error}")
        except OSError as error:
            stream.fail("busy" if error.errno in {11, 12} else "io", error.strerror or str(error))

    def lost(self) -> None:
        """The node hung up: there is nobody left to work for."""
        os._exit(0)

    def op_exec(self, stream: Stream, request: dict[str, Any]) -> None:
        """Start a program from an argument list, or a shell line."""
        login = ["-l"] if request.get("login") is True else []
        argv = request.get("argv") or [_shell(), *login, "-c", str(request["shell"])]
        if not all(isinstance(part, str) and "\0" not in part for part in argv):
            raise BadAsk("bad_request", "argv must be strings without NUL")
        uid, gid = self._user(request)
        env, cwd = self._env(request, uid), cwd_of(request, self.base)
        ends = processes.Ends(request.get("pty"), bool(request.get("stdin")))
        pid = sc.fork(self.tid_address)
        if pid == 0:
            self._become_program(ends, argv, env, cwd, uid, gid)
        ends.close_child()
        self._adopt(stream, request, pid, ends, argv, "exec")

    def start_as(self, request: dict[str, Any], ends: processes.Ends) -> int:
        """Start a command that a program in here asks for, as the user it names. Raises BadAsk."""
        argv = request["argv"]
        if not argv or not all(isinstance(part, str) and "\0" not in part for part in argv):
            raise BadAsk("bad_request", "argv must be strings without NUL")
        uid, gid = self._user(request)
        env, cwd = env_of(request), cwd_of(request, self.base)
        pid = sc.fork(self.tid_address)
        if pid == 0:
            self._become_program(ends, argv, env, cwd, uid, gid)
        return pid

    def op_run(self, stream: Stream, request: dict[str, Any]) -> None:
        """Run source code in a fork of the warm interpreter; the first one waits ready-made."""
        order = order_of(request, self._free_name(), self.base)
        order["env"] = {**self.extra, **order["env"]}
        plain = not request.get("pty") and not request.get("stdin") and request.get("user") in {None, "", "user"}
        spare = (self._take_spare() if plain else None) or self._fork_runner(request)
        self.runs += 1
        data = runner.encode_order(order)
        argv = [request.get("filename") or order["filename"].removeprefix(f"{HOME}/"), *order["argv"]]
        program = self._adopt(stream, request, spare.pid, spare.ends, argv, "run")
        program.report = spare.report
        self._send_order(spare, data)
        if not self.plan.warm_runner:  # a sandbox that stays and has run one program will likely run more
            self.loop.call_later(NEXT_SPARE_SECONDS, self._next_spare)

    def _take_spare(self) -> Spare | None:
        """The interpreter that waits, unless a program in here has killed it meanwhile."""
        spare, self.spare = self.spare, None
        if spare is None or not self.programs:
            return spare
        doomed = processes.doomed(spare.pid)
        if doomed or (doomed is None and not spare.answers()):
            spare.discard()
            return None
        return spare

    def _next_spare(self) -> None:
        if self.spare is None and (self.fresh or not self.plan.exec_runner):
            with contextlib.suppress(OSError):  # no process or memory to spare: the next run forks its own
                self.spare = self._fork_runner({})

    def _free_name(self) -> str:
        """Where a program without a name of its own is kept: never over a file its owner may have put there."""
        return f"/tmp/run-{self.runs}.py" if self.runs else "main.py"  # noqa: S108 - the sandbox's own

    def _send_order(self, spare: Spare, data: bytes) -> None:
        spare.orders.settimeout(WARM_SECONDS)  # the runner is waiting to read: this ends as fast as it can
        with contextlib.suppress(ConnectionError):  # killed in this very moment: its fate is told like any other's
            spare.orders.sendall(data)
        spare.orders.close()

    def op_attach(self, stream: Stream, request: dict[str, Any]) -> None:
        """Join a program: its tail unless `replay` is false, then live."""
        self._program(request).attach(stream, replay=request.get("replay", True) is not False, owner=False)

    def op_list(self, stream: Stream, _: dict[str, Any]) -> None:
        """Every program this agent started, the recently ended included."""
        rows = [
            {"pid": p.pid, **p.about, "started_at": p.started_at, "running": p.fate is None, "exit": p.fate}
            for p in self.programs.values()
        ]
        stream.end({"processes": rows})

    def op_signal(self, stream: Stream, request: dict[str, Any]) -> None:
        """Signal a program and its group."""
        program = self._program(request)
        if program.fate is not None:
            raise BadAsk("not_running", "the program has ended")
        number = request["signal"]
        if type(number) is not int or not 1 <= number <= 64:
            raise BadAsk("bad_request", "signal must be a number from 1 to 64")
        program.signal_group(number)
        stream.end({})

    def op_resize(self, stream: Stream, request: dict[str, Any]) -> None:
        """Resize a program's terminal."""
        self._program(request).resize(request)
        stream.end({})

    def op_input(self, stream: Stream, request: dict[str, Any]) -> None:
        """Bytes for a running program's input."""
        program = self._program(request)
        if program.fate is not None:
            raise BadAsk("not_running", "the program has ended")
        if not program.takes(request.get("into") or ""):
            raise BadAsk("no_input", f"the program has no open {request['into']}")
        stream.handler = Input(program, stream, close=bool(request.get("close")))

    def op_notice(self, stream: Stream, request: dict[str, Any]) -> None:
        """A line to everyone at a terminal of this sandbox."""
        for program in self.programs.values():
            program.notice(str(request["text"])[:500])
        stream.end({})

    def op_furnish(self, stream: Stream, request: dict[str, Any]) -> None:
        """Variables for every program that starts from now on, beneath what is said for one alone; and one file."""
        place = str(request["path"])
        with open(place, "w", encoding="ascii", opener=_only_new) as file:
            file.write(request["text"])
        self.extra |= env_of(request)
        stream.end({})

    def op_pack(self, stream: Stream, request: dict[str, Any]) -> None:
        """Everything a pause keeps, to the asker."""
        parcel.op_pack(self._yard(), stream, request)

    def op_measure(self, stream: Stream, _: dict[str, Any]) -> None:
        """How much that is, at most."""
        parcel.op_measure(stream)

    def op_unpack(self, stream: Stream, request: dict[str, Any]) -> None:
        """And back."""
        parcel.op_unpack(self._yard(), stream, request)

    def _yard(self) -> parcel.Yard:
        return parcel.Yard(self.loop, self.reap, self.helpers, self.held, self.tid_address)

    def op_ping(self, stream: Stream, _: dict[str, Any]) -> None:
        """Say that there is somebody here."""
        stream.end({})

    # -- starting programs ----------------------------------------------------------------------------------

    def _program(self, request: dict[str, Any]) -> processes.Process:
        program = self.programs.get(request["pid"])
        if program is None:
            raise BadAsk("not_found", "no such program")
        return program

    def _user(self, request: dict[str, Any]) -> tuple[int, int]:
        try:
            uid, gid = processes.lookup_user(request.get("user") or "")
        except KeyError:
            raise BadAsk("not_found", "no such user in this template") from None
        if not self.plan.root and uid != USER_ID:
            raise BadAsk("permission", "without privileges on the host there is only `user`")
        return uid, gid

    def _env(self, request: dict[str, Any], uid: int) -> dict[str, str]:
        wanted = env_of(request)
        base = {**os.environ, "TERM": "xterm-256color"} if request.get("pty") else dict(os.environ)
        if uid == 0:
            base.update(USER="root", LOGNAME="root")
        return {**base, **self.extra, **wanted}

    def _become_program(
        self, ends: processes.Ends, argv: list[str], env: dict[str, str], cwd: str, uid: int, gid: int
    ) -> None:
        """In the fork; never returns."""
        code = 126
        try:
            ends.into_place()
            sc.execute(sc.close_from(3))
            processes.reset_signals()
            processes.become(uid, gid, self.held)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, env)  # noqa: S606 - what the tenant asked for, inside its sandbox
        except FileNotFoundError:
            os.write(2, f"{argv[0]}: not found\n".encode())
            code = 127
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the agent's loop
            os.write(2, f"{argv[0]}: {error}\n".encode())
        finally:
            os._exit(code)

    def _fork_runner(self, request: dict[str, Any]) -> Spare:
        if self.plan.exec_runner and not self.fresh:
            raise BadAsk(
                "no_python", "this template's image has no Python; run a command instead, or use another template"
            )
        ends = processes.Ends(request.get("pty"), bool(request.get("stdin")))
        uid, gid = self._user(request)
        ours, theirs = socket.socketpair()
        report = mmap.mmap(-1, mmap.PAGESIZE)
        pid = sc.fork(self.tid_address)
        if pid == 0:
            self._become_runner(ends, theirs.fileno(), report, uid, gid)
        ends.close_child()
        theirs.close()
        return Spare(pid, ends, ours, report)

    def _become_runner(self, ends: processes.Ends, orders: int, report: mmap.mmap, uid: int, gid: int) -> None:
        """In the fork; never returns."""
        try:
            ends.into_place()
            os.dup2(orders, ORDER_FD)
            sc.execute(sc.close_from(ORDER_FD + 1))
            processes.reset_signals()
            processes.become(uid, gid, self.held)
            sc.execute(sc.set_name("python3"))
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            if self.plan.exec_runner:
                os.execv(self.fresh[0], self.fresh)  # noqa: S606 - our own interpreter, our own source
            if self.plan.fault == "reseed":
                raise StepFailed("reseed", "failed on a test's wish")
            if "reseed" not in self.plan.without:
                reseed.apply(self.reseeders)
            runner.main(ORDER_FD, report)
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the agent's loop
            os.write(2, f"ringfence: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(126)

    def _adopt(
        self, stream: Stream, request: dict[str, Any], pid: int, ends: processes.Ends, argv: list[str], kind: str
    ) -> processes.Process:
        about = {"tag": request.get("tag"), "argv": argv, "kind": kind, "detach": bool(request.get("detach"))}
        program = processes.Process(self.loop, pid, ends, about, self.held)
        self.programs[pid] = program
        timeout = request.get("timeout")
        program.begin(float(timeout) if timeout is not None else None)
        program.attach(stream, replay=False, owner=True)
        return program

    # -- reaping --------------------------------------------------------------------------------------------

    def watch_children(self) -> None:
        """Have the loop woken by every death, the orphans' included."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            self.reap()

        self.loop.add_reader(reader, woken)

    def reap(self) -> None:
        """Collect every dead child; a program's fate is told to whoever is attached."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            program = self.programs.get(pid)
            helped = self.helpers.pop(pid, None)
            if helped is not None:
                helped()
            if self.spare is not None and pid == self.spare.pid:
                self.spare.discard()
                self.spare = None
            if program is not None:
                code = os.waitstatus_to_exitcode(status)
                program.ended(code if code >= 0 else None, -code if code < 0 else None, usage)
                self._forget_old()
            elif self.sudo is not None:
                self.sudo.ended(pid, os.waitstatus_to_exitcode(status))

    def _forget_old(self) -> None:
        ended = [pid for pid, program in self.programs.items() if program.finished]
        for pid in ended[: max(0, len(ended) - FINISHED_KEPT)]:
            del self.programs[pid]

    def rehearse(self) -> None:
        """Serve a program that is none: the pages that serving dirties are copied while nobody waits."""
        ours, theirs = socket.socketpair()
        channel = Channel(self.loop, ours.fileno(), self.opened, lambda: None)
        channel.feed(frames.encode(frames.OPEN, 1, b'{"op": "ping"}'))
        ends = processes.Ends(None, stdin=False)
        nobody = -1
        program = self._adopt(Stream(channel, 2), {"op": "run"}, nobody, ends, ["rehearsal"], "run")
        os.write(ends.child[1], b"1\n")
        ends.close_child()
        self.loop.turn(0.0)
        program.ended(0, None, None)
        del self.programs[nobody]
        self.loop.forget(ours.fileno())
        ours.close()
        theirs.close()

    def warm(self) -> None:
        """Fork the interpreter that waits for the first program, where there is one."""
        if self.plan.exec_runner and not self.fresh:
            self.rehearse()
            return
        spare = self.spare = self._fork_runner({})
        spare.orders.settimeout(WARM_SECONDS)
        said = spare.orders.recv(1)
        if not said and processes.was_killed(spare.pid):
            os._exit(1)  # it did not fail, it was killed: no layer is to blame, and the start may be tried again
        if said != runner.READY:
            raise StepFailed("reseed", "the waiting interpreter did not renew its random state")
        self.rehearse()


# Made once, in the zygote: a table built in every sandbox would be pages copied in every sandbox.
OWN_OPS: Final[dict[str, Callable[[Agent, Stream, dict[str, Any]], None]]] = {
    "exec": Agent.op_exec,
    "run": Agent.op_run,
    "attach": Agent.op_attach,
    "list": Agent.op_list,
    "signal": Agent.op_signal,
    "resize": Agent.op_resize,
    "input": Agent.op_input,
    "measure": Agent.op_measure,
    "notice": Agent.op_notice,
    "furnish": Agent.op_furnish,
    "pack": Agent.op_pack,
    "unpack": Agent.op_unpack,
    "ping": Agent.op_ping,
}
GUEST_OPS: Final = {**files.OPS, **watch.OPS, **tunnel.OPS}


class Input(Handler):
    """Feeds a running program from a stream of its own, and answers when the stream ends."""

    def __init__(self, program: processes.Process, stream: Stream, *, close: bool) -> None:
        self._program = program
        self._stream = stream
        self._close = close

    def on_stdin(self, data: bytes) -> None:
        """Pass it on."""
        self._program.feed(self._stream, data)

    def on_eof(self) -> None:
        """All of it was sent; close the program's input if that was asked."""
        if self._close:
            self._program.close_stdin()
        self._stream.end({})

    def on_cancel(self) -> None:
        """The sender left; the program keeps what it got."""
        self._stream.end({})


def serve_now(make: Callable[[], Agent], ready: bytes) -> None:
    """Become process 1's loop, with an interpreter waiting for the first program; then say ready."""
    agent = make()
    agent.warm()
    os.write(CHANNEL_FD, ready)
    agent.loop.run()


def serve_when_asked(make: Callable[[], Agent], ready: bytes) -> None:
    """Say ready and sleep; become an agent at the first request. A sandbox nobody asks stays small."""
    os.write(CHANNEL_FD, ready)
    first = os.read(CHANNEL_FD, FIRST_READ)
    if first:
        agent = make()
        agent.channel.feed(first)
        agent.loop.run()
