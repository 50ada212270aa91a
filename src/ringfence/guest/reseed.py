"""Forks share their parent's random state: make each child's its own, or refuse to go on.

The generators are found once, in the zygote, before any fork: looking for them in every child would touch,
and so copy, the whole heap. (Attack 110; Restoring Uniqueness, arXiv 2102.12892.)
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable

from ringfence.guest.annotations import Any, Final

_SEED_BYTES: Final = 32
Reseeder = Callable[[], None]


class CannotReseed(Exception):
    """A live generator whose state we do not know how to replace."""


def _python(generator: random.Random) -> Reseeder:
    return lambda: generator.seed(int.from_bytes(os.urandom(_SEED_BYTES), "big"))


def _legacy_numpy(state: Any) -> Reseeder:
    return lambda: state.seed(list(os.urandom(4 * 16)))


def _bit_generator(generator: Any) -> Reseeder:
    kind = type(generator)

    def replace() -> None:
        fresh = kind(int.from_bytes(os.urandom(_SEED_BYTES), "big"))
        try:  # with the sequence from which it makes further generators
            generator.__setstate__((fresh.state, fresh._seed_seq))
        except TypeError:  # NumPy before 2.0 lets nobody replace that one
            generator.state = fresh.state

    return replace


def _torch(torch: Any) -> Reseeder:
    return lambda: torch.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)


def _openssl(ssl: Any) -> Reseeder:
    # OpenSSL notices a fork by the process id, and in a new pid namespace that can be the parent's own.
    return lambda: ssl.RAND_add(os.urandom(_SEED_BYTES), float(_SEED_BYTES))


def _tempfile(tempfile: Any) -> Reseeder:
    def forget() -> None:
        tempfile._name_sequence = None

    return forget


def _live(kind: type) -> list[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, kind)]


def find() -> list[Reseeder]:
    """One call per live generator in this process. Raises CannotReseed for a kind we cannot replace."""
    found = [_python(r) for r in _live(random.Random) if not isinstance(r, random.SystemRandom)]
    found += [_python(random._inst)]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        found.append(_legacy_numpy(numpy))
        found += [_legacy_numpy(state) for state in _live(numpy.RandomState)]
        found += [_bit_generator(held.bit_generator) for held in _live(numpy.Generator)]
        found += [_bit_generator(held) for held in _live(numpy.BitGenerator)]
    for name, make in (("torch", _torch), ("ssl", _openssl), ("tempfile", _tempfile)):
        if name in sys.modules:
            found.append(make(sys.modules[name]))
    return found


def apply(reseeders: list[Reseeder]) -> None:
    """Run every reseeder. Raises CannotReseed at the first that fails: no sandbox runs with shared state."""
    for reseed in reseeders:
        try:
            reseed()
        except Exception as error:
            raise CannotReseed(f"{type(error).__name__}: {error}") from error
