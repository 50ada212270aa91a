"""Executes a table of prepared system calls without touching Python in between.

The interpreter's own objects lie all over its heap; a loop over prepared calls copies a few hundred pages of a
fresh fork just to count references. The 88 bytes below do the same with none: load six registers, make the call,
compare the result, go on or stop. `tests/unit/test_guest_table.py` holds them against the plain loop.
Where a host forbids making memory executable, the plain loop is used instead.

    push rbx; push rbp; push r12            table in rdi, count in rsi
    mov rbx, rdi; mov rbp, rsi; xor r12d, r12d
    next:  cmp r12, rbp; jae done
           mov rax, [rbx]                   number
           mov rdi, [rbx+8]; mov rsi, [rbx+16]; mov rdx, [rbx+24]
           mov r10, [rbx+32]; mov r8, [rbx+40]; mov r9, [rbx+48]
           syscall
           test rax, rax; js fail           an error
           mov rcx, [rbx+56]                the one right result, or -1 for any
           cmp rcx, -1; je good; cmp rcx, rax; jne fail
    good:  add rbx, 72; inc r12; jmp next
    fail:  mov [rbx+64], rax                what it gave instead
    done:  mov rax, r12                     how many were made
           pop r12; pop rbp; pop rbx; ret
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final

CODE: Final = bytes.fromhex(
    "535541544889fb4889f54531e44939ec733e488b03488b7b08488b731048"
    "8b53184c8b53204c8b43284c8b4b300f054885c07818488b4b384883f9ff"
    "74054839c175094883c34849ffc4ebc1488943404c89e0415c5d5bc3"
)
_ENTRY: Final = struct.Struct("=Q6Qqq")  # number, six arguments, expected result, result of a failure
_WORD: Final = (1 << 64) - 1
_PROT_RX: Final = mmap.PROT_READ | mmap.PROT_EXEC


def load(code: bytes, *arguments: Any) -> Any:
    """Put machine code on a page of its own that can no longer be written; a function of these argument types.

    Raises OSError where memory may not become executable.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    sc.execute(sc.call("mprotect", address, mmap.PAGESIZE, _PROT_RX))
    function: Any = ctypes.PYFUNCTYPE(ctypes.c_long, *arguments)(address)
    function.page, function.address = page, address  # lives as long as whoever may call it
    return function


class Machine:
    """The 88 bytes, ready to be called."""

    def __init__(self) -> None:
        """Raises OSError where memory may not become executable."""
        self.run: Any = load(CODE, ctypes.c_void_p, ctypes.c_long)
        self.address: int = self.run.address


def machine() -> Machine | None:
    """The machine, or None where the host forbids it."""
    try:
        return Machine()
    except OSError:
        return None


def _packed(call: sc.Call) -> bytes:
    arguments = (argument & _WORD for argument in (*call.args, 0, 0, 0, 0, 0, 0)[:6])
    return _ENTRY.pack(call.number, *arguments, call.expect, 0)


class Table:
    """Prepared calls, laid out for the machine. Make it before the fork, run it after."""

    def __init__(self, engine: Machine | None, calls: list[sc.Call]) -> None:
        self._calls = calls  # keeps what the addresses point at alive
        entries = b"".join(map(_packed, calls))
        self._memory = ctypes.create_string_buffer(entries, len(entries))
        self._run = engine.run if engine is not None else None
        self._arguments = ctypes.c_void_p(ctypes.addressof(self._memory)), ctypes.c_long(len(calls))

    @property
    def address(self) -> int:
        """Where the entries lie."""
        return ctypes.addressof(self._memory)

    def execute(self) -> int:
        """Make every call; the number of calls made, which is all of them unless one failed."""
        if self._run is not None:
            return int(self._run(*self._arguments))
        for index, call in enumerate(self._calls):
            result = sc.attempt(call)
            if result < 0 or call.expect not in {-1, result}:
                _ENTRY.pack_into(self._memory, index * _ENTRY.size, *(0,) * 8, result)
                return index
        return len(self._calls)

    def change(self, index: int, place: int, value: int) -> None:
        """Give the call at `index` another argument."""
        struct.pack_into("=Q", self._memory, index * _ENTRY.size + 8 * (1 + place), value)

    def result(self, index: int) -> int:
        """What the call at `index`, where the table stopped, gave."""
        return int(_ENTRY.unpack_from(self._memory, index * _ENTRY.size)[-1])

    def failure(self, index: int) -> str:
        """What the call at `index` was and why it failed."""
        result = self.result(index)
        why = os.strerror(-result) if result < 0 else f"gave {result} instead of {self._calls[index].expect}"
        return f"{self._calls[index].what}: {why}"
