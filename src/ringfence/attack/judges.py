"""How a probe is judged: small pure functions from an Observation to a Verdict, and ways to combine them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from ringfence.attack.observation import Judge, Observation, Ran, Verdict

# What a refusal looks like from inside. Anything else ("ok", EFAULT, EINVAL) means that the call was carried out
# or at least begun.
REFUSED: Final = frozenset({"EPERM", "ENOSYS", "SIGSYS"})
MIB: Final = 1024 * 1024
_SHOWN: Final = 6


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return "; ".join(listed[:_SHOWN]) + more


def all_of(*judges: Judge) -> Judge:
    """Held when every judge says so; otherwise what the first unhappy one saw."""

    def by(observation: Observation) -> Verdict:
        verdicts = [one(observation) for one in judges]
        return next((v for v in verdicts if not v.held), verdicts[0])

    return by


def each(check: Callable[[Ran], str], summary: Callable[[Ran], str]) -> Judge:
    """Held when `check` has no complaint about any run; `summary` tells of the first one."""

    def by(observation: Observation) -> Verdict:
        for run in observation.runs:
            complaint = check(run)
            if complaint:
                return Verdict(held=False, seen=complaint)
        return Verdict(held=True, seen=summary(observation.ran))

    return by


def _spoke(run: Ran, *fields: str) -> str:
    missing = [name for name in fields if name not in run.said]
    if not missing:
        return ""
    return f"the program did not report {', '.join(missing)}: {run.how} {run.code} {run.stderr[-300:]}".strip()


def empty(*fields: str, least: int = 1) -> Judge:
    """Held when every named list is there and empty, and at least `least` things were tried."""

    def check(run: Ran) -> str:
        complaint = _spoke(run, *fields, "tried")
        if complaint:
            return complaint
        if run.said["tried"] < least:
            return f"only {run.said['tried']} things were tried"
        return _some(str(item) for name in fields for item in run.said[name])

    return each(check, lambda run: f"nothing, in {run.said['tried']} tries")


def only(field: str, expected: Collection[str], least: int = 1) -> Judge:
    """Held when the named list holds some of what is expected and nothing else, in at least `least` tries."""

    def check(run: Ran) -> str:
        complaint = _spoke(run, field, "tried")
        if complaint or run.said["tried"] < least:
            return complaint or f"only {run.said['tried']} things were tried"
        more = [str(item) for item in run.said[field] if item not in expected]
        return _some(more) or ("" if run.said[field] else f"nothing is left of {field}")

    return each(check, lambda run: f"{_some(run.said[field])}; nothing else, in {run.said['tried']} tries")


def equals(**wanted: Any) -> Judge:
    """Held when every named field has this value."""

    def check(run: Ran) -> str:
        complaint = _spoke(run, *wanted)
        wrong = [f"{k} is {run.said[k]!r}, not {v!r}" for k, v in wanted.items() if not complaint and run.said[k] != v]
        return complaint or _some(wrong)

    return each(check, lambda _: ", ".join(f"{k} is {v!r}" for k, v in wanted.items()))


def refused_calls(
    also: Mapping[str, Collection[str]] | None = None, allowed: Collection[str] = (), least: int = 1
) -> Judge:
    """Held when every call of the table was refused.

    `also` maps a prefix of call names to further outcomes that count as refusals there; calls in `allowed` may do
    as they like.
    """
    more = also or {}

    def fine(name: str, outcome: str) -> bool:
        extra = {o for prefix, outcomes in more.items() if name.startswith(prefix) for o in outcomes}
        return name in allowed or outcome in REFUSED or outcome in extra

    def check(run: Ran) -> str:
        complaint = _spoke(run, "calls")
        if complaint:
            return complaint
        calls: Mapping[str, str] = run.said["calls"]
        if len(calls) < least:
            return f"only {len(calls)} calls were tried"
        return _some(f"{name}: {outcome}" for name, outcome in calls.items() if not fine(name, outcome))

    return each(check, lambda run: f"{len(run.said['calls'])} calls, each refused as it should be")


def ended(*hows: str, within: float | None = None) -> Judge:
    """Held when the program's fate is one of these, in this many seconds."""

    def check(run: Ran) -> str:
        if run.how not in hows:
            return f"ended as {run.how} (code {run.code}, signal {run.signal}) {run.stderr[-200:]}".strip()
        if within is not None and run.wall_seconds > within:
            return f"took {run.wall_seconds:.1f} s"
        return ""

    return each(check, lambda run: f"ended as {run.how} after {run.wall_seconds:.1f} s")


def capped(most: int) -> Judge:
    """Held when no more output than this came back."""

    def check(run: Ran) -> str:
        return f"{run.stdout_bytes} bytes came back" if run.stdout_bytes > most else ""

    return each(check, lambda run: f"{run.stdout_bytes} bytes came back, ended as {run.how}")


def at_most(field: str, most: float) -> Judge:
    """Held when the named number is there and no larger."""

    def check(run: Ran) -> str:
        complaint = _spoke(run, field)
        return complaint or (f"{field} is {run.said[field]}" if run.said[field] > most else "")

    return each(check, lambda run: f"{field} is {run.said[field]:.6g}, at most {most:g}")


def memory_bounded(limit: int) -> Judge:
    """Held when the program was refused or ended before it had clearly more than `limit`, or never held that much.

    What it took and what it held differ when the kernel ends one child after another.
    """
    most = limit + limit // 4 + 16 * MIB

    def check(run: Ran) -> str:
        held = run.peak_memory_bytes
        if run.how == "out_of_memory":
            return f"held {held // MIB} MiB of {limit // MIB} MiB" if held > most else ""
        complaint = _spoke(run, "taken")
        if complaint:
            return complaint
        taken = int(run.said["taken"])
        if taken > most and (held > most or not held):
            return f"took {taken // MIB} MiB and held {held // MIB} MiB of {limit // MIB} MiB, ended as {run.how}"
        return ""

    def summary(run: Ran) -> str:
        refusal = run.said.get("refusal") or run.how
        return f"stopped by {refusal}, having held {run.peak_memory_bytes // MIB} MiB of {limit // MIB} MiB"

    return each(check, summary)


def distinct(field: str, least: int) -> Judge:
    """Held when for every source named in the field no two runs drew the same value."""

    def by(observation: Observation) -> Verdict:
        for run in observation.runs:
            complaint = _spoke(run, field)
            if complaint:
                return Verdict(held=False, seen=complaint)
        sources: list[str] = sorted({name for run in observation.runs for name in run.said[field]})
        if len(sources) < least or len(observation.runs) < 2:
            return Verdict(held=False, seen=f"only {len(sources)} sources in {len(observation.runs)} runs")
        wrong = []
        for source in sources:
            drawn = [run.said[field][source] for run in observation.runs if source in run.said[field]]
            if len(set(drawn)) != len(drawn):
                wrong.append(f"{source}: {len(set(drawn))} different values in {len(drawn)} runs")
        if wrong:
            return Verdict(held=False, seen=_some(wrong))
        return Verdict(held=True, seen=f"{len(sources)} sources, {len(observation.runs)} siblings, all different")

    return by
