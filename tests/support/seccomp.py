"""What the policy means, read straight off its tables; and a child process that lives under a filter."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ringfence.runtimes.jail.seccomp.model import Check, Policy, Rule, Verdict
from ringfence.runtimes.jail.seccomp.numbers import Architecture

I386 = 0x40000003
X32_BIT = 0x40000000
HIGH_BITS = (0, 1 << 32, 0xFFFFFFFF << 32)
NO_ARGS = (0,) * 6
RETURNS = {
    Verdict.ALLOW: 0x7FFF0000,
    Verdict.EPERM: 0x00050000 + errno.EPERM,
    Verdict.ENOSYS: 0x00050000 + errno.ENOSYS,
    Verdict.KILL: 0x80000000,
}
ERRNO = {Verdict.EPERM: errno.EPERM, Verdict.ENOSYS: errno.ENOSYS}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def intent(policy: Policy, table: Architecture, audit: int, number: int, args: tuple[int, ...]) -> Verdict:
    """What the policy says should become of a call, by the plainest reading of its tables."""
    if audit != table.audit or number >= X32_BIT:
        return Verdict.KILL
    name = next((name for name, known in table.numbers.items() if known == number), None)
    if name is None:
        return Verdict.ENOSYS
    for rule in policy.rules:
        if rule.name == name:
            return (
                Verdict.ALLOW if any(all(holds(c, args) for c in clause) for clause in rule.any_of) else rule.otherwise
            )
    if any(name in group.names.split() for group in policy.allow):
        return Verdict.ALLOW
    return Verdict.ENOSYS if any(name in group.names.split() for group in policy.enosys) else Verdict.EPERM


def holds(check: Check, args: tuple[int, ...]) -> bool:
    """Whether one check is true of these 64-bit arguments."""
    high, low = divmod(args[check.arg], 1 << 32)
    return not (check.whole and high) and any(first <= low & check.mask <= last for first, last in check.values)


def cases(rule: Rule) -> Iterator[tuple[int, ...]]:
    """Arguments on, inside and outside every edge of a rule, with the high halves clear and set."""
    edges: dict[int, set[int]] = {}
    for check in itertools.chain.from_iterable(rule.any_of):
        for first, last in check.values:
            for value in (first - 1, first, last, last + 1):
                near = {value, value | ~check.mask} | {value ^ bit for bit in _bits(check.mask)}
                edges.setdefault(check.arg, set()).update(word & 0xFFFFFFFF for word in near)
    for lows in itertools.product(*(sorted(values) for values in edges.values())):
        for high in HIGH_BITS:
            args = [high] * 6
            for arg, low in zip(edges, lows, strict=True):
                args[arg] = high | low
            yield tuple(args)


def _bits(mask: int) -> list[int]:
    """The single bits of a mask that leaves something out."""
    return [1 << bit for bit in range(32) if mask != 0xFFFFFFFF and mask >> bit & 1]


def syscall(number: int, *args: int) -> int:
    """Make one raw call and return its errno, or 0."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    return ctypes.get_errno() if result == -1 else 0


def load(program: bytes) -> None:
    """Put this process, and all it becomes, under the filter."""
    held = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.syscall(ctypes.c_long(317), ctypes.c_ulong(1), ctypes.c_ulong(1), fprog):  # FILTER, TSYNC
        raise OSError(ctypes.get_errno(), "seccomp")


def in_child(body: Callable[[], Any], program: bytes | None = None) -> tuple[int, Any]:
    """Run `body` in a forked child, as nobody and under the filter; return its wait status and its answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(60)
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            if program is not None:
                load(program)
            os.write(writer, json.dumps(body()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    return os.waitpid(child, 0)[1], json.loads(answer) if answer else None
