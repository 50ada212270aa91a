"""Settle the zygote's memory, so that a fork has little to copy.

A fork copies the page table of every anonymous mapping, entry by entry, and its end undoes that, entry by entry: with
NumPy and pandas imported some 11,000 of each, twice a run, and each touches the kernel's record of that page. Of a file
that is mapped privately a fork copies nothing: who reads a page finds it then, sixteen at a time, and who writes one
gets a copy of it, as ever. So what the imports left is put into a file in memory and mapped from there, in place.
The file has no name, its descriptor is closed, and it is sealed: nobody can ever write to it, the zygote included.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator

from ringfence.guest import syscalls as sc
from ringfence.guest import table
from ringfence.guest.annotations import Final

_MAP_PRIVATE_FIXED: Final = 0x12
_PUNCH_HOLE: Final = 0b11  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

#: Of a mapping (proc(5)): it may be read and written, it is accounted, it was written, it may have large pages.
PLAIN: Final = frozenset({"rd", "wr", "mr", "mw", "me", "ac", "sd", "hg", "nh"})

# What the GNU C library writes before a block that it took from the kernel for itself alone: its size, and this mark
# in the three lowest bits (malloc/malloc.c, "mmapped chunks"). Each begins a page.
_HEAD: Final = ctypes.c_uint64 * 2
_MARKS: Final = 0b111
_ALONE: Final = 0b010

PROTECTIONS: Final = {"rw-p": mmap.PROT_READ | mmap.PROT_WRITE, "r--p": mmap.PROT_READ}

Part = tuple[int, int, int]  # first address, the first behind it, protection


def mappings() -> list[Part]:
    """Our private memory that is not what a file says: allocated, or a library's data. Not the stack we stand on.

    What somebody asked the kernel to treat in a way of its own stays as it is. The C library keeps the state of its
    random numbers where a fork finds zeros: moved, every sandbox would draw the same (attack 110).
    """
    found: list[tuple[Part, bool]] = []
    here: Part | None = None
    changed = unnamed = False
    with open("/proc/self/smaps") as file:
        for line in file:
            fields = line.split()
            if not fields[0].endswith(":"):
                ours = len(fields) == 5 or fields[5].startswith(("/", "[heap]", "[anon"))
                start, end = (int(number, 16) for number in fields[0].split("-"))
                unnamed = len(fields) == 5
                here = (start, end, PROTECTIONS[fields[1]]) if ours and fields[1] in PROTECTIONS else None
            elif fields[0] == "Anonymous:":
                changed = fields[1] != "0"
            elif fields[0] == "VmFlags:" and here is not None and changed and PLAIN.issuperset(fields[1:]):
                found.append((here, unnamed))
    return [piece for part, plain in found for piece in (without_blocks(part) if plain else (part,))]


def without_blocks(part: Part) -> Iterator[Part]:
    """What is left of unnamed memory without its large blocks, which may be asked to grow where they lie.

    The kernel would let one grow into what follows in the file, and past the file's end: there, to touch it is death.
    """
    start, end, protection = part
    begin = here = start
    while here < end:
        before, size = _HEAD.from_address(here)
        length = size & ~_MARKS
        if before or size & _MARKS != _ALONE or not length or length % mmap.PAGESIZE or here + length > end:
            here += mmap.PAGESIZE
            continue
        if begin != here:
            yield begin, here, protection
        begin = here = here + length
    if begin != end:
        yield begin, end, protection


def moving(fd: int, found: list[Part]) -> list[sc.Call]:
    """Write every mapping into the file, whole, and map it from there; between the two nothing runs but these calls.

    What Python did meanwhile would be lost, if only that it began to use a page that was empty when looked at.
    """
    calls = [sc.call("ftruncate", fd, sum(end - start for start, end, _ in found), what="size")]
    offset = 0
    for start, end, protection in found:
        size = end - start
        calls.append(sc.call("pwrite64", fd, start, size, offset, what="copy memory", expect=size))
        calls.append(sc.call("mmap", start, size, protection, _MAP_PRIVATE_FIXED, fd, offset, what="map", expect=start))
        offset += size
    return calls


def thin_out(fd: int, size: int) -> None:
    """Give back what holds zeros alone: memory that was reserved and never touched reads the same from a hole."""
    empty = bytes(mmap.PAGESIZE)
    begin = end = 0
    for offset in range(0, size, mmap.PAGESIZE):
        if os.pread(fd, mmap.PAGESIZE, offset) != empty:
            continue
        if offset != end:
            _punch(fd, begin, end)
            begin = offset
        end = offset + mmap.PAGESIZE
    _punch(fd, begin, end)


def _punch(fd: int, begin: int, end: int) -> None:
    if begin != end:
        sc.execute(sc.call("fallocate", fd, _PUNCH_HOLE, begin, end - begin, what="give memory back"))


def move(machine: table.Machine | None) -> bool:
    """Put what was allocated so far into a file and map it from there; whether that was done.

    Only for a process with one thread. Without the machine that makes calls without Python in between it cannot be.
    Raises OSError when the file cannot be made or sealed.
    """
    if machine is None:
        return False
    fd = os.memfd_create("python3", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        found = mappings()
        calls = moving(fd, found)
        made = table.Table(machine, calls).execute() == len(calls)
        thin_out(fd, sum(end - start for start, end, _ in found))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    finally:
        os.close(fd)
    return made
