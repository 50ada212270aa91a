"""Judges that belong to one probe each: they know what its program reports."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from ringfence.attack.judges import MIB, each
from ringfence.attack.observation import Judge, Ran

# The 32-bit gate and the x32 numbers end the process. A processor or kernel without them answers in its own way.
_NO_DOOR: Final = frozenset({"SIGSYS", "SIGSEGV", "ENOSYS", "Function not implemented"})
# What a full table looks like from inside.
_FULL: Final = frozenset({"EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EAGAIN", "EDQUOT", "ETOOMANYREFS", "EPERM"})
_MOST: Final = {
    "epoll": 4096,
    "eventfd": 4096,
    "timerfd": 4096,
    "socket": 4096,
    "open file": 4096,
    "inotify instance": 4096,
    "inotify watch": 70_000,
    "descriptor in flight": 20_000,
    "queued signal": 5000,
    "timer": 5000,
}

# What making a sandbox may have cost its own group before the program began.
_START_SECONDS: Final = 0.6


def _died(run: Ran, *fields: str) -> str:
    missing = [name for name in fields if name not in run.said]
    return f"the program did not report {', '.join(missing)}: {run.how} {run.stderr[-300:]}" if missing else ""


def _foreign(run: Ran) -> str:
    if _died(run, "calls"):
        return _died(run, "calls")
    return "; ".join(f"{name}: {outcome}" for name, outcome in run.said["calls"].items() if outcome not in _NO_DOOR)


def _terminals(run: Ran) -> str:
    if _died(run, "others", "control"):
        return _died(run, "others", "control")
    wrong = [f"{name} could be opened" for name in run.said["others"]]
    if run.said["control"] == "ok":
        wrong.append("took control of a terminal")
    return "; ".join(wrong)


def _as_root(run: Ran) -> str:
    """The sandbox's root may become any user its namespace maps; everything else stays refused."""
    if _died(run, "found"):
        return _died(run, "found")
    return "; ".join(what for what in run.said["found"] if not what.startswith(("setuid 0", "setresuid 0", "setgid 0")))


def _traps(run: Ran) -> str:
    """A link is followed inside the sandbox, if at all: collecting brings nothing the program could not read itself."""
    if _died(run, "made", "readable"):
        return _died(run, "made", "readable")
    made, readable = run.said["made"], run.said["readable"]
    wrong = [f"{name} could not be laid: {made[name]}" for name in ("r", "d", "p", "fifo") if made[name] != "ok"]
    for path, text in run.files.items():
        # The environment a collector sees is its own, so it may differ from the program's; it may not be brought.
        if text and hashlib.sha256(text.encode()).hexdigest() != readable.get(path):
            wrong.append(f"collecting {path} brought {len(text)} bytes of something else")
    return "; ".join(wrong)


def _core(run: Ran) -> str:
    if _died(run, "fates", "left", "limit"):
        return _died(run, "fates", "left", "limit")
    wrong = [f"left {name}" for name in run.said["left"]]
    wrong += [f"crashing ended as {fate}" for fate in run.said["fates"] if fate != "SIGABRT"]
    if list(run.said["limit"]) != [0, 0]:
        wrong.append(f"core limit is {run.said['limit']}")
    return "; ".join(wrong)


def _killed(run: Ran) -> str:
    """It may end itself with everything else; it must not find more than itself."""
    if run.said.get("found"):
        return "; ".join(run.said["found"])
    if run.how not in {"exited", "signalled", "stopped"}:
        return f"ended as {run.how}"
    return ""


def _kernel_memory(run: Ran) -> str:
    if run.how == "out_of_memory":
        return ""
    if _died(run, "took"):
        return _died(run, "took")
    took: dict[str, list[Any]] = run.said["took"]
    # Names that do not exist are the kernel's to forget, and their memory is the group's: they need no refusal.
    counted = {name: row for name, row in took.items() if name in _MOST}
    wrong = [
        f"{name}: {count}, no refusal"
        for name, (count, why) in counted.items()
        if count >= _MOST[name] and why not in _FULL
    ]
    return "; ".join(wrong)


def processes_bounded(limit: int) -> Judge:
    """Held when forks and threads were refused at about the limit."""

    def check(run: Ran) -> str:
        if _died(run, "peak", "threads"):
            return _died(run, "peak", "threads")
        peak, threads = int(run.said["peak"]), int(run.said["threads"])
        wrong = [f"{peak} children at a limit of {limit}"] if peak > limit else []
        wrong += [f"{threads} threads at a limit of {limit}"] if threads > limit else []
        wrong += ["forks were never refused"] if not run.said["refusal"] else []
        return "; ".join(wrong)

    def summary(run: Ran) -> str:
        return f"{run.said['refusal']} after {run.said['peak']} children, {run.said['threads']} threads, of {limit}"

    return each(check, summary)


