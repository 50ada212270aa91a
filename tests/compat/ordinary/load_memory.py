"""Use a good deal of memory and give it back."""

import gc, tracemalloc

blocks = [bytearray(10_000_000) for _ in range(20)]
for n, block in enumerate(blocks):
    block[n * 1000] = n
print(sum(block[n * 1000] for n, block in enumerate(blocks)))
del blocks, block
tracemalloc.start()
table = {n: str(n) for n in range(200_000)}
now, peak = tracemalloc.get_traced_memory()
print(len(table), now > 5_000_000, peak >= now)
del table
gc.collect()
print(tracemalloc.get_traced_memory()[0] < now)
try:
    bytearray(1 << 62)
except MemoryError:
    print("MemoryError")
