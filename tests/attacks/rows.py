"""Rows of the catalogue of hostile behaviours: which there are, and why some have no test here.

The tests carry their rows as `@pytest.mark.row(...)`, the probes theirs in the table; test_table.py compares.
"""

from __future__ import annotations

# Every row, by group of the catalogue; its numbers have gaps.
CATALOGUE = {
    "files": (1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 25, 26),
    "processes": (28, 29, 30, 31, 32, 34, 35, 36, 37, 39, 41, 42, 43),
    "kernel": (45, 46, 47, 48, 49, 51, 52, 53, 55, 58, 59, 60, 61, 63, 65, 67, 68, 69),
    "resources": (70, 71, 72, 74, 75, 76, 77, 78, 80, 81, 83, 84, 85),
    "network": (86, 87, 88, 89, 90, 92, 94, 96, 97, 99, 100, 102),
    "leaks": (103, 104, 106, 107, 109, 110, 111, 113, 114, 116),
}

# Rows that apply to containers and to gVisor: both, or one of them. Each is tried there, by a probe or through the API.
EVERYWHERE = {
    1, 2, 3, 4, 6, 8, 9, 14, 16, 17, 23, 28, 29, 30, 31, 39, 41, 42, 47, 59, 60, 70, 71, 74, 75, 76, 80, 83, 85, 86, 87,
    88, 89, 90, 92, 96, 99, 100, 102, 103, 116,
}  # fmt: skip
CONTAINER_ONLY = {
    7, 12, 13, 15, 20, 22, 24, 25, 26, 32, 34, 35, 36, 37, 43, 45, 46, 48, 49, 51, 52, 53, 55, 58, 72, 78, 81, 94, 97,
    104, 106, 107, 113, 114,
}  # fmt: skip
# Held by something that is the same whatever the runtime, and where that is shown.
WHATEVER_THE_RUNTIME = {
    16: "images are linted when they are brought in: tests/acceptance/test_images_hostile.py",
    41: "the relay's windows and deadlines are the node's: tests/attacks/test_processes.py",
    85: "idle sandboxes are ended by the engine's clock: tests/attacks/test_resources.py",
    113: "tests/attacks/test_posture.py, on each runtime",
}

NO_RUNTIME = "belongs to a runtime that does not exist yet"
NO_RESTORE = "there are no snapshots yet"

NOT_YET = {
    22: "shared files are re-hashed after each module; the kernel's own regression programs need a host of their own",
    59: "the probe random-calls tries some seconds of it; minutes of it need a kernel log of their own",
    61: NO_RUNTIME,
    63: NO_RUNTIME,
    65: NO_RUNTIME,
    67: NO_RUNTIME,
    68: NO_RUNTIME,
    69: NO_RUNTIME,
    84: "quotas are the api's: its own tests hold them",
    111: NO_RESTORE,
    116: "timing between neighbours on one core is documented as a residual risk",
}
