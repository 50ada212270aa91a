"""One runtime per module and name, one sandbox per test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ringfence.domain.limits import Limits
from ringfence.runtimes.base import Capabilities, Runtime, Started
from tests.support.guestharness import Host
from tests.support.loops import LoopThread
from tests.support.subjects import SMALL, SUBJECTS, Subject


@dataclass
class Bench:
    """A runtime that is open, and the thread its loop runs in."""

    subject: Subject
    thread: LoopThread
    runtime: Runtime

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
    yield Bench(subject, thread, runtime)
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
def host(box: Box) -> Host:
    """The host's end of one sandbox's channel."""
    return box.host
