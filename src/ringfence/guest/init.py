"""Process 1 of a lone run: it forks the interpreter, reaps, tells how the interpreter ended, and touches no Python.

A sandbox made for one piece of source code needs nobody who answers requests. What is left for its process 1 takes
117 bytes, and no page of the zygote's heap is copied for it, which was nearly half of what a run cost:

    push rbx; push r12; push r13; push r14
    mov r12, rdx; mov r13, rcx              table, count
    mov r10, rsi; rsi, rdx, r8 = 0          where the C library keeps the thread's id
    mov eax, 56; syscall                    clone, with the flags in rdi
    test rax, rax; jg parent
    pop r14; pop r13; pop r12; pop rbx; ret     the child, or an error: back to Python
    parent: mov r14, rax
    next:   test r13, r13; je over
            load six registers from [r12]; syscall
            cmp qword [r12+56], -2; jne advance     an ordinary call
            cmp rax, r14; je advance                the child it waited for
            cmp rax, -10; jne next                  an orphan, or EINTR: once more. ECHILD: nobody is left
    advance: add r12, 72; dec r13; jmp next
    over:   ud2                             behind exit_group: never reached

`tests/unit/test_guest_init.py` holds them against the plain loop, which is used where memory may not become executable.
"""

from __future__ import annotations

import ctypes
import os
import struct

from ringfence.guest import frames, table
from ringfence.guest import syscalls as sc
from ringfence.guest.annotations import Any, Final
from ringfence.guest.plan import CHANNEL_FD, HOME, OUTPUT_FDS

CODE: Final = bytes.fromhex(
    "534154415541564989d44989cd4989f231f631d24531c0b8380000000f05"
    "4885c07f08415e415d415c5bc34989c64d85ed7440498b0424498b7c2408"
    "498b742410498b5424184d8b5424204d8b4424284d8b4c24300f0549837c"
    "2438fe750b4c39f074064883f8f675c44983c44849ffcdebbb0f0b"
)
STREAM: Final = 1  # a lone run's one stream
UNTIL_CHILD: Final = -2  # in place of the expected result: again, until the child is what came back
FULL_BYTES: Final = 64 * 1024  # a scratch with less than this left counts as full
_WAITED: Final = struct.Struct("=i8xQ16xQ8xQ64x")  # wait status; of struct statfs: bsize, bavail, ffree
_SIGCHLD: Final = 17


def answer(payload: bytes) -> dict[str, Any]:
    """What WAITED says, in the words of an agent's END. Raises FrameError when it is not one."""
    if len(payload) != frames.WAITED_SIZE:
        raise frames.FrameError("a wait status of the wrong length")
    status, block, free_blocks, free_files = _WAITED.unpack(payload)
    try:
        code = os.waitstatus_to_exitcode(status)
    except ValueError:
        raise frames.FrameError("no wait status") from None
    full = block * free_blocks < FULL_BYTES or not free_files
    return {
        "how": "exited" if code >= 0 else "signalled",
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "scratch_full": code > 0 and full,
    }


class Init:
    """The fork that makes the caller process 1 for good, prepared in the zygote."""

    def __init__(self, tid_address: int, *, machine: bool = True) -> None:
        """Without `machine`, or where memory may not become executable, the same is done by a plain loop."""
        self._tid_address = tid_address
        self._frame = ctypes.create_string_buffer(frames.HEADER.size + frames.WAITED_SIZE)
        frames.HEADER.pack_into(self._frame, 0, frames.WAITED_SIZE, frames.WAITED, STREAM)
        status = ctypes.addressof(self._frame) + frames.HEADER.size
        # The zygote lets the kernel reap its children unseen; this one is to be seen.
        self.before = [sc.call("rt_sigaction", _SIGCHLD, sc.buffer(bytes(32)), 0, 8)]
        self._calls = [
            sc.close_from(OUTPUT_FDS[0]),
            sc.call("wait4", -1, status, 0, 0, expect=UNTIL_CHILD),
            sc.call("statfs", HOME.encode(), status + 4),
            sc.call("write", CHANNEL_FD, self._frame, len(self._frame)),
            sc.call("read", CHANNEL_FD, status, 1),  # until the node has taken the output and hangs up
            sc.call("exit_group", 0),
        ]
        self._table = table.Table(None, self._calls)
        self._clone: Any = None
        if machine:
            arguments = (ctypes.c_long,) * 4
            try:
                self._clone = table.load(CODE, *arguments)
            except OSError:
                self._clone = None
        words = sc.fork_flags(tid_address), tid_address, self._table.address, len(self._calls)
        self._arguments = tuple(ctypes.c_long(word) for word in words)

    @property
    def words(self) -> tuple[int, ...]:
        """What the machine is called with, and where it lies. Raises OSError when there is none."""
        if self._clone is None:
            raise OSError("memory may not become executable here")
        return (*(argument.value for argument in self._arguments), self._clone.address)

    def fork(self) -> None:
        """Return in a child; the caller reaps until that child has ended, tells so on the channel, and exits."""
        sc.do(self.before)
        if self._clone is None:
            self._plainly()
            return
        result = self._clone(*self._arguments)
        if result:
            raise sc.SetupError(-result, f"clone: {os.strerror(-result)}")

    def _plainly(self) -> None:
        child = sc.fork(self._tid_address)
        if not child:
            return
        for call in self._calls:
            while True:
                made = sc.attempt(call)
                if call.expect != UNTIL_CHILD or made in {child, -10}:
                    break
