"""The thread that governs: before everybody else, for a little while, and alone in that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.runtimes.jail.cgroups.detect import mounts_in
from ringfence.runtimes.jail.cgroups.watchman import CLASS, Watchman, tried
from tests.support.node import TEMPLATES, Node

root = pytest.mark.skipif(os.geteuid() != 0, reason="a real-time class needs root")
REFUSED = """
import threading
from ringfence.runtimes.jail.cgroups.detect import mounts_in
from ringfence.runtimes.jail.cgroups.watchman import Watchman, tried
turned = threading.Event()
class Governor:
    fd = __import__("os").pipe()[0]
    def govern(self):
        turned.set()
watchman = Watchman(Governor())
watchman.begin()
print(turned.wait(60), tried())
watchman.close()
"""


class Busy:
    """A governor that always has something to do: what hostile programs would make of it."""

    def __init__(self) -> None:
        self.fd, self._end = os.pipe()
        os.write(self._end, b"it always rings")
        self.turns = 0
        self.spent = 0.0

    def govern(self) -> float | None:
        """Half a millisecond of work, and no pause."""
        began = time.thread_time()
        while time.thread_time() - began < 0.0005:
            pass
        self.turns += 1
        self.spent = time.thread_time()
        return 0.0

    def close(self) -> None:
        """Both ends."""
        os.close(self.fd)
        os.close(self._end)


@pytest.fixture
def busy() -> Iterator[Busy]:
    """One, and its end."""
    made = Busy()
    yield made
    made.close()


def test_it_takes_a_fifth_of_a_core_at_most(busy: Busy) -> None:
    """However much there is to look at: a thread that goes before everybody must not be kept busy by anybody."""
    watchman = Watchman(busy)
    began = time.monotonic()
    watchman.begin()
    deadline = began + 60
    while busy.turns < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    watchman.close()
    assert busy.turns >= 100
    assert busy.spent < (time.monotonic() - began) / 4


def test_nobody_is_woken_after_its_end(busy: Busy) -> None:
    """Its descriptors are another's by then."""
    watchman = Watchman(busy)
    watchman.begin()
    watchman.close()
    watchman.look()
    watchman.close()


def test_without_the_right_to_it_governs_as_anyone_and_says_so() -> None:
    """A container without CAP_SYS_NICE, or an ordinary user: later on a crowded machine, and never a failure."""
    without = ["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"] if os.geteuid() == 0 else []
    said = subprocess.run([*without, sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("True the kernel refuses a real-time class: ")


@root
@pytest.mark.skipif(not (TEMPLATES / "index/base.json").exists(), reason="no template: make setup")
def test_the_nodes_own_goes_before_everybody_and_nothing_it_starts_does() -> None:
    """The thread is real-time where limits moved late are met; all others, zygotes and programs included, never are."""
    if tried():
        pytest.skip(tried())
    with Node(f"test-{uuid.uuid4().hex[:12]}") as node:
        live = node.claim()
        try:
            deadline = time.monotonic() + 60
            while not (ids := _governors()) and time.monotonic() < deadline:
                time.sleep(0.01)
            wanted = CLASS if "memory" in mounts_in(Path("/proc/self/mountinfo").read_text()).v1 else os.SCHED_OTHER
            assert [os.sched_getscheduler(each) for each in ids] == [wanted]
            others = [int(each) for each in os.listdir("/proc/self/task") if int(each) not in ids]
            assert {os.sched_getscheduler(each) for each in others} == {os.SCHED_OTHER}
            ran = node.perform(live, {"op": "run", "code": "import os; print(os.sched_getscheduler(0))"})
            assert ran.said == {"text": "0\n"}
        finally:
            node.release(live)
    assert _governors() == []


def _governors() -> list[int]:
    return [each.native_id or 0 for each in threading.enumerate() if each.name == "governor"]
