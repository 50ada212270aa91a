"""Rows of the catalogue of hostile behaviours: which there are, and why some have no test here.

The tests carry their rows as `@pytest.mark.row(...)`; test_table.py compares.
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

NO_IMAGES = "there are no tenant-supplied images yet: templates are built by the operator"
NO_EGRESS = "there is no egress policy yet: nothing outside can be reached at all (row 86 shows it)"
NO_RUNTIME = "belongs to a runtime that does not exist yet"
NO_RESTORE = "there are no snapshots yet"

NOT_YET = {
    16: NO_IMAGES,
    22: "shared files are re-hashed after each module; the kernel's own regression programs need a host of their own",
    59: "random system call programs need minutes and a kernel log of their own",
    61: NO_RUNTIME,
    63: NO_RUNTIME,
    65: NO_RUNTIME,
    67: NO_RUNTIME,
    68: NO_RUNTIME,
    69: NO_RUNTIME,
    80: NO_EGRESS,
    84: "quotas are the api's: its own tests hold them",
    90: NO_EGRESS,
    92: NO_EGRESS,
    99: NO_EGRESS,
    102: NO_EGRESS,
    111: NO_RESTORE,
    116: "timing between neighbours on one core is documented as a residual risk",
}
