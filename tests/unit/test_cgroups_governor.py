"""The memory governor: programs and files each have their own limit, though the kernel has only one for both."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.limits import MIB, Limits
from ringfence.runtimes.jail.cgroups.governor import IN_FLIGHT, LEAST_PAUSE, MOST_PAUSE, Reading, Traits, settle
from tests.support.cgroups import SMALL, Bench, bench

LIMITS = Limits(memory_bytes=512 * MIB, scratch_bytes=1024 * MIB)
V1 = Traits(quiet_part=4, reclaim_bytes=32 * MIB)
V2 = Traits(quiet_part=0, reclaim_bytes=0)
BOTH = pytest.mark.parametrize("traits", [V1, V2], ids=["v1", "v2"])


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Bench]:
    """Groups, and proof afterwards that nothing is left of them."""
    with bench(tmp_path) as made:
        yield made


def reading(programs: int, files: int, cache: int = 0) -> Reading:
    """What a group uses, in MiB."""
    return Reading((programs + files + cache) * MIB, files * MIB, cache * MIB)


@BOTH
def test_a_quiet_group_is_at_its_limit_and_left_alone(traits: Traits) -> None:
    """Most sandboxes never come near: nobody looks at them until a bell rings."""
    setting, pause = settle(LIMITS, 1536 * MIB, reading(100, 20), traits)
    assert (setting.hard, pause) == (512 * MIB, None)


@BOTH
def test_the_limit_is_always_within_its_bounds(traits: Traits) -> None:
    """Never below memory; with files never more than files, and what may be in flight, above it."""
    for programs, files, cache in itertools.product(range(0, 513, 64), [*range(0, 1025, 64), 1500], (0, 300)):
        setting, pause = settle(LIMITS, 512 * MIB, reading(programs, files, cache), traits)
        assert 512 * MIB <= setting.hard <= (512 + min(files, 1024) + min(files, 64)) * MIB
        assert pause is None or LEAST_PAUSE <= pause <= MOST_PAUSE
        assert setting.throttle is None or setting.throttle < setting.hard


@BOTH
def test_files_raise_the_limit_by_what_they_hold(traits: Traits) -> None:
    """Programs keep all of their memory beside the files."""
    assert settle(LIMITS, 1536 * MIB, reading(100, 800), traits)[0].hard == 1312 * MIB + IN_FLIGHT


@BOTH
def test_shared_memory_beyond_the_scratch_limit_raises_nothing_more(traits: Traits) -> None:
    """The kernel counts a memfd as a file; what no scratch could hold is programs' memory."""
    assert settle(LIMITS, 1536 * MIB, reading(100, 1400), traits)[0].hard == 1536 * MIB + IN_FLIGHT


def test_a_limit_is_never_put_below_what_is_in_use() -> None:
    """The kernel would kill for it at once (v2) or refuse (v1); just above, the next page decides."""
    assert settle(LIMITS, 1536 * MIB, reading(900, 0), V2)[0].hard == 901 * MIB
    assert settle(LIMITS, 1536 * MIB, reading(900, 0), V1)[0].hard == 901 * MIB


@BOTH
def test_programs_that_reach_their_limit_do_not_raise_it(traits: Traits) -> None:
    """However often it is looked at, a full group gets not one page more."""
    assert settle(LIMITS, 512 * MIB, reading(512, 0), traits)[0].hard == 512 * MIB
    assert settle(LIMITS, 640 * MIB, reading(576, 64), traits)[0].hard == 640 * MIB


def test_page_cache_does_not_hold_the_limit_up_for_long() -> None:
    """v1 lowers the limit step by step, each small enough to drop that much cache without being missed."""
    assert settle(LIMITS, 1536 * MIB, reading(300, 0, cache=700), V1)[0].hard == (1000 - 32 + 1) * MIB


def test_programs_at_their_limit_are_not_slowed_but_left_to_the_kernel() -> None:
    """The throttle is for writers of files; a program past it gets its answer from the OOM killer, at once."""
    assert settle(LIMITS, 1536 * MIB, reading(510, 0), V2)[0].throttle is None
    assert settle(LIMITS, 1536 * MIB, reading(400, 110), V2)[0].throttle is not None


@BOTH
def test_the_less_room_the_sooner_the_next_look(traits: Traits) -> None:
    """Nobody can fill the room that is left before it is looked at again."""
    pauses = [settle(LIMITS, 1536 * MIB, reading(programs, 600), traits)[1] or 9 for programs in (0, 200, 400, 511)]
    assert pauses == sorted(pauses, reverse=True)
    assert pauses[-1] < pauses[0]


SCRATCH = dataclasses.replace(SMALL, scratch_bytes=256 * MIB)


@pytest.mark.parametrize("cpus", [0.5, 2.0])
def test_files_fill_the_scratch_though_memory_is_smaller(work: Bench, cpus: float) -> None:
    """Written at full speed, files up to the scratch limit end in "no space", not in a kill."""
    limits = dataclasses.replace(SCRATCH, cpus=cpus)
    program = work.run(work.create(limits), "fill(SCRATCH + '/f', 400); say('alive')", limits)
    assert program.line() == "ENOSPC 256"
    assert program.line() == "alive"
    assert program.ended() == 0
    assert work.groups.usage("s1").oom_kills == 0


