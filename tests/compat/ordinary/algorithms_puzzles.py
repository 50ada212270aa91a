"""Eight queens, a sudoku, the towers of Hanoi, the game of life."""


def queens(n, placed=()):
    row = len(placed)
    if row == n:
        yield placed
        return
    for column in range(n):
        if all(c != column and abs(c - column) != row - r for r, c in enumerate(placed)):
            yield from queens(n, (*placed, column))


def hanoi(n, a="a", b="b", c="c"):
    return [] if n == 0 else [*hanoi(n - 1, a, c, b), a + c, *hanoi(n - 1, b, a, c)]


GRID = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"


def sudoku(grid):
    if "0" not in grid:
        return grid
    at = grid.index("0")
    row, column = divmod(at, 9)
    used = set(grid[row * 9 : row * 9 + 9]) | set(grid[column::9])
    corner = row // 3 * 27 + column // 3 * 3
    used |= {grid[corner + r * 9 + c] for r in range(3) for c in range(3)}
    for digit in "123456789":
        if digit not in used and (done := sudoku(grid[:at] + digit + grid[at + 1 :])):
            return done
    return None


def life(cells):
    near = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    counts = {}
    for a, b in cells:
        for x, y in near:
            counts[a + x, b + y] = counts.get((a + x, b + y), 0) + 1
    return {at for at, n in counts.items() if n == 3 or (n == 2 and at in cells)}


print(sum(1 for _ in queens(7)), next(queens(8)))
print(len(hanoi(10)), hanoi(3))
print(sudoku(GRID))
glider = {(1, 0), (2, 1), (0, 2), (1, 2), (2, 2)}
for _ in range(20):
    glider = life(glider)
print(sorted(glider))
