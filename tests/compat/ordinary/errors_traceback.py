"""Tracebacks as text, notes, warnings, chained and suppressed causes; the last one is not caught."""

import sys, traceback, warnings


def deeper(n):
    if n == 0:
        raise LookupError("at the bottom")
    deeper(n - 1)


try:
    deeper(3)
except LookupError as error:
    error.add_note("a note")
    print("".join(traceback.format_exception(error)))
try:
    try:
        1 / 0
    except ZeroDivisionError:
        raise ValueError("hidden") from None
except ValueError as error:
    print(error.__context__, error.__cause__, error.__suppress_context__)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    warnings.warn("careful", DeprecationWarning, stacklevel=1)
print(seen[0].category.__name__, seen[0].message, seen[0].lineno)
try:
    (lambda f: f(f))(lambda f: f(f))
except RecursionError as error:
    print(type(error).__name__, sys.getrecursionlimit())
raise SystemExit(3)
