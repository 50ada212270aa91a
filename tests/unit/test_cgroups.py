"""Resource groups, with real processes in real groups of whatever kind this machine has."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import MIB
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.cgroups.none import NoGroups
from tests.support.cgroups import SMALL, Bench, bench


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Bench]:
    """Groups, and proof afterwards that nothing is left of them."""
    with bench(tmp_path) as made:
        yield made


LIMIT_FILES = {
    "cgroup v1": {
        "memory.limit_in_bytes": str(SMALL.memory_bytes),
        "memory.swappiness": "0",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "200000",
        "pids.max": "18",
    },
    "cgroup v2": {
        "memory.max": str(SMALL.memory_bytes),
        "memory.high": str(SMALL.memory_bytes // 16 * 15),
        "memory.oom.group": "0",
        "cpu.max": "200000 100000",
        "pids.max": "18",
        "cgroup.max.descendants": "0",
    },
}


def test_every_limit_is_set_before_any_process_is_in(work: Bench) -> None:
    """A group that has just been made is empty and already limited."""
    work.groups.create("s1", SMALL)
    wanted = LIMIT_FILES[work.groups.kind]
    assert {file: work.limit("s1", file) for file in wanted} == wanted
    assert work.groups.pids("s1") == []


def test_no_swap_where_the_kernel_counts_it(work: Bench) -> None:
    """Memory pushed out to a disk would be memory beyond the limit."""
    work.groups.create("s1", SMALL)
    wanted = {
        "cgroup v1": ("memory.memsw.limit_in_bytes", str(SMALL.memory_bytes)),
        "cgroup v2": ("memory.swap.max", "0"),
    }
    file, limit = wanted[work.groups.kind]
    if work.limit("s1", file) is None:
        pytest.skip("this kernel does not count swap")
    assert work.limit("s1", file) == limit


def test_a_memory_bomb_dies_and_its_quieter_sibling_lives(work: Bench) -> None:
    """The kernel ends the largest program in the group, not the group: the agent lives to tell."""
    name = work.create()
    agent = work.run(name, "open('/proc/self/oom_score_adj', 'w').write('-900'); say('up'); sys.stdin.readline()")
    assert agent.line() == "up"
    bomb = work.run(name, "memory(400); say('not killed')")
    assert bomb.was_killed
    agent.go_on()
    assert agent.ended() == 0
    used = work.groups.usage(name)
    assert used.oom_kills == 1
    assert SMALL.memory_bytes // 2 < used.memory_peak <= SMALL.memory_bytes


def test_a_memory_bomb_in_reads_dies_too(work: Bench) -> None:
    """Memory first touched by the kernel on a program's behalf is no way round the limit."""
    bomb = work.run(work.create(), "open('/dev/zero', 'rb').read(400 * MIB); say('not killed')")
    assert bomb.was_killed
    assert work.groups.usage("s1").oom_kills == 1


def test_a_fork_bomb_meets_its_cap(work: Bench) -> None:
    """There are never more processes than the limit, the agent's one and a spare."""
    code = """
count = 0
try:
    while True:
        if os.fork() == 0: signal.pause()
        count += 1
except OSError as error: say(errno.errorcode[error.errno], count)
signal.pause()
"""
    bomb = work.run(work.create(), code)
    assert bomb.line() == f"EAGAIN {SMALL.processes + 1}"
    assert work.groups.usage("s1").processes == SMALL.processes + 2
    assert len(work.groups.pids("s1")) == SMALL.processes + 2
    assert work.groups.remove("s1", 60)


def test_processors_are_shared_by_quota(work: Bench) -> None:
    """Four busy processes together get no more than their sandbox's part of a processor, by the kernel's count."""
    limits = dataclasses.replace(SMALL, cpus=0.5)
    name = work.create(limits)
    busy = work.run(name, "say('busy'); os.fork(); os.fork()\nwhile True: pass", limits)
    assert busy.line() == "busy"
    start, used = time.monotonic(), work.groups.usage(name).cpu_seconds
    time.sleep(3)
    while (spent := work.groups.usage(name).cpu_seconds - used) <= 0.1 and time.monotonic() < start + 60:
        time.sleep(0.1)
    # A period's quota may be spent at both ends of any stretch of time.
    assert spent <= 1.1 * 0.5 * (time.monotonic() - start) + 0.05
    assert spent > 0.1


def test_usage_is_counted_from_outside(work: Bench) -> None:
    """Memory, files, processes and processor time each show up in their own figure."""
    name = work.create()
    program = work.run(name, "b = memory(40); fill(SCRATCH + '/f', 20); os.fork(); sys.stdin.readline()")
    assert program.line() == "written 20"
    while work.groups.usage(name).processes != 2:
        time.sleep(0.01)
    used = work.groups.usage(name)
    assert 40 * MIB <= used.anon_bytes < 60 * MIB
    assert 20 * MIB <= used.shmem_bytes < 25 * MIB
    assert used.anon_bytes + used.shmem_bytes <= used.memory_now <= used.memory_peak
    assert used.cpu_seconds > 0
    assert used.oom_kills == 0


STUBBORN = """
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
    say('hidden')
    while True: time.sleep(1)
os.wait()
while True: time.sleep(1)
"""