def scratch_bounded(size: int, files: int) -> Judge:
    """Held when every place together took no more than the scratch's size and number of files."""

    def check(run: Ran) -> str:
        if run.how == "out_of_memory":
            return ""
        if _died(run, "bytes", "files", "ghost", "trusted"):
            return _died(run, "bytes", "files", "ghost", "trusted")
        written = sum(int(done) for done, _ in run.said["bytes"].values())
        wrong = [f"{written // MIB} MiB written of {size // MIB} MiB"] if written > size + MIB else []
        wrong += [f"{run.said['files'][0]} files of {files}"] if run.said["files"][0] > files else []
        wrong += [f"set {name}" for name, outcome in run.said["trusted"].items() if outcome == "ok"]
        return "; ".join(wrong)

    def summary(run: Ran) -> str:
        if run.how == "out_of_memory":
            return "ended by its memory limit"
        return f"{run.said['files'][1]} after {run.said['files'][0]} files; bytes stopped at the scratch's size"

    return each(check, summary)


def scratch_bytes_bounded(size: int) -> Judge:
    """Held when bytes stopped at the scratch's size although files were not counted, and no attribute was set."""

    def check(run: Ran) -> str:
        if _died(run, "bytes", "files", "ghost", "trusted"):
            return _died(run, "bytes", "files", "ghost", "trusted")
        written = sum(int(done) for done, _ in run.said["bytes"].values())
        wrong = [f"{written // MIB} MiB written of {size // MIB} MiB"] if written > size + MIB else []
        wrong += [f"set {name}" for name, outcome in run.said["trusted"].items() if outcome == "ok"]
        return "; ".join(wrong)

    return each(check, lambda run: f"{run.said['files'][0]} files; bytes stopped at the scratch's size")


def held_at_most(most: int) -> Judge:
    """Held when the sandbox's group never held more than this, whatever its programs count themselves.

    A sandbox that its memory limit ended as a whole may be gone before its peak is read: that end is the answer. The
    kernel lets who is dying have a few pages beyond a limit, and counts them.
    """

    def check(run: Ran) -> str:
        held = run.peak_memory_bytes
        if run.how != "out_of_memory" and not run.said:
            return f"the program did not report: {run.how} {run.stderr[-300:]}"
        counted = held > 0 or run.how == "out_of_memory"
        return "" if counted and held <= most + MIB else f"held {held // MIB} MiB of {most // MIB} MiB"

    return each(check, lambda run: f"held {run.peak_memory_bytes // MIB} of {most // MIB} MiB, ended as {run.how}")


def processor_bounded(cores: float) -> Judge:
    """Held when the group's own counter stayed at its share, the sandbox's start aside."""
    most = cores * 1.1 + 0.05

    def share(run: Ran) -> float:
        return max(0.0, run.cpu_seconds - _START_SECONDS) / max(float(run.said["took"]), 0.1)

    def check(run: Ran) -> str:
        if _died(run, "took"):
            return _died(run, "took")
        return f"the group used {share(run):.2f} processors" if share(run) > most or not run.cpu_seconds else ""

    return each(check, lambda run: f"the group used {share(run):.2f} processors of {cores:g}")


def own_fate(code: int) -> Judge:
    """Held when the program's real fate was reported, whatever it forged."""

    def check(run: Ran) -> str:
        if (run.how, run.code) != ("exited", code):
            return f"ended as {run.how} {run.code}, although it exited with {code}"
        return ""

    return each(check, lambda run: f"reported as exited {run.code}; forgeries were output like any other")


foreign_abi: Final = each(
    _foreign, lambda run: f"{len(run.said['calls'])} calls by other doors, each ended the process"
)
no_other_terminal: Final = each(_terminals, lambda run: f"{len(run.said['calls'])} requests refused, no other terminal")
no_more_as_root: Final = each(_as_root, lambda run: f"nothing but its own ids, in {run.said['tried']} tries")
traps_defused: Final = each(_traps, lambda run: f"{len(run.files)} traps asked for, none brought a byte")
no_core: Final = each(_core, lambda run: f"fates {run.said['fates']}, no core")
killed_only_itself: Final = each(_killed, lambda run: f"ended as {run.how}; nobody else noticed")
kernel_memory_bounded: Final = each(_kernel_memory, lambda run: f"ended as {run.how}: {run.said.get('took', {})}")
