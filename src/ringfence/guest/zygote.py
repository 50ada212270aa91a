"""The zygote: holds a template's imports, and forks sandboxes on the node's word.

One per tenant and template, exec'd fresh. One thread, no secret, no socket but its control channel. It lives in
its tenant's user namespace: whatever a template's packages do at import reaches, at worst, that tenant.
"""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any, Final

from ringfence.guest import agent, reseed, runner, steps
from ringfence.guest import syscalls as sc
from ringfence.guest.plan import CHANNEL_FD, NOBODY, SLOT_SIZE, USER_ID, Plan, plan_from

CONTROL_FD: Final = 3
MAX_MESSAGE: Final = 64 * 1024
GO: Final = b"G"


class Zygote:
    """State shared by every fork: configuration, the imports, and the generators to reseed."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.seccomp = base64.b64decode(config["seccomp"])
        self.landlock_abi = sc.landlock_abi()
        self.preload: list[str] = config["preload"]
        self.reseeders: list[reseed.Reseeder] = []
        self.fresh: list[str] = []

    def tell(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """One message to the node."""
        socket.send_fds(self.control, [json.dumps(message).encode()], list(fds))

    def warm_up(self) -> None:
        """Import what the template asks for, run a throwaway program, and settle the heap for sharing."""
        for module in self.preload:
            importlib.import_module(module)
        self.fresh = runner.fresh_argv(self.preload, agent.ORDER_FD)
        runner.rehearse()
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(f"preloading left {threads} threads running; a fork would lose them")
        self.reseeders = reseed.find()
        gc.collect()
        gc.disable()  # a collection in a child would touch, and so copy, every page
        gc.freeze()

    def serve(self) -> None:
        """Fork on request until the node hangs up."""
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 1)
            if not data:
                return
            message = json.loads(data)
            try:
                self.spawn(plan_from(message), fds[0])
            except OSError as error:
                self.tell({"failed": message.get("id"), "cause": str(error)})
            finally:
                for fd in fds:
                    os.close(fd)

    def spawn(self, plan: Plan, channel: int) -> None:
        """Fork one sandbox, map its uids and hand the node a handle on it."""
        pid, pidfd = sc.clone(steps.clone_flags(plan))
        if pid == 0:
            self.become_sandbox(plan, channel)
        try:
            if "user_namespace" not in plan.without:
                _map_ids(pid, plan)
            self.tell({"spawned": plan.id}, (pidfd,))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(pidfd)

    def become_sandbox(self, plan: Plan, channel: int) -> None:
        """In the child: wait for the node's word, set up, serve. Never returns."""
        code = 1
        try:
            os.dup2(channel, CHANNEL_FD)  # over the control channel: a sandbox has no way to the zygote
            if "closed_descriptors" not in plan.without:
                os.closerange(CHANNEL_FD + 1, channel + 1)
            if os.read(CHANNEL_FD, 1) == GO:
                self.set_up_and_serve(plan)
                code = 0
        except BaseException as error:  # noqa: BLE001 - nothing may unwind into the zygote's own loop
            _complain(error)
        finally:
            os._exit(code)

    def set_up_and_serve(self, plan: Plan) -> None:
        """Every layer, then new random state, then the agent."""
        sc.set_name("ringfence-agent")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        steps.set_up(steps.Context(plan, self.seccomp, self.landlock_abi))
        if "reseed" not in plan.without:
            if plan.fault == "reseed":
                raise steps.StepFailed("reseed", "failed on a test's wish")
            reseed.apply(self.reseeders)
        layers = [*steps.in_force(plan, self.landlock_abi), "reseed"]
        layers = [layer for layer in layers if layer not in plan.without]
        agent.serve(plan, CHANNEL_FD, layers, self.reseeders, self.fresh)


def _complain(error: BaseException) -> None:
    """The one word a sandbox may say before it is ready: which layer could not be put in force."""
    layer = error.layer if isinstance(error, steps.StepFailed) else "agent"
    answer = {"refused": {"layer": layer, "cause": f"{type(error).__name__}: {error}"[:500]}}
    agent.say_first(CHANNEL_FD, answer)


def _map_ids(pid: int, plan: Plan) -> None:
    """Give the child its own uid range; without privileges there is one uid, and it is called `user`."""
    base = plan.slot * SLOT_SIZE
    lines = f"0 {base} {SLOT_SIZE - 1}\n{NOBODY} {base + SLOT_SIZE - 1} 1\n" if plan.root else f"{USER_ID} 0 1\n"
    for kind in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines.encode())
        finally:
            os.close(fd)


def main() -> None:
    """Entry point: configuration on descriptor 4, control channel on descriptor 3."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    sc.set_name("ringfence-zygote")
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
        zygote.tell({"broken": f"{type(error).__name__}: {error}"[:2000]})
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead sandboxes are reaped by the kernel
    zygote.tell({"ready": {"landlock_abi": zygote.landlock_abi}})
    zygote.serve()
