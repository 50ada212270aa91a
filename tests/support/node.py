"""A node in this process, for tests that build it with a layer missing or look at it from outside."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from ringfence.attack.observation import Ran
from ringfence.attack.table import Probe
from ringfence.attack.target import ASKED, NEIGHBOUR, answer_is_right, environment, last_report
from ringfence.domain.errors import RingfenceError
from ringfence.domain.limits import Limits, limits_from
from ringfence.domain.process import How
from ringfence.guest import frames
from ringfence.node.isolation import Isolation
from ringfence.node.link import GuestLink
from ringfence.node.live import Live
from ringfence.node.relay import Relay, after
from ringfence.node.supervisor import Settings, Supervisor
from ringfence.runtimes.base import Runtime
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import Oci
from ringfence.runtimes.oci.versions import choose, installed
from ringfence.templates.catalog import Catalog

TEMPLATES = Path(os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates"))
T = TypeVar("T")


class Collector:
    """What an api would be to one stream: takes output, grants credit, keeps what came."""

    def __init__(self) -> None:
        self.relay: Relay | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()

    def send(self, type_: int, payload: bytes = b"") -> None:
        """One frame from the relay."""
        if type_ == frames.STDOUT:
            self.stdout += payload
        elif type_ == frames.STDERR:
            self.stderr += payload
        else:
            return
        if self.relay is not None and payload:
            self.relay.from_above(frames.CREDIT, len(payload).to_bytes(4, "big"))

    def throttle(self, link: GuestLink) -> None:
        """Nothing piles up here: what comes is taken at once."""


class Node:
    """A supervisor on a loop of its own, in a thread; every method may be called from the test's thread."""

    def __init__(
        self, instance: str, *, runtime: str = "jail", without: frozenset[str] = frozenset(), fault: str = ""
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.runtime = runtime
        self.forks = runtime == "jail"
        self.supervisor: Supervisor = self.do(self._begin(instance, without, fault))

    async def _begin(self, instance: str, without: frozenset[str], fault: str) -> Supervisor:
        opened = _opened(self.runtime, instance, without, fault)
        supervisor = Supervisor(Isolation(opened), Catalog(TEMPLATES), Settings())
        await supervisor.begin()
        return supervisor

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 180) -> T:
        """Carry out on the node's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(seconds)

    def close(self) -> None:
        """Stop everything."""
        self.do(self.supervisor.close())
        self.do(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- programs -------------------------------------------------------------------------------------------

    def claim(
        self, template: str = "base", limits: Limits | None = None, *, lone: bool = False, egress: object = None
    ) -> Live:
        """A sandbox of the test tenant's, to stay or for a lone run."""
        ask = {"tenant": "attacker", "template": template, "wait_seconds": 60, "lone": lone}
        if egress is not None:
            ask["egress"] = egress
        return self.do(self.supervisor.claim(ask, limits or Limits(), 600, one_shot=lone))[0]

    def release(self, live: Live) -> None:
        """Stop a sandbox and wait until it is gone."""
        self.do(self.supervisor.stop(live, How.STOPPED, "the test is over"))

    def perform(self, live: Live, request: Mapping[str, Any], wall: float = 120) -> Ran:
        """One guest request of kind `program`, collected."""
        return self.do(self._perform(live, request, wall))

    async def _perform(self, live: Live, request: Mapping[str, Any], wall: float) -> Ran:
        collector = Collector()
        begun = time.monotonic()
        relay = self.supervisor.open(live, json.dumps(request).encode(), collector, program=True)
        collector.relay = relay
        call_off = after(relay, wall, How.TIMED_OUT, "the wall clock")
        ended = await relay.ended
        call_off()
        took = time.monotonic() - begun
        header = self.supervisor.account(relay, ended, {}, time.monotonic())
        answer = json.loads(ended.answer) if ended.answer else {}
        return _ran(header, answer, bytes(collector.stdout), bytes(collector.stderr), took)

    # -- Target ---------------------------------------------------------------------------------------------

    def run(self, probe: Probe, facts: Mapping[str, Any]) -> Ran:
        """See ringfence.attack.target.Target."""
        try:
            egress = probe.egress(facts) if probe.egress is not None else None
            live = self.claim(probe.template, limits_from(dict(probe.limits), Limits()), egress=egress)
        except RingfenceError as error:
            return Ran("refused", refused=f"{error.code}: {error.cause}")
        try:
            return self.perform(live, _request(probe, facts), probe.timeout + 5)
        except RingfenceError as error:
            return Ran("refused", refused=f"{error.code}: {error.cause}")
        finally:
            self.release(live)

    def neighbour(self, secret: str) -> Beside:
        """See ringfence.attack.target.Target."""
        return Beside(self, secret)


def _opened(name: str, instance: str, without: frozenset[str], fault: str) -> Runtime:
    """The runtime of this name, with a layer missing or failing where a test wants that."""
    privileged = os.geteuid() == 0
    groups = detect(instance, root=privileged)
    if name == "jail":
        compiled = Carried(TEMPLATES).compiled
        return Jail(groups, privileged=privileged, compiled=compiled, without=without, fault=fault)
    tool = choose(name, installed())
    assert tool is not None
    return Oci(tool, groups, Carried(TEMPLATES), without=without, fault=fault)


async def _end_tasks() -> None:
    """As asyncio.run does at the end of the node's own process."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class Beside:
    """A live sandbox with a beating process."""

    def __init__(self, node: Node, secret: str) -> None:
        self._node, self._secret = node, secret
        self._live = node.claim()
        ran = node.perform(self._live, {"op": "run", "code": NEIGHBOUR, "env": {"SECRET": secret}})
        self.namespaces = {name: str(value) for name, value in ran.said.items()}

    def trouble(self) -> str:
        """What is wrong with it."""
        try:
            ran = self._node.perform(self._live, {"op": "run", "code": ASKED}, 30)
        except RingfenceError as error:
            return error.cause
        return answer_is_right(str(ran.said.get("text", "")) or ran.stderr, self._secret)

    def close(self) -> None:
        """Let it go."""
        self._node.release(self._live)


def _request(probe: Probe, facts: Mapping[str, Any]) -> dict[str, Any]:
    common = {"env": environment(facts), "user": probe.user, "timeout": probe.timeout}
    if probe.argv:
        return {"op": "exec", "argv": ["python3", "-c", probe.program], **common}
    return {"op": "run", "code": probe.program, **common}


def _ran(header: Mapping[str, Any], answer: Mapping[str, Any], stdout: bytes, stderr: bytes, took: float) -> Ran:
    if "error" in answer:
        return Ran("refused", refused=f"{answer['error']['code']}: {answer['error']['cause']}")
    fate = answer.get("exit") or {}
    how = str(fate.get("how", "lost"))
    if how == "signalled" and fate.get("signal") == 9 and header["oom_kills"]:
        how = "out_of_memory"
    if fate.get("scratch_full") and fate.get("code"):
        how = "disk_full"
    if header["override"]:
        how = header["override"]["how"]
    text = stdout.decode("utf-8", "replace")
    said = last_report(text) or {"text": text[-2000:]}
    usage = header["usage"]
    return Ran(
        how,
        fate.get("code"),
        fate.get("signal"),
        said,
        len(stdout) + len(stderr),
        stderr.decode("utf-8", "replace")[-2000:],
        cpu_seconds=usage["cpu_seconds"],
        peak_memory_bytes=usage["peak_memory_bytes"],
        wall_seconds=took,
    )
