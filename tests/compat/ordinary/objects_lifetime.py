"""Weak references, finalizers, cycles, and what the collector frees."""

import gc, sys, weakref


class Node:
    def __init__(self, name):
        self.name, self.other = name, None

    def __del__(self):
        print("gone", self.name)


a = Node("a")
ref = weakref.ref(a, lambda _: print("noticed"))
print(ref() is a)
del a
print(ref())
b, c = Node("b"), Node("c")
b.other, c.other = c, b
gc.collect()
weakref.finalize(b, print, "finalized")
del b, c
print(gc.collect() >= 2)
cache = weakref.WeakValueDictionary()
kept = cache["k"] = Node("k")
cache["l"] = Node("l")
print(sorted(cache), sys.getrefcount(kept) >= 2)
last = Node("at the end")
