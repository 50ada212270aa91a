"""How long the long tests last: short in every test run, long when a promise itself is checked.

RINGFENCE_ROUNDS (default 5, the promise: 100) is how many things are killed, or how deep failures are injected.
RINGFENCE_RUNS (default 200, the promise: 10,000) is how many runs of mixed fates are made.
Both are taken out of the environment: ringfence itself refuses settings it does not know.
"""

from __future__ import annotations

import os

ROUNDS = int(os.environ.pop("RINGFENCE_ROUNDS", "5"))
RUNS = int(os.environ.pop("RINGFENCE_RUNS", "200"))
