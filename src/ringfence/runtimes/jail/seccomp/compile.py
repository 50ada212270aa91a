"""Turn a policy into the classic BPF program the kernel runs before every system call.

The program is written backwards, from its last instruction to its first. Jumps in BPF only go forward, so
every target exists before the jump to it, and a distance is known the moment an instruction is placed.
A place is counted from the end of the program; the newest instruction's place is the program's length so far.

    is it our architecture? ── no ──> kill
            │ yes
    binary search over the number ──> allow / EPERM / ENOSYS / kill (x32)
            │ a call with a rule
    its checks, clause by clause ──> allow, else the rule's own answer

We write this ourselves because a rule needs an answer of its own when it does not match, which libseccomp has no
words for, and because the outcome is then small enough to be run, instruction by instruction, in a test.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from ringfence.runtimes.jail.seccomp.model import LOW, Check, Policy, Rule, Verdict
from ringfence.runtimes.jail.seccomp.numbers import Architecture, architecture, known_names
from ringfence.runtimes.jail.seccomp.policy import DEFAULT

MAX_INSTRUCTIONS: Final = 4096  # the kernel's BPF_MAXINSNS

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_GOTO: Final = 0x05  # BPF_JMP | BPF_JA
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data; a little-endian argument has its low half first.
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16

_RETURNS: Final = {
    Verdict.ALLOW: 0x7FFF0000,
    Verdict.EPERM: 0x00050000 | errno.EPERM,
    Verdict.ENOSYS: 0x00050000 | errno.ENOSYS,
    Verdict.KILL: 0x80000000,
}
_REACH: Final = 255  # how far a conditional jump can skip

_Place = int
_Cuts = list[tuple[int, _Place]]  # (first value, where it and those above it go), ascending from 0


class _Instruction(NamedTuple):
    code: int
    yes: int
    no: int
    value: int


class _Program:
    """The instructions so far, last one first."""

    def __init__(self) -> None:
        self._written: list[_Instruction] = []
        self._latest_return: dict[int, _Place] = {}
        self._rules: dict[tuple[object, Verdict], _Place] = {}

    def assembled(self) -> bytes:
        """Give the program in the order the kernel reads it, as an array of struct sock_filter."""
        if len(self._written) > MAX_INSTRUCTIONS:
            raise ValueError(f"the filter has {len(self._written)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in reversed(self._written))

    def answer(self, value: int) -> _Place:
        """Find a return within reach: an earlier one, or a new one where that is cheaper than a long jump."""
        place = self._latest_return.get(value)
        if place is None or self._distance(place) >= _REACH - 1:
            place = self._put(_RETURN, value)
            self._latest_return[value] = place
        return place

    def load(self, offset: int, then: _Place, mask: int = LOW) -> _Place:
        """Load a word, mask it, and go on at `then`."""
        if self._distance(then):
            self._put(_GOTO, self._distance(then))
        if mask != LOW:
            self._put(_AND, mask)
        return self._put(_LOAD, offset)

    def branch(self, code: int, value: int, yes: _Place, no: _Place) -> _Place:
        """Compare the loaded word and part ways; a target out of reach gets a stepping stone in between."""
        if self._distance(yes) >= _REACH:  # one short: the other way's stone may be placed in between
            yes = self._stone(yes)
        if self._distance(no) > _REACH:
            no = self._stone(no)
        return self._put(code, value, self._distance(yes), self._distance(no))

    def search(self, cuts: _Cuts) -> _Place:
        """Binary search for the loaded word's range."""
        if len(cuts) == 1:
            return cuts[0][1]
        if len(cuts) == 3 and cuts[0][1] == cuts[2][1] and cuts[1][0] + 1 == cuts[2][0]:
            return self.branch(_EQUAL, cuts[1][0], yes=cuts[1][1], no=cuts[0][1])
        middle = len(cuts) // 2
        above, below = self.search(cuts[middle:]), self.search(cuts[:middle])
        return self.branch(_AT_LEAST, cuts[middle][0], yes=above, no=below)

    def rule(self, rule: Rule) -> _Place:
        """Write the checks of a rule; equal rules share one copy."""
        key = (rule.any_of, rule.otherwise)
        if key not in self._rules:
            miss = self.answer(_RETURNS[rule.otherwise])
            for clause in reversed(rule.any_of):
                hit = self.answer(_RETURNS[Verdict.ALLOW])
                for check in reversed(clause):
                    hit = self._check(check, yes=hit, no=miss)
                miss = hit
            self._rules[key] = miss
        return self._rules[key]

    def _check(self, check: Check, yes: _Place, no: _Place) -> _Place:
        """Test one argument: its high half first where that counts, then the ranges of its low half."""
        offset = _ARGUMENTS + 8 * check.arg
        low = self.load(offset, self.search(_inside(check, yes, no)), check.mask)
        return self.load(offset + 4, self.branch(_EQUAL, 0, yes=low, no=no)) if check.whole else low

    def _stone(self, target: _Place) -> _Place:
        """Find or make a place within reach that leads to `target`."""
        there = self._written[target - 1]
        return self.answer(there.value) if there.code == _RETURN else self._put(_GOTO, self._distance(target))

    def _put(self, code: int, value: int, yes: int = 0, no: int = 0) -> _Place:
        self._written.append(_Instruction(code, yes, no, value))
        return len(self._written)

    def _distance(self, target: _Place) -> int:
        """How many instructions the next one must skip to get to `target`."""
        return len(self._written) - target


