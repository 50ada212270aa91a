"""Edit distance, knapsack, longest common subsequence, number of change."""

from functools import cache


@cache
def distance(a, b):
    if not a or not b:
        return len(a or b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))


def knapsack(room, things):
    best = [0] * (room + 1)
    for weight, value in things:
        for w in range(room, weight - 1, -1):
            best[w] = max(best[w], best[w - weight] + value)
    return best[room]


def common(a, b):
    rows = [[""] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + x if x == y else max(rows[i][j + 1], rows[i + 1][j], key=len)
    return rows[-1][-1]


def change(total, coins):
    ways = [1] + [0] * total
    for coin in coins:
        for n in range(coin, total + 1):
            ways[n] += ways[n - coin]
    return ways[total]


print(distance("kitten", "sitting"), distance("sandbox", "soapbox"))
print(knapsack(50, [(10, 60), (20, 100), (30, 120), (5, 31)]))
print(common("the quick brown fox", "a quack crown for"), change(200, (1, 2, 5, 10, 20, 50, 100, 200)))
