"""Why something ended, in plain words: what happened, which limit, what was seen, what to change. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from ringfence import wire
from ringfence.domain.limits import Limits
from ringfence.domain.process import How, Timings, Usage

MIB: Final = 1024 * 1024


class Words(NamedTuple):
    """What one fate means, what to do about it, and the limit behind it if there is one."""

    summary: str
    advice: str
    limit: str = ""


BY_HOW: Final[dict[How, Words]] = {
    How.EXITED: Words("The program ended by itself.", ""),
    How.SIGNALLED: Words(
        "A signal ended the program; nobody here sent it on account of a limit.",
        "Signal 11 and 6 are crashes of the program itself; 9 and 15 usually come from something it started.",
    ),
    How.TIMED_OUT: Words(
        "The program was stopped because its time was over.",
        "Raise timeout or limits.wall_seconds (limits.cpu_seconds for processor time), or do less in one run.",
        "wall_seconds",
    ),
    How.OUT_OF_MEMORY: Words(
        "The kernel killed the program because its sandbox reached the memory limit.",
        "Raise limits.memory_bytes, or hold less in memory at once: read in pieces, drop what is done with.",
        "memory_bytes",
    ),
    How.OUTPUT_CAPPED: Words(
        "The program was stopped because it wrote more output than its limit; the output up to there was kept.",
        "Raise limits.output_bytes, or write to a file and collect it.",
        "output_bytes",
    ),
    How.DISK_FULL: Words(
        "The program failed while its scratch space was full.",
        "Raise limits.scratch_bytes or limits.scratch_files, or remove files that are done with.",
        "scratch_bytes",
    ),
    How.POLICY_KILLED: Words(
        "The program was killed because it made a system call that no program here may make.",
        "Ordinary programs never do. If yours must, it needs a runtime of its own kernel; see `ringfence doctor`.",
    ),
    How.STOPPED: Words(
        "It was stopped on request: by its owner, by a client that disconnected, by its idle limit or its expiry.",
        "Extend the sandbox in time, raise its idle limits, or start the program detached so it outlives its client.",
    ),
}

BY_CODE: Final[dict[str, Words]] = {
    "node_lost": Words(
        "The node went away while it held this work, so its fate is not known. This is our fault, not the program's.",
        "Run it again. The server restarts its node by itself; its log says why it died.",
    ),
    "node_unreachable": Words(
        "The node did not answer, so nothing was started.", "Try again; the server restarts its node by itself."
    ),
    "api_restarted": Words(
        "The server restarted while this ran; the program was stopped and its fate is not known.", "Run it again."
    ),
    "api_stopping": Words("The server was shut down while this ran.", "Run it again."),
    "sandbox_lost": Words(
        "The sandbox vanished or broke the protocol, so the program's fate is not known.",
        "Run it again. If it repeats with the same program, that program disturbs its sandbox's process 1.",
    ),
    "sandbox_refused": Words(
        "A wall of the sandbox could not be put up, so it was not started: a sandbox is never weaker than asked for.",
        "`ringfence doctor` on the server names the missing layer and how to get it.",
    ),
    "overloaded": Words(
        "No sandbox became free within the time a request may wait.",
        "Try again in a moment, ask for less at once, or have the operator raise the pool of this template.",
    ),
    "over_quota": Words("The tenant's own maximum was reached.", "Wait for some to end, or ask the operator for more."),
    "pause_lost": Words(
        "It was paused, and what was kept of it is gone from the server's disk.",
        "Create a new sandbox. The operator should look at what removes files from the state directory.",
    ),
    "store_unavailable": Words(
        "The server could not record new work, so it refused it.", "The operator must free the server's disk."
    ),
}
_REFUSED: Final = Words("It was refused before anything was started.", "")
_FAULT: Final = Words(
    "The platform failed; the program's fate is not known. This is our fault, not the program's.",
    "Run it again; if it repeats, report the code and the server's log.",
)


def _of_code(error: wire.ErrorBody) -> Words:
    known = BY_CODE.get(error.code)
    if known is not None:
        return known
    refused = error.code.startswith(("bad_", "unknown_", "guest_", "limit_", "too_", "path_"))
    return _REFUSED._replace(advice=error.remediation) if refused else _FAULT


def _of_exit(fate: wire.Exit) -> Words:
    words = BY_HOW[fate.how]
    if fate.how is How.EXITED:
        if fate.code == 0:
            return Words("The program ended by itself with code 0: success.", "")
        hint = {126: "The file exists but could not be executed.", 127: "The program was not found in the sandbox."}
        return Words(
            f"The program ended by itself with code {fate.code}: it says that it failed.",
            hint.get(fate.code or 0, "Its own messages are in its error output."),
        )
    if fate.how is How.SIGNALLED:
        return words._replace(summary=f"Signal {fate.signal} ended the program; no limit of ours sent it.")
    return words


def _size(count: float) -> str:
    return f"{count / MIB:.4g} MiB" if count >= MIB else f"{count:.0f} bytes"


def _limit(name: str, fate: wire.Exit, limits: Limits | None, usage: Usage | None) -> wire.WhyLimit | None:
    if not name:
        return None
    if name == "wall_seconds" and "CPU" in fate.reason:
        name = "cpu_seconds"
    value = getattr(limits, name, None) if limits is not None else None
    usage = usage or Usage()
    seen = {
        "memory_bytes": f"peak {_size(usage.peak_memory_bytes)}",
        "output_bytes": f"{_size(usage.output_bytes)} written",
        "cpu_seconds": f"{usage.cpu_seconds:.3g} s of processor time",
    }
    in_bytes = name.endswith("_bytes")
    return wire.WhyLimit(
        name=name,
        value="" if value is None else _size(value) if in_bytes else f"{value:g} s",
        seen=seen.get(name, fate.reason),
        change=f"limits.{name}",
    )


def where_time_went(timings: Timings | None) -> str:
    """One sentence about the slowest phase."""
    if timings is None:
        return ""
    phases = {
        "waiting for a warm sandbox": timings.queue,
        "taking the sandbox": timings.claim,
        "starting the program": timings.start,
        "the program itself": timings.run,
        "collecting its output": timings.collect,
    }
    total = sum(phases.values())
    if total <= 0:
        return ""
    name, most = max(phases.items(), key=lambda item: item[1])
    return f"Of {total:.1f} ms, {most:.1f} ms ({most / total:.0%}) went into {name}."


def of_run(run: wire.Run, limits: Limits | None, events: list[wire.Event]) -> wire.Why:
    """A run explained."""
    words = _REFUSED
    if run.exit is not None:
        words = _of_exit(run.exit)
    elif run.error is not None:
        words = _of_code(run.error)
    elif run.state == "running":
        words = Words("It is still running.", "")
    return wire.Why(
        id=run.id,
        kind="run",
        state=run.state,
        summary=words.summary,
        advice=words.advice,
        exit=run.exit,
        error=run.error,
        limit=_limit(words.limit, run.exit, limits, run.usage) if run.exit else None,
        time=where_time_went(run.timings),
        timings=run.timings,
        usage=run.usage,
        events=events,
    )


def of_sandbox(sandbox: wire.Sandbox, events: list[wire.Event]) -> wire.Why:
    """A sandbox explained."""
    words = Words(f"It is {sandbox.state.value}.", "")
    if sandbox.paused is not None:
        words = Words(
            f"It is paused, {sandbox.paused.reason}: its files are kept, its programs ended.",
            "Resume it, or stop it to give its space back; it is stopped by itself when it was paused for too long.",
        )
    if sandbox.exit is not None:
        words = BY_HOW[sandbox.exit.how]
        if sandbox.exit.how is How.TIMED_OUT and "live" in sandbox.exit.reason:
            words = Words("Its time to live was over.", "Ask for a longer ttl_seconds, or extend it in time.")
    elif sandbox.error is not None:
        words = _of_code(sandbox.error)
    return wire.Why(
        id=sandbox.id,
        kind="sandbox",
        state=sandbox.state.value,
        summary=words.summary,
        advice=words.advice,
        exit=sandbox.exit,
        error=sandbox.error,
        limit=_limit(words.limit, sandbox.exit, sandbox.limits, sandbox.usage) if sandbox.exit else None,
        time=where_time_went(sandbox.timings),
        timings=sandbox.timings,
        usage=sandbox.usage,
        events=events,
    )
