"""Make what the zygote holds immortal: a fork that only reads an object then copies no page to count references.

Since 3.12 CPython knows objects whose count is never written (PEP 683), None for one. Everything that is alive when the
zygote has settled is there for good in every fork, so it may as well be of that kind. What is made later is counted as
ever. The number that means "immortal" differs between versions; None's own count is that number in each of them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import types

from ringfence.guest.annotations import Any, Final

SINCE: Final = (3, 12)
_COUNT: Final = ctypes.c_uint32  # the lower half of the count; the upper half is unused or flags


def _count_of(thing: object) -> ctypes.c_uint32:
    return _COUNT.from_address(id(thing))


def possible() -> bool:
    """Whether this interpreter has immortal objects whose count lies where we write it."""
    if sys.version_info < SINCE or sys.implementation.name != "cpython" or not hasattr(sys, "getrefcount"):
        return False
    before = _count_of(None).value
    held = [None] * 100  # on an interpreter that counts, or that keeps its count elsewhere, this shows
    return before == _count_of(held[0]).value and before > 1 << 30


def _parts(thing: object) -> list[Any]:
    """What an object leads to; the collector does not look into code."""
    if type(thing) is types.CodeType:
        names = thing.co_filename, thing.co_name, thing.co_qualname, thing.co_linetable, thing.co_exceptiontable
        return [thing.co_consts, thing.co_names, *names, *thing.co_varnames, *thing.co_cellvars, *thing.co_freevars]
    return gc.get_referents(thing)


def make() -> int:
    """Make everything alive immortal; returns how many objects that were. Nothing, where the interpreter cannot."""
    if not possible():
        return 0
    immortal, made = _count_of(None).value, 0
    waiting = gc.get_objects()
    own = {id(waiting)}
    while waiting:
        thing = waiting.pop()
        count = _count_of(thing)
        if count.value >= immortal or id(thing) in own:
            continue
        count.value = immortal
        made += 1
        waiting += _parts(thing)
    return made