def compile_filter(policy: Policy = DEFAULT, arch: str = "x86_64") -> bytes:
    """Compile `policy` for `arch` to an array of struct sock_filter, the same bytes every time."""
    table = architecture(arch)
    program = _Program()
    entry = program.load(_NUMBER, program.search(_dispatch(program, policy, table)))
    foreign = program.answer(_RETURNS[Verdict.KILL])
    program.load(_ARCH, program.branch(_EQUAL, table.audit, yes=entry, no=foreign))
    return program.assembled()


def _dispatch(program: _Program, policy: Policy, table: Architecture) -> _Cuts:
    """Say where each number goes. Rules are written first, so that they lie behind the search."""
    verdicts = _verdicts(policy, table)
    rules = {number: program.rule(verdict) for number, verdict in verdicts if isinstance(verdict, Rule)}
    constant = {verdict: program.answer(_RETURNS[verdict]) for verdict in Verdict}
    cuts: _Cuts = [(0, constant[Verdict.ENOSYS])]
    for number, verdict in verdicts:
        cuts.append((number, rules[number] if isinstance(verdict, Rule) else constant[verdict]))
        cuts.append((number + 1, constant[Verdict.ENOSYS]))
    return _joined([*cuts, (table.foreign_from, constant[Verdict.KILL])])


def _verdicts(policy: Policy, table: Architecture) -> list[tuple[int, Verdict | Rule]]:
    """List the verdict on each number the architecture knows, ascending."""
    misspelt = sorted(policy.decisions.keys() - known_names())
    if misspelt:
        raise ValueError(f"the policy names calls no architecture has: {', '.join(misspelt)}")
    listed = {name: decision.verdict for name, decision in policy.decisions.items()}
    return sorted((number, listed.get(name, Verdict.EPERM)) for name, number in table.numbers.items())


def _inside(check: Check, yes: _Place, no: _Place) -> _Cuts:
    """Say where each value of a checked argument goes."""
    cuts: _Cuts = [(0, no)]
    for low, high in check.values:
        cuts.append((low, yes))
        if high < LOW:
            cuts.append((high + 1, no))
    return _joined(cuts)


def _joined(cuts: _Cuts) -> _Cuts:
    """Drop empty ranges, and join neighbours that go to the same place."""
    joined: _Cuts = []
    for start, place in cuts:
        if joined and joined[-1][0] == start:
            joined.pop()
        if not joined or joined[-1][1] != place:
            joined.append((start, place))
    return joined


class Row(NamedTuple):
    """One line of the policy as people read it."""

    name: str
    verdict: str
    reason: str


def rows(policy: Policy = DEFAULT, arch: str = "x86_64") -> list[Row]:
    """List every name the architecture knows, by name, and what becomes of it and why."""
    lines = [_row(name, policy) for name in sorted(architecture(arch).numbers)]
    lines.append(Row("(unknown number)", Verdict.ENOSYS.value, "a call newer than this table"))
    lines.append(Row("(other architecture, x32)", Verdict.KILL.value, "its numbers mean other calls than ours"))
    return lines


def _row(name: str, policy: Policy) -> Row:
    decision = policy.decisions.get(name)
    if decision is None:
        return Row(name, Verdict.EPERM.value, "not in the policy")
    if isinstance(decision.verdict, Rule):
        return Row(name, f"by argument, else {decision.verdict.otherwise.value}", decision.reason)
    return Row(name, decision.verdict.value, decision.reason)


def describe(policy: Policy = DEFAULT, arch: str = "x86_64") -> str:
    """Write the policy as a text table: name, verdict, reason."""
    table = rows(policy, arch)
    name, verdict = (max(len(row[column]) for row in table) for column in (0, 1))
    return "\n".join(f"{row.name:<{name}}  {row.verdict:<{verdict}}  {row.reason}" for row in table)
