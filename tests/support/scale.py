"""How long the long tests last: short in every test run, long when a promise itself is checked.

RINGFENCE_ROUNDS (default 5, the promise: 100) is how many things are killed, or how deep failures are injected.
RINGFENCE_RUNS (default 200, the promise: 10,000) is how many runs of mixed fates are made.
Both are taken out of the environment: ringfence itself refuses settings it does not know.

CI=true: everything on every runtime, with every release. Elsewhere what runtimes themselves promise (conformance,
attacks, containers) is tried on all of them as well; what is built upon them, on the jail and, for a taste, in
containers, and with the newest and the oldest release. Where a start is dear, conformance tests share a sandbox, and of
moments to kill at some are tried. That takes half as long.
"""

from __future__ import annotations

import os

ROUNDS = int(os.environ.pop("RINGFENCE_ROUNDS", "5"))
EVERYTHING = os.environ.get("CI") == "true"
IN_CI = "declared: under CI=true; elsewhere the framework's example runs (test_examples.py)"
RUNTIMES = ("jail", "container", "gvisor") if EVERYTHING else ("jail",)
OTHERS = ("container", "gvisor") if EVERYTHING else ("container",)
RUNS = int(os.environ.pop("RINGFENCE_RUNS", "200"))


def some(*moments: float) -> tuple[float, ...]:
    """Moments at which something is killed: in CI all, elsewhere every second one and the last."""
    return moments if EVERYTHING else tuple(dict.fromkeys((*moments[::2], moments[-1])))
