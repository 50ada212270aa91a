"""Every fate and every platform fault has its words."""

from __future__ import annotations

import pytest

from ringfence import wire
from ringfence.domain import errors
from ringfence.domain.limits import Limits
from ringfence.domain.process import How, Timings, Usage
from ringfence.domain.sandbox import State
from ringfence.engine import why


def run(**more: object) -> wire.Run:
    """A run's record."""
    return wire.Run(id="r", state="finished", template="base", created_at=1.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", list(How))
def test_every_way_to_end_is_explained(how: How) -> None:
    """What happened and, unless all is well, what to do."""
    told = why.of_run(run(exit=wire.Exit(how=how, code=1, signal=9), usage=Usage()), Limits(), [])
    assert told.summary.endswith(".")
    assert told.advice


@pytest.mark.parametrize("kind", errors.PlatformFault.__subclasses__())
def test_every_fault_of_ours_is_explained(kind: type[errors.PlatformFault]) -> None:
    """It says that it was us."""
    body = wire.ErrorBody(code=kind.default_code, cause="c")
    told = why.of_run(run(error=body), Limits(), [])
    assert told.summary
    assert told.exit is None


def test_a_limit_is_named_with_its_value_what_was_seen_and_what_to_change() -> None:
    """As numbers a person reads."""
    usage = Usage(peak_memory_bytes=512 * 1024 * 1024)
    told = why.of_run(run(exit=wire.Exit(how=How.OUT_OF_MEMORY), usage=usage), Limits(), [])
    assert told.limit == wire.WhyLimit(
        name="memory_bytes", value="512 MiB", seen="peak 512 MiB", change="limits.memory_bytes"
    )


def test_processor_time_and_wall_time_are_told_apart() -> None:
    """Both end as timed_out."""
    fate = wire.Exit(how=How.TIMED_OUT, reason="used its 1 seconds of CPU time")
    told = why.of_run(run(exit=fate, usage=Usage(cpu_seconds=1.1)), Limits(cpu_seconds=1), [])
    assert told.limit is not None
    assert (told.limit.name, told.limit.value) == ("cpu_seconds", "1 s")


def test_success_is_called_success() -> None:
    """And its time is accounted for."""
    told = why.of_run(run(exit=wire.Exit(how=How.EXITED, code=0), timings=Timings(queue=8.0, run=2.0)), Limits(), [])
    assert "success" in told.summary
    assert told.time == "Of 10.0 ms, 8.0 ms (80%) went into waiting for a warm sandbox."


def test_a_refusal_says_that_nothing_was_started() -> None:
    """With the remedy it had."""
    body = wire.ErrorBody(code="bad_limit", cause="c", remediation="give less")
    told = why.of_run(run(error=body), Limits(), [])
    assert (told.summary, told.advice) == ("It was refused before anything was started.", "give less")


def test_a_sandbox_is_explained_too() -> None:
    """Expiry, loss, and plain life."""
    made = wire.Sandbox(id="s", template="base", state=State.RUNNING, created_at=1.0)
    assert why.of_sandbox(made, []).summary == "It is running."
    expired = wire.Sandbox(
        id="s",
        template="base",
        state=State.STOPPED,
        created_at=1.0,
        exit=wire.Exit(how=How.TIMED_OUT, reason="its time to live is over"),
    )
    assert "time to live" in why.of_sandbox(expired, []).summary
