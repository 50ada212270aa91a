"""One runtime per module and name, one sandbox per test; outside CI one for many where a start is dear."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ringfence.domain.limits import Limits
from ringfence.runtimes.base import Capabilities, Runtime, Started
from tests.support import scale
from tests.support.guestharness import Host, ProtocolBroken
from tests.support.loops import LoopThread
from tests.support.subjects import SMALL, SUBJECTS, Subject

PLACES = ("/home/user", "/tmp", "/var/tmp", "/dev/shm", "/workspace")


@dataclass
class Bench:
    """A runtime that is open, and the thread its loop runs in."""

    subject: Subject
    thread: LoopThread
    runtime: Runtime
    kept: Box | None = None  # the sandbox that tests use one after the other

    @property
    def can(self) -> Capabilities:
        """What it says it can."""
        return self.runtime.capabilities()

    def start(self, tenant: str = "tenant-a", limits: Limits = SMALL) -> Box:
        """A ready sandbox."""
        started = self.thread.do(self.runtime.start(self.subject.spec(tenant, limits)))
        started.channel.setblocking(True)
        return Box(self, started, Host(started.channel))

    def stop(self, sandbox_id: str) -> None:
        """Have the runtime end it."""
        self.thread.do(self.runtime.stop(sandbox_id))

    def found(self) -> set[str]:
        """What the runtime still sees."""
        return self.thread.do(self.runtime.found())

    @property
    def keeps(self) -> bool:
        """Whether tests that need no sandbox of their own share one: not where it is a fork, and never in CI."""
        return self.subject.real and not self.can.fork_warm and not scale.EVERYTHING

    def keep_if_tidy(self, box: Box) -> None:
        """Leave a sandbox to the next test, unless this one left anything in it that is not a file."""
        self.kept = box if box.tidied() else None
        if self.kept is None:
            self.stop(box.id)


@dataclass
class Box:
    """A sandbox and the host's end of its channel."""

    bench: Bench
    started: Started
    host: Host

    @property
    def id(self) -> str:
        """Its name."""
        return self.started.id

    def tidied(self) -> bool:
        """Remove its files; False when anything else is left: a program, an open stream, an agent that is silent."""
        try:
            if self.host.unended() or any(row["running"] for row in self.host.ask("list")["processes"]):
                return False
            for place in PLACES:
                for entry in self.host.ask("ls", path=place)["entries"]:
                    self.host.ask("remove", path=entry["path"], recursive=True)
            return not any(self.host.ask("ls", path=place)["entries"] for place in PLACES)
        except (OSError, ProtocolBroken, KeyError):
            return False


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: str(subject.name))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A runtime; a missing one is skipped here and an error where CI promises that all are there."""
    subject: Subject = request.param
    if reason := subject.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{subject.name}: {reason}")
        pytest.skip(f"{subject.name}: {reason}")
    thread = LoopThread()

    async def opened() -> Runtime:
        return subject.open()

    runtime = thread.do(opened())
    opened_bench = Bench(subject, thread, runtime)
    yield opened_bench
    if opened_bench.kept is not None:
        opened_bench.stop(opened_bench.kept.id)
    thread.do(runtime.close())
    thread.close()


@pytest.fixture
def start(bench: Bench) -> Iterator[Callable[..., Box]]:
    """Start sandboxes that are stopped with the test."""
    boxes: list[Box] = []

    def starting(tenant: str = "tenant-a", limits: Limits = SMALL) -> Box:
        boxes.append(bench.start(tenant, limits))
        return boxes[-1]

    yield starting
    for box in boxes:
        bench.stop(box.id)


@pytest.fixture
def box(start: Callable[..., Box]) -> Box:
    """One sandbox."""
    return start()


@pytest.fixture
def own(box: Box) -> Host:
    """The host's end of the channel of a sandbox that nobody used before."""
    return box.host


@pytest.fixture
def host(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The host's end of a sandbox without files and programs, which another test may have used before."""
    if not bench.keeps:
        yield request.getfixturevalue("box").host
        return
    box, bench.kept = bench.kept or bench.start(), None
    yield box.host
    bench.keep_if_tidy(box)
