"""The birth of a lone run's sandbox: from the clone to its interpreter, process 1 never comes back to Python.

What the interpreter of a fork touches is copied for it, and process 1 needs none of it: its clone, its wait for the
node's word, its whole set-up and the fork of the interpreter are calls in a row. Two machines make them (table.py and
init.py), and these 38 bytes lead from one to the other:

    push rbx; push rsi; mov rbx, rcx
    call rdx                                the calls, up to the first that fails
    pop rsi; cmp rax, rsi; jne out
    rdi, rsi, rdx, rcx from [rbx]; call [rbx+32]    process 1 for good; only its child comes back, with 0
    pop rbx; ret
    out: inc rax; pop rbx; ret              one more than how many were made

The clone is the first of the calls, and 0 the one result with which it goes on: the zygote stops there, with the
child's number in place of an error.
"""

from __future__ import annotations

import ctypes
import struct

from ringfence.guest import init, steps, table
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.plan import CHANNEL_FD, FATE_FD

CODE: Final = bytes.fromhex("53564889cbffd25e4839f07514488b3b488b7308488b5310488b4b18ff53205bc348ffc05bc3")
ENDS: Final = FATE_FD - CHANNEL_FD + 1  # descriptors a lone run brings
BORN: Final = 0  # which of the calls is the clone,
WAITED: Final = 1 + ENDS  # and which waits for the node's word


class Unborn(Exception):
    """The node hung up before its word; nobody wants this sandbox, and nobody is to be told."""


class Birth:
    """One shape's, prepared in the zygote."""

    def __init__(self, machine: table.Machine, cloner: sc.Cloner, program: steps.Program, reaper: init.Init) -> None:
        """Raises OSError where memory may not become executable, or when `reaper` has no machine of its own."""
        self._cloner = cloner
        self._program = program
        self._word = ctypes.create_string_buffer(1)
        self._ends: tuple[int, ...] = tuple(range(CHANNEL_FD, FATE_FD + 1))
        moved = [sc.call("dup2", fd, fd) for fd in self._ends]
        heard = sc.call("read", CHANNEL_FD, self._word, 1, what="wait for the node's word", expect=1)
        calls = [cloner.call, *moved, heard, *program.calls, *reaper.before]
        self._table = table.Table(machine, calls)
        given = sc.buffer(struct.pack("=5Q", *reaper.words))
        words = self._table.address, len(calls), machine.address, ctypes.addressof(given)
        self._keeps = machine, given, reaper
        self._arguments = tuple(ctypes.c_void_p(word) for word in words)
        self._run: Any = table.load(CODE, *(ctypes.c_void_p,) * 4)

    def give(self, ends: tuple[int, ...]) -> tuple[int, int]:
        """(pid, pidfd) in the zygote, (0, -1) in the interpreter of a sandbox that is set up.

        Raises SetupError in a zygote that cannot clone, and in a process 1 that could not be, StepFailed or Unborn.
        """
        if ends != self._ends:  # the lowest free ones: usually the same as last time
            for index, fd in enumerate(ends):
                self._table.change(1 + index, 0, fd)
            self._ends = ends
        stopped = int(self._run(*self._arguments))
        if stopped == BORN + 1:
            return self._cloner.parent(self._table.result(BORN))
        if stopped == 0:
            return 0, -1
        if stopped < 0:
            raise steps.StepFailed("agent", f"clone: errno {-stopped}")
        made = stopped - 1
        if made <= WAITED:
            raise Unborn
        raise steps.StepFailed(self._program.layer(made - WAITED - 1), self._table.failure(made))
