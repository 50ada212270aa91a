"""Write a lot, quickly and in odd pieces."""

import sys

for n in range(20_000):
    print(n, "x" * (n % 50))
sys.stdout.flush()
sys.stdout.buffer.write(bytes(range(256)) * 100)
for n in range(100):
    sys.stdout.write(".")
    sys.stdout.flush()
print()
