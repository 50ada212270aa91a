"""A hundred threads at once, deep recursion in one of them, and a deadlock that is noticed."""

import sys, threading

gate, seen = threading.Event(), []


def wait(n):
    gate.wait(20)
    seen.append(n)


threads = [threading.Thread(target=wait, args=(n,)) for n in range(100)]
for thread in threads:
    thread.start()
print(threading.active_count())
gate.set()
for thread in threads:
    thread.join()
print(sorted(seen) == list(range(100)))


def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)


threading.stack_size(64 * 1024 * 1024)
sys.setrecursionlimit(20_000)
thread = threading.Thread(target=lambda: print(deep(15_000)))
thread.start()
thread.join()
a, b = threading.Lock(), threading.RLock()
print(a.acquire(), a.acquire(timeout=0.1), b.acquire(), b.acquire())
