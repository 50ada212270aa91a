"""Shortest paths on a grid, a topological order, and the components of a graph."""

import graphlib, heapq
from collections import deque

WALLS = {(x, 3) for x in range(9)} | {(6, y) for y in range(5, 10)}


def neighbours(at):
    x, y = at
    for to in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
        if 0 <= to[0] < 10 and 0 <= to[1] < 10 and to not in WALLS:
            yield to


def dijkstra(start, goal):
    queue, best = [(0, start)], {start: 0}
    while queue:
        cost, at = heapq.heappop(queue)
        if at == goal:
            return cost
        for to in neighbours(at):
            if cost + 1 < best.get(to, 1 << 30):
                best[to] = cost + 1
                heapq.heappush(queue, (cost + 1, to))


def reach(start):
    seen, queue = {start}, deque([start])
    while queue:
        for to in neighbours(queue.popleft()):
            if to not in seen:
                seen.add(to)
                queue.append(to)
    return len(seen)


print(dijkstra((0, 0), (0, 9)), dijkstra((0, 0), (9, 9)), reach((0, 0)))
print(
    list(
        graphlib.TopologicalSorter({"roof": ["wall"], "wall": ["floor"], "door": ["wall"], "floor": []}).static_order()
    )[:2]
)
try:
    list(graphlib.TopologicalSorter({1: [2], 2: [1]}).static_order())
except graphlib.CycleError as error:
    print(error.args[0])