def test_a_busy_group_is_removed(work: Bench) -> None:
    """No process survives: not one that ignores signals, is stopped, or has left its parents and session."""
    name = work.create()
    program = work.run(name, STUBBORN)
    assert program.line() == "hidden"
    deadline = time.monotonic() + 60
    while len(work.groups.pids(name)) > 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # a parent that it left may be still on its way out
    assert len(work.groups.pids(name)) == 3
    assert work.groups.remove(name, 60)
    assert program.was_killed
    assert work.groups.list() == set()
    assert work.groups.remove(name, 60)


def test_kill_reaches_those_who_keep_forking(work: Bench) -> None:
    """A program that replaces itself faster than a list can be read is still ended by one call."""
    code = """
say('up')
while True:
    if os.fork(): os._exit(0)
"""
    program = work.run(work.create(), code)
    assert program.line() == "up"
    work.groups.kill("s1")
    deadline = time.monotonic() + 60
    while work.groups.pids("s1") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert work.groups.pids("s1") == []


def test_a_group_that_stays_busy_is_reported_and_removed_later(work: Bench) -> None:
    """When something holds a group past the deadline the answer is no, and asking again finishes the work."""
    work.groups.create("s1", SMALL)
    held = work.directories("s1")[-1]
    if (held / "cgroup.max.descendants").exists():
        (held / "cgroup.max.descendants").write_text("max")
    (held / "held").mkdir()
    assert not work.groups.remove("s1", 0.05)
    assert work.groups.list() == {"s1"}
    (held / "held").rmdir()
    assert work.groups.remove("s1", 1)


def test_half_made_groups_are_found_and_removed(work: Bench) -> None:
    """A node that died while making a group leaves a directory in some hierarchies; the sweep sees each."""
    parents = work.parents()
    for number, parent in enumerate(parents):
        (parent / f"half-{number}").mkdir()
    assert work.groups.list() == {f"half-{number}" for number in range(len(parents))}
    assert all(work.groups.remove(name, 1) for name in work.groups.list())
    assert work.groups.list() == set()


def test_a_refused_limit_names_the_layer_and_leaves_nothing(work: Bench) -> None:
    """When the kernel does not take a limit there is no sandbox, and no half of one."""
    with pytest.raises(
        SandboxRefused, match=r"layer cgroup v[12]: could not set cpu\.\S+ to .* for s1: Invalid argument"
    ):
        work.groups.create("s1", dataclasses.replace(SMALL, cpus=0.001))
    assert work.groups.list() == set()


def test_a_name_in_use_is_refused_and_its_owner_untouched(work: Bench) -> None:
    """Two sandboxes never share a group, and the second's failure does not harm the first."""
    name = work.create()
    program = work.run(name, "say('up'); sys.stdin.readline()")
    assert program.line() == "up"
    with pytest.raises(SandboxRefused, match="could not make the group"):
        work.groups.create(name, SMALL)
    program.go_on()
    assert program.ended() == 0


def test_a_dead_process_cannot_be_attached(work: Bench) -> None:
    """Attaching fails in our words, so that the sandbox is not started without its limits."""
    name = work.create()
    program = work.run(name, "pass")
    assert program.ended() == 0
    with pytest.raises(SandboxRefused, match="attach process"):
        work.groups.attach(name, program.process.pid)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a" * 65, "-a", "a\n", "a\0"])
def test_a_name_is_one_directory_of_ours_or_refused(work: Bench, name: str) -> None:
    """No name leads out of our own parent directory."""
    with pytest.raises(SandboxRefused, match="cannot name"):
        work.groups.create(name, SMALL)
    with pytest.raises(SandboxRefused, match="cannot name"):
        work.groups.remove(name, 1)


def test_groups_that_are_not_there_are_no_trouble(work: Bench) -> None:
    """Everything that ends or reads a group may be called again, or too early."""
    work.groups.kill("s1")
    work.groups.governor.forget("s1")
    assert work.groups.pids("s1") == []
    assert work.groups.usage("s1").memory_now == 0
    assert work.groups.remove("s1", 1)


def test_two_instances_do_not_see_each_other(work: Bench) -> None:
    """Two servers on one machine sweep only their own groups, and one's end leaves the other's parents."""
    work.groups.create("s1", SMALL)
    other = detect("test-other", root=True)
    assert other.list() == set()
    other.create("s2", SMALL)
    assert work.groups.list() == {"s1"}
    assert other.remove("s2", 1)
    other.close()
    assert work.groups.list() == {"s1"}


def test_without_groups_every_call_is_harmless_and_says_why() -> None:
    """The runtime need not ask which kind it has; what is missing is said once, with the reason."""
    groups = NoGroups("no group is delegated to us")
    groups.create("s1", SMALL)
    groups.governor.watch("s1", SMALL)
    groups.attach("s1", 1)
    groups.kill("s1")
    assert (groups.usage("s1").processes, groups.pids("s1"), groups.list()) == (0, [], set())
    assert groups.remove("s1", 1)
    assert groups.governor.govern() is None
    assert groups.missing.keys() == {"memory", "cpu", "pids"}
    assert not groups.enforces
    groups.close()
