"""Where one runtime answers a probe otherwise and no fence is missing: why, and what must hold there instead.

An entry never excuses a probe: its own judge must hold, the host and the neighbour are looked at as always, and where
the difference is not to be seen any more the usual judge decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ringfence.attack import judges as j
from ringfence.attack import measures as m
from ringfence.attack import posture
from ringfence.attack.host import DEVICES
from ringfence.attack.observation import Judge, Observation, Verdict, judge
from ringfence.attack.table import Probe

GVISOR: Final = "gvisor"
_SENTRY: Final = 64 * j.MIB  # what a sandbox's group has room for beside programs and files: gVisor's kernel


@dataclass(frozen=True, slots=True)
class Difference:
    """Why a runtime's answer is not the usual one, in a sentence, and how that answer is judged."""

    reason: str
    judge: Judge


_OWN_MEMORY: Final = Difference(
    "Files and gVisor's kernel are in the same group as the programs' memory, which the host cannot tell apart: "
    "its one limit is memory, scratch and 64 MiB together.",
    m.held_at_most((64 + 32) * j.MIB + _SENTRY),
)
_NUMBERS: Final = ("oom_score_adj -1000: ok", "oom_score_adj 0: ok", "nice -20: ok")
_IDS: Final = ("setuid 0: ok", "setresuid 0: ok", "setgid 0: ok")  # root's own, which are nobody's outside
_NO_EFFECT: Final = (
    "gVisor's kernel keeps these three numbers to itself: the host's own are shown by the posture from outside."
)

UNDER_GVISOR: Final[Mapping[str, Difference]] = {
    **dict.fromkeys(
        ("privileges", "privileges-exec"),
        Difference(
            "gVisor's status has no lines NoNewPrivs and CapAmb: it knows no ambient set, and prctl says that no "
            "new privilege can be had.",
            posture.privileges_untold,
        ),
    ),
    "namespaces": Difference(
        "gVisor numbers its namespaces itself, alike in every sandbox: those of its own processes on the host are "
        "shown by the posture from outside.",
        posture.own_kernel,
    ),
    "landlock": Difference(
        "gVisor's kernel has no Landlock; what it can open of the host it gets from its gofer, below one directory.",
        posture.no_landlock,
    ),
    "mounts": Difference(
        "gVisor's mount table names neither nosuid nor nodev: `devices-root` shows that no device can be made, "
        "`read-only-root` that a setuid bit does nothing. Its /dev is memory of the sandbox's own.",
        posture.mounts_untold,
    ),
    "more-privileges": Difference(_NO_EFFECT, j.only("found", _NUMBERS, least=15)),
    "more-privileges-root": Difference(_NO_EFFECT, j.only("found", (*_NUMBERS, *_IDS), least=15)),
    "read-only-root-root": Difference(
        "gVisor's /proc/sysrq-trigger does nothing, and an oom_score_adj reaches no further than its own kernel.",
        j.only("found", ("open /proc/sysrq-trigger: ok", "open /proc/1/oom_score_adj: ok"), least=20),
    ),
    "proc-and-sys": Difference(
        "gVisor makes both files up: another command line and another boot id than the host's.",
        j.all_of(
            j.empty("found", "cgroup", least=30),
            j.only("masked", ("/proc/cmdline can be read", "/proc/sys/kernel/random/boot_id can be read")),
        ),
    ),
    **dict.fromkeys(
        ("runtime-traces", "runtime-traces-root"),
        Difference(
            "gVisor shows the programs of a sandbox, and only them, where their agent's memory lies, and lets them "
            "open its pipes anew: one's output can be read or added to by another. Memory and channel stay shut.",
            j.all_of(j.empty("found", least=30), j.only("inner", ("pipe:", "/dev/null", "itself"))),
        ),
    ),
    "shared-inodes-root": Difference(
        "gVisor's /dev is memory of the sandbox's own, so its root may rearrange it: the host's devices are not in it.",
        j.all_of(
            j.only(
                "found",
                [f"{word} /dev/{name}: ok" for word in ("chmod", "utime") for name in DEVICES],
                least=40,
            ),
            j.only("swapped", [f"{word} /dev/{name}: ok" for word in ("unlink", "link over") for name in DEVICES]),
        ),
    ),
    "processor": Difference(
        "gVisor's clocks count programs that wait for a processor: the group's own counter is judged instead.",
        m.processor_bounded(0.25),
    ),
    "kernel-memory": Difference(
        "gVisor's kernel does not count timers and descriptors in flight; they are memory of its own, and the group "
        "bounds that.",
        m.held_at_most((128 + 32) * j.MIB + _SENTRY),
    ),
    "scratch": Difference(
        "gVisor's tmpfs counts bytes, not files: empty ones are memory of its own, and the group bounds that.",
        m.scratch_bytes_bounded(16 * j.MIB),
    ),
    **dict.fromkeys(
        (
            f"memory-{way}"
            for way in ("anonymous", "shared", "memfd", "shm", "scratch", "sysv", "sockets", "pipes", "children")
        ),
        _OWN_MEMORY,
    ),
}  # fmt: skip
DIFFERENCES: Final[Mapping[str, Mapping[str, Difference]]] = {GVISOR: UNDER_GVISOR}


def verdict(probe: Probe, runtime: str, observation: Observation) -> Verdict:
    """Held in this runtime's own way and why, held as everywhere, or breached."""
    difference = DIFFERENCES.get(runtime, {}).get(probe.name)
    if difference is not None:
        own = judge(difference.judge, observation)
        if own.held:
            return Verdict(held=True, seen=own.seen, differs=difference.reason)
    return judge(probe.judge, observation)
