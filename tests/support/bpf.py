"""A classic BPF interpreter over struct seccomp_data, written from the instruction set and not from our compiler."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

LITTLE_ENDIAN_SECCOMP_DATA = "<iIQ6Q"  # nr, arch, instruction_pointer, args[6]


class BadProgramError(Exception):
    """The kernel would refuse this program, or it left its own bounds."""


@dataclass
class Machine:
    """Run one filter over many calls, and remember which of its instructions have ever run."""

    program: bytes
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.program or len(self.program) % 8 or len(self.program) > 8 * 4096:
            raise BadProgramError("not an array of 1 to 4096 instructions")
        self.instructions: list[tuple[int, int, int, int]] = list(struct.iter_unpack("<HBBI", self.program))

    def run(self, arch: int, number: int, args: tuple[int, ...]) -> int:
        """Return the filter's answer to one call."""
        signed = number - (1 << 32) if number >> 31 else number
        data = struct.pack(LITTLE_ENDIAN_SECCOMP_DATA, signed, arch, 0, *args)
        at, accumulator = 0, 0
        while True:
            if at >= len(self.instructions):
                raise BadProgramError("ran off the end")
            self.seen.add(at)
            code, if_true, if_false, k = self.instructions[at]
            at += 1
            match code:
                case 0x20:  # ld [k]
                    if k % 4 or k > len(data) - 4:
                        raise BadProgramError(f"load outside the data at {k}")
                    (accumulator,) = struct.unpack_from("<I", data, k)
                case 0x54:  # and k
                    accumulator &= k
                case 0x05:  # ja k
                    at += k
                case 0x15:  # jeq k
                    at += if_true if accumulator == k else if_false
                case 0x35:  # jge k
                    at += if_true if accumulator >= k else if_false
                case 0x06:  # ret k
                    return k
                case _:
                    raise BadProgramError(f"unexpected instruction {code:#x}")
