"""Forks share their parent's random state: make each child's its own, or refuse to go on.

The generators are found once, in the zygote, before any fork: looking for them in every child would touch,
and so copy, the whole heap. (Attack 110; Restoring Uniqueness, arXiv 2102.12892.)
"""

from __future__ import annotations

import _random
import ctypes
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
    if type(generator) is not random.Random:
        return lambda: generator.seed(_number())

    def replace() -> None:  # what its seed() does with a number, without asking first what it was given
        _random.Random.seed(generator, _number())
        generator.gauss_next = None  # type: ignore[attr-defined]

    return replace


def _legacy_numpy(state: Any) -> Any:
    """The bit generator of a RandomState, whose kept second normal number is dropped here, once for every fork."""
    try:
        state.seed(list(os.urandom(4 * 16)))
    except Exception as error:
        raise CannotReseed(f"{type(error).__name__}: {error}") from error
    return state._bit_generator


def _numpy(numpy: Any) -> list[Reseeder]:
    legacy = [_legacy_numpy(state) for state in (*_live(numpy.RandomState), numpy.mtrand._rand)]
    held = [generator.bit_generator for generator in _live(numpy.Generator)]
    every = {id(generator): generator for generator in (*legacy, *held, *_live(numpy.BitGenerator))}
    return [_bit_generator(generator, numpy) for generator in every.values()]


def _bit_generator(generator: Any, numpy: Any) -> Reseeder:
    kind = type(generator)

    def replace() -> None:
        fresh = kind(_number())
        _put(generator, fresh.state, fresh._seed_seq)

    return (_in_place(generator, numpy) if kind is numpy.MT19937 else None) or replace


def _in_place(generator: Any, numpy: Any) -> Reseeder | None:
    """Any 624 words are a state of this one, so it gets them from the kernel instead of having them computed.

    With them what its sequence of further generators is made from. Here is prepared what then takes three writes;
    None for a NumPy that keeps any of it elsewhere.
    """
    state = generator.state
    state["state"]["pos"] = len(state["state"]["key"])  # all used: the next number begins with new ones
    entropy = sys.modules["numpy"].zeros(_SEED_BYTES // 4, "uint32")
    sequence = numpy.SeedSequence(entropy)
    _put(generator, state, sequence)
    try:
        words = (ctypes.c_ubyte * state["state"]["key"].nbytes).from_address(generator.ctypes.state_address)
        places = [memoryview(place).cast("B") for place in (words, entropy, sequence.pool)]
    except (AttributeError, TypeError, ValueError):
        return None
    if bytes(words) != state["state"]["key"].tobytes() or sequence.entropy is not entropy:
        return None

    def replace() -> None:
        for place in places:
            place[:] = os.urandom(place.nbytes)

    return replace


def _put(generator: Any, state: Any, sequence: Any) -> None:
    """A new state, with the sequence from which it makes further generators."""
    try:
        generator.__setstate__((state, sequence))
    except TypeError:  # NumPy before 2.0 lets nobody replace that one
        generator.state = state


def _number() -> int:
    return int.from_bytes(os.urandom(_SEED_BYTES), "big")


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
    ours = {id(r): r for r in (*_live(random.Random), random._inst)}
    found = [_python(r) for r in ours.values() if not isinstance(r, random.SystemRandom)]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        found += _numpy(numpy)
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
