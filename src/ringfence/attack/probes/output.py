"""Print without end: many lines, or one line that never ends, or one byte here and one byte there."""

import os

from ringfence.attack.probes.prelude import facts

WAY = facts.get("way", "lines")
BOUND = 1 << 30  # a gigabyte is enough to show that nobody counts
written = 0
if WAY == "bytes":
    while written < 1 << 24:
        os.write(1, b"o")
        os.write(2, b"e")
        written += 2
else:
    piece = (b"x" * 1023 + b"\n") * 64 if WAY == "lines" else b"x" * 65536
    while written < BOUND:
        written += os.write(1, piece)
