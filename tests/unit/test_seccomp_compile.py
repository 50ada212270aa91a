"""The compiled filter means what the policy says: checked call by call in an interpreter."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.domain.errors import SandboxRefused
from ringfence.runtimes.jail.seccomp.compile import MAX_INSTRUCTIONS, compile_filter, describe, rows
from ringfence.runtimes.jail.seccomp.model import LOW, Check, Group, Policy, Rule, Verdict, spans
from ringfence.runtimes.jail.seccomp.numbers import architecture
from ringfence.runtimes.jail.seccomp.policy import DEFAULT
from tests.support.bpf import Machine
from tests.support.seccomp import HIGH_BITS, I386, NO_ARGS, RETURNS, X32_BIT, cases, intent

TABLE = architecture("x86_64")
ONES = ((1 << 64) - 1,) * 6


def calls(policy: Policy) -> list[tuple[int, int, tuple[int, ...]]]:
    """Every number 0 to 600 with plain and extreme arguments, every rule around its edges, three architectures."""
    plain = [(number, args) for number in range(601) for args in (NO_ARGS, ONES, (HIGH_BITS[1],) * 6)]
    ruled = [(TABLE.numbers[rule.name], args) for rule in policy.rules for args in cases(rule)]
    native = [(TABLE.audit, number, args) for number, args in plain + ruled]
    i386 = [(I386, number, args) for number, args in plain]
    x32 = [(TABLE.audit, X32_BIT | number, args) for number, args in plain]
    edges = [(TABLE.audit, number, NO_ARGS) for number in (X32_BIT - 1, X32_BIT, 0x7FFFFFFF, 0x80000000, LOW)]
    return native + i386 + x32 + edges


def disagreements(policy: Policy, machine: Machine) -> list[str]:
    """The calls where the program answers something else than the policy means."""
    return [
        f"{arch:#x} {number} {[hex(arg) for arg in args]}"
        for arch, number, args in calls(policy)
        if machine.run(arch, number, args) != RETURNS[intent(policy, TABLE, arch, number, args)]
    ]


def test_the_default_filter_agrees_with_its_policy_on_every_number_and_every_edge() -> None:
    """No call in the table, around a rule's edges, or of another architecture is answered differently than meant."""
    assert disagreements(DEFAULT, Machine(compile_filter())) == []


def test_every_instruction_of_the_default_filter_runs_for_some_case() -> None:
    """There is no dead code that a test could have missed."""
    machine = Machine(compile_filter())
    for arch, number, args in calls(DEFAULT):
        machine.run(arch, number, args)
    assert machine.seen == set(range(len(machine.instructions)))


def test_the_filter_is_the_same_bytes_every_time_and_well_within_the_kernels_bound() -> None:
    """A rebuild changes nothing, and there is room for the policy to grow."""
    assert compile_filter() == compile_filter()
    assert len(compile_filter()) // 8 < MAX_INSTRUCTIONS // 4


def test_a_call_without_a_rule_is_decided_in_a_dozen_steps() -> None:
    """The search is binary: no number takes a long walk."""
    for number in range(601):
        machine = Machine(compile_filter(Policy(allow=DEFAULT.allow, enosys=DEFAULT.enosys)))
        machine.run(TABLE.audit, number, NO_ARGS)
        assert len(machine.seen) <= 14


def test_a_machine_without_a_table_is_refused_in_words() -> None:
    """An unknown architecture gets no filter, and so no sandbox."""
    with pytest.raises(SandboxRefused, match="m68k"):
        compile_filter(arch="m68k")


def test_a_misspelt_name_is_refused() -> None:
    """A policy line that would silently do nothing is an error."""
    with pytest.raises(ValueError, match="raed"):
        compile_filter(Policy(allow=(Group("raed", "a slip"),)))


def test_a_policy_too_long_for_the_kernel_is_refused() -> None:
    """We say so ourselves, before the kernel says EINVAL."""
    every_other = Check(0, spans(*range(0, 2 * MAX_INSTRUCTIONS, 2)))
    with pytest.raises(ValueError, match="instructions"):
        compile_filter(Policy(rules=(Rule("read", ((every_other,),), "too many words"),)))


def test_the_table_for_people_has_a_row_and_a_reason_for_every_name() -> None:
    """`doctor` and the documentation can show the whole policy."""
    table = {row.name: row for row in rows()}
    assert table.keys() > TABLE.numbers.keys()
    assert all(row.reason for row in table.values())
    assert (table["read"].verdict, table["bpf"].verdict) == ("allow", "EPERM")
    assert (table["clone3"].verdict, table["clone"].verdict) == ("ENOSYS", "by argument, else EPERM")
    assert len(describe().splitlines()) == len(table)
    assert {row.name: row for row in rows(Policy())}["read"].verdict == "EPERM"


NAMES = sorted(TABLE.numbers)
WORDS = st.one_of(st.integers(0, 70), st.integers(0, LOW), st.sampled_from([0x7FFFFFFF, 0x80000000, LOW - 1, LOW]))


@st.composite
def checks(draw: st.DrawFn) -> Check:
    """A check with any argument, mask, width and ranges."""
    mask = draw(st.sampled_from([LOW, 0x7F, 0xF000, 1, 0x7E020080]))
    edges = sorted({word & mask for word in draw(st.lists(WORDS, min_size=1, max_size=60))})
    singles = [(word, word) for word in edges]
    pairs = [pair for pair in zip(edges[::2], edges[1::2], strict=False) if mask == LOW]
    return Check(draw(st.integers(0, 5)), spans(*(pairs or singles)), mask, draw(st.booleans()))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy that says something of some names, in any mixture."""
    shares: list[list[str]] = [[], [], [], [], []]
    for name in NAMES:
        shares[draw(st.integers(0, 3))].append(name)
    ruled = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    allow, enosys, eperm = (" ".join(n for n in share if n not in ruled) for share in shares[:3])
    clauses = st.lists(st.lists(checks(), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)
    answers = st.sampled_from([Verdict.EPERM, Verdict.ENOSYS])
    return Policy(
        allow=(Group(allow, "some"),),
        enosys=(Group(enosys, "some"),),
        eperm=(Group(eperm, "some"),),
        rules=tuple(Rule(name, draw(clauses), "some", draw(answers)) for name in ruled),
    )


@settings(max_examples=60, deadline=None)
@given(policies(), st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 6), max_size=5))
def test_any_policy_compiles_to_a_program_that_agrees_with_it(policy: Policy, odd: list[tuple[int, ...]]) -> None:
    """The compiler is right about policies nobody has thought of, long jumps included."""
    machine = Machine(compile_filter(policy))
    ruled = {TABLE.numbers[rule.name]: rule for rule in policy.rules}
    for number in range(480):
        tried = itertools.islice(cases(ruled[number]), 0, None, 7) if number in ruled else ()
        for args in itertools.chain((NO_ARGS, ONES), itertools.islice(tried, 300), odd if number in ruled else ()):
            assert machine.run(TABLE.audit, number, args) == RETURNS[intent(policy, TABLE, TABLE.audit, number, args)]
