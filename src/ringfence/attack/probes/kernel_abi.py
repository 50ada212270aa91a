"""Reach the kernel through its other doors: the 32-bit gate and the x32 numbers."""

import ctypes
import mmap
import os

from ringfence.attack.probes.prelude import call, in_child, say

X32 = 0x40000000


def gate(number: int, first: int = 0, second: int = 0, third: int = 0) -> str:
    """`int 0x80` from a page of our own: a filter that looks only at numbers reads them as other calls."""
    code = b"".join((
        b"\x53",  # push rbx
        b"\xb8" + number.to_bytes(4, "little"),
        b"\xbb" + first.to_bytes(4, "little"),
        b"\xb9" + second.to_bytes(4, "little"),
        b"\xba" + third.to_bytes(4, "little"),
        b"\xcd\x80",  # int 0x80
        b"\x5b\xc3",  # pop rbx; ret
    ))  # fmt: skip
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return f"answered {answer}" if answer >= 0 else os.strerror(-answer)


calls = {
    "int80 getpid": in_child(gate, 20),
    "int80 unshare NEWUSER": in_child(gate, 310, 0x10000000),
    "int80 socketcall": in_child(gate, 102, 1, 0, 0),
    "int80 ipc": in_child(gate, 117, 23, 7, 4096),
    "int80 io_uring_setup": in_child(gate, 425, 8, 0),
    "x32 getpid": in_child(call, X32 | 39),
    "x32 unshare NEWUSER": in_child(call, X32 | 272, 0x10000000),
    "x32 ptrace": in_child(call, X32 | 521, 0, 0, 0, 0),
    "x32 io_uring_setup": in_child(call, X32 | 425, 8, 0),
}
say(calls=calls)