def test_a_writer_waits_for_a_late_governor(work: Bench) -> None:
    """On v2 the kernel slows the writer down: a busy node is no reason to be killed."""
    name = work.create(SCRATCH)
    if work.limit(name, "memory.high") is None:
        pytest.skip("only v2 can slow a writer down")
    with work.governing:
        program = work.run(name, "fill(SCRATCH + '/f', 400)", SCRATCH)
        while "high 0" in str(work.limit(name, "memory.events")):
            time.sleep(0.01)
        time.sleep(0.5)
    assert program.line() == "ENOSPC 256"
    assert work.groups.usage(name).oom_kills == 0


def test_files_fill_the_scratch_through_a_mapping_too(work: Bench) -> None:
    """A file written by page faults raises the limit as one written by calls does."""
    code = """
with open(SCRATCH + '/f', 'w+b') as file:
    file.truncate(250 * MIB)
    block = mmap.mmap(file.fileno(), 250 * MIB)
    for page in range(0, 250 * MIB, 4096): block[page] = 1
say('written')
"""
    program = work.run(work.create(SCRATCH), code, SCRATCH)
    assert program.line() == "written"
    assert program.ended() == 0


def test_a_program_keeps_its_memory_beside_full_scratch(work: Bench) -> None:
    """With the scratch full, programs still have what memory_bytes promises, and not more."""
    code = "fill(SCRATCH + '/f', 400); b = memory(60); say('has it'); c = memory(150); say('not killed')"
    program = work.run(work.create(SCRATCH), code, SCRATCH)
    assert program.line() == "ENOSPC 256"
    assert program.line() == "has it"
    assert program.was_killed
    assert program.line() == ""


def test_memory_comes_first_and_files_after(work: Bench) -> None:
    """A program that holds most of its memory can still fill its scratch.

    Where nothing slows a writer down that holds when the governor is in time, and a machine that stands still for a
    moment makes it late: there one of three must.
    """
    said: list[list[str]] = []
    while not said or (work.groups.governor.urgent and said[-1] == ["", ""] and len(said) < 3):
        name = work.create(SCRATCH, f"s{len(said)}")
        program = work.run(name, "b = memory(50); fill(SCRATCH + '/f', 400); say('alive')", SCRATCH)
        said.append([program.line(), program.line()])
    assert said[-1] == ["ENOSPC 256", "alive"]


def test_freed_scratch_cannot_be_used_as_memory(work: Bench) -> None:
    """Deleting files gives their room back to files only."""
    code = """
for _ in range(3):
    fill(SCRATCH + '/f', 250); os.unlink(SCRATCH + '/f')
b = memory(240); say('not killed')
"""
    program = work.run(work.create(SCRATCH), code, SCRATCH)
    assert [program.line() for _ in range(3)] == ["written 250"] * 3
    assert program.was_killed
    assert program.line() == ""


def test_a_killed_program_does_not_end_the_governing(work: Bench) -> None:
    """A long-lived sandbox whose program was killed can still fill its scratch, and bomb again in vain."""
    name = work.create(SCRATCH)
    for kills in (1, 2):
        assert work.run(name, "memory(400)", SCRATCH).was_killed
        assert work.groups.usage(name).oom_kills == kills
        assert work.run(name, "fill(SCRATCH + '/f', 400)", SCRATCH).line() == "ENOSPC 256"


def test_everything_together_is_bounded_by_the_kernel(work: Bench) -> None:
    """Shared memory, which looks like files, cannot go beyond both limits and what may be in flight."""
    code = """
fd = os.memfd_create('x')
os.truncate(fd, 2000 * MIB)
block = mmap.mmap(fd, 2000 * MIB)
for page in range(0, 2000 * MIB, 4096): block[page] = 1
say('not killed')
"""
    program = work.run(work.create(SCRATCH), code, SCRATCH)
    assert program.was_killed
    assert work.groups.usage("s1").memory_peak <= SCRATCH.memory_bytes + SCRATCH.scratch_bytes + IN_FLIGHT + MIB


def test_a_group_that_cannot_be_watched_is_refused(work: Bench) -> None:
    """Without its governor a sandbox would not keep what is promised, so it is not started."""
    with pytest.raises(SandboxRefused, match="layer memory governor"):
        work.groups.governor.watch("s1", SMALL)


def test_one_descriptor_per_sandbox(work: Bench) -> None:
    """Governing costs one descriptor each, watched twice or not, given back when the group goes."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(4):
        work.groups.governor.watch(work.create(name=f"s{number}"), SMALL)
    assert len(os.listdir("/proc/self/fd")) == before + 4
    assert all(work.groups.remove(f"s{number}", 1) for number in range(4))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_group_that_vanishes_is_forgotten(work: Bench) -> None:
    """Removed behind our back, a group rings no bell for ever and costs no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    with work.governing:  # or it would have been looked at before; then only v1 rings for its end
        name = work.create()
        for path in work.directories(name):
            path.rmdir()
    while len(os.listdir("/proc/self/fd")) > before:
        work.groups.governor.govern()
    assert len(os.listdir("/proc/self/fd")) == before
