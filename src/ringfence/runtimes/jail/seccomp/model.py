"""What a seccomp policy is made of: names with a verdict and a reason, and checks on arguments.

Values only. `policy.py` fills them in, `compile.py` turns them into a program for the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from types import MappingProxyType
from typing import Final

LOW: Final = 0xFFFFFFFF  # the low half of a 64-bit argument, all that the kernel reads of an `int`

Spans = tuple[tuple[int, int], ...]


class Verdict(Enum):
    """What the kernel does with a call."""

    ALLOW = "allow"
    EPERM = "EPERM"  # known to us and refused
    ENOSYS = "ENOSYS"  # refused as if the kernel were older, so that programs fall back
    KILL = "kill"  # another calling convention: its numbers mean other calls, so nothing else is safe


def spans(*items: int | tuple[int, int]) -> Spans:
    """Write a set of values as closed ranges: `spans(1, (4, 9))`."""
    pairs = sorted((item, item) if isinstance(item, int) else item for item in items)
    if any(low > high or low < 0 or high > LOW for low, high in pairs):
        raise ValueError(f"a range runs backwards or past 32 bits: {items}")
    if any(left[1] >= right[0] for left, right in pairwise(pairs)):
        raise ValueError(f"ranges overlap: {items}")
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Check:
    """True when argument `arg`, masked, lies in one of `values`.

    The high half is ignored unless `whole` is set: where the kernel reads 32 bits, a filter that reads 64
    is walked past by setting one of the others. Set `whole` where the kernel reads all 64: it must be zero.
    """

    arg: int
    values: Spans
    mask: int = LOW
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.arg <= 5:
            raise ValueError(f"a system call has arguments 0 to 5, not {self.arg}")
        if any(high & ~self.mask for _, high in self.values) or not 0 < self.mask <= LOW:
            raise ValueError(f"values outside the mask can never match: {self}")


@dataclass(frozen=True, slots=True)
class Rule:
    """A call allowed when every check of at least one clause holds, else answered with `otherwise`."""

    name: str
    any_of: tuple[tuple[Check, ...], ...]
    reason: str
    otherwise: Verdict = Verdict.EPERM


@dataclass(frozen=True, slots=True)
class Group:
    """Names that share a verdict because they share a reason."""

    names: str
    reason: str

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names.split())


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one name."""

    verdict: Verdict | Rule
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy. A name is decided exactly once: an unconditional allow must not swallow a rule.

    A name known to the architecture and absent here is refused with EPERM; a number we cannot name, with ENOSYS.
    """

    allow: tuple[Group, ...] = ()
    enosys: tuple[Group, ...] = ()
    eperm: tuple[Group, ...] = ()
    rules: tuple[Rule, ...] = ()
    decisions: Mapping[str, Decision] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        decisions: dict[str, Decision] = {}
        for name, decision in self._listed():
            if name in decisions:
                raise ValueError(f"the policy decides {name} twice")
            decisions[name] = decision
        object.__setattr__(self, "decisions", MappingProxyType(decisions))

    def _listed(self) -> Iterator[tuple[str, Decision]]:
        """Go through every name with its decision, in the order written."""
        for rule in self.rules:
            yield rule.name, Decision(rule, rule.reason)
        sections = ((Verdict.ALLOW, self.allow), (Verdict.ENOSYS, self.enosys), (Verdict.EPERM, self.eperm))
        for verdict, groups in sections:
            for group in groups:
                yield from ((name, Decision(verdict, group.reason)) for name in group)
