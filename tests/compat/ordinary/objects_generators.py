"""Generators, context managers, decorators, itertools, exception groups, pattern matching."""

import contextlib, functools, itertools, operator


def averager():
    total = n = 0
    mean = None
    while True:
        total += yield mean
        n += 1
        mean = total / n


@contextlib.contextmanager
def section(name):
    print("enter", name)
    try:
        yield name.upper()
    except LookupError as error:
        print("swallowed", repr(error))
    finally:
        print("leave", name)


def twice(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return f(f(*args, **kwargs))

    return wrapper


@twice
def add3(x):
    "Adds."
    return x + 3


mean = averager()
next(mean)
print([mean.send(x) for x in (10, 20, 30)], add3(1), add3.__name__, add3.__doc__)
with section("one") as name, section("two"):
    print(name)
    {}["missing"]
print([(k, len(list(g))) for k, g in itertools.groupby("aabbbc")], list(itertools.pairwise("abcd")))
print(list(itertools.accumulate(range(1, 8), operator.mul)), list(itertools.batched("abcdefg", 3)))
try:
    raise ExceptionGroup("several", [ValueError(1), TypeError(2), ExceptionGroup("more", [KeyError(3)])])
except* ValueError as group:
    print("values", group.exceptions)
except* (TypeError, KeyError) as group:
    print("others", group)
for thing in ({"kind": "point", "at": [1, 2]}, [1, 2, 3], "text", 7):
    match thing:
        case {"kind": "point", "at": [x, y]}:
            print("point", x, y)
        case [first, *rest]:
            print("list", first, rest)
        case str() as text if len(text) > 3:
            print("long text")
        case _:
            print("else")
