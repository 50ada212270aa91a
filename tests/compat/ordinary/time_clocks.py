"""Clocks go forward, sleeping takes as long as asked, processor time is not wall time."""

import time

for name in ("time", "monotonic", "perf_counter"):
    clock = getattr(time, name)
    before = clock()
    time.sleep(0.05)
    took = clock() - before
    print(name, 0.045 < took < 2)
before = time.process_time()
time.sleep(0.1)
print(time.process_time() - before < 0.09)
while time.process_time() - before < 0.05:
    pass
print(time.thread_time() > 0, time.monotonic_ns() > 10**6, time.get_clock_info("monotonic").monotonic)
