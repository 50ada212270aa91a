"""Five ways to sort the same numbers."""

import bisect, heapq, random


def quick(xs):
    if len(xs) < 2:
        return xs
    pivot = xs[len(xs) // 2]
    return quick([x for x in xs if x < pivot]) + [x for x in xs if x == pivot] + quick([x for x in xs if x > pivot])


def merge(xs):
    if len(xs) < 2:
        return xs
    middle = len(xs) // 2
    return list(heapq.merge(merge(xs[:middle]), merge(xs[middle:])))


def heap(xs):
    heapq.heapify(xs := list(xs))
    return [heapq.heappop(xs) for _ in range(len(xs))]


def insertion(xs):
    result = []
    for x in xs:
        bisect.insort(result, x)
    return result


random.seed(7)
numbers = [random.randrange(1000) for _ in range(500)]
for way in (quick, merge, heap, insertion):
    print(way.__name__, way(numbers) == sorted(numbers))
print(sorted(numbers)[:20])
