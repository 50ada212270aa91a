"""Type into terminals that are not ours: by ioctl, by name, by taking control of one."""

import ctypes
import os
import signal
import struct

from ringfence.attack.probes.prelude import attempt, call, in_child, say

IOCTL = 16
REQUESTS = {
    "TIOCSTI": (0x5412, b"x"),
    "TIOCSTI with bit 32": (0x1_0000_5412, b"x"),
    "TIOCLINUX": (0x541C, b"\x02"),
    "TIOCSETD N_HDLC": (0x5423, struct.pack("i", 13)),
    "TIOCSETD N_GSM": (0x5423, struct.pack("i", 21)),
    "TIOCCONS": (0x541D, b""),
    "TIOCVHANGUP": (0x5437, b""),
    "TIOCSRS485": (0x542F, bytes(32)),
    "KDSETLED": (0x4B32, b"\0"),
    "FIOQSIZE": (0x5460, bytes(8)),
}
NAMED = ["/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0", *(f"/dev/pts/{number}" for number in range(16))]


def request(number: int, data: bytes) -> str:
    """One ioctl on a terminal of our own."""
    master, slave = os.openpty()
    buffer = ctypes.create_string_buffer(data, max(len(data), 64))
    outcome = call(IOCTL, slave, number, ctypes.addressof(buffer))
    os.close(master)
    os.close(slave)
    return outcome


def on_standard_input(number: int) -> str:
    """The same on descriptor 0, whatever it is."""
    byte = ctypes.create_string_buffer(b"\n", 64)
    return call(IOCTL, 0, number, ctypes.addressof(byte))


def control() -> str:
    """Take a terminal that exists and is not ours as the controlling one."""
    os.setsid()
    for name in NAMED:
        try:
            fd = os.open(name, os.O_RDWR)
        except OSError:
            continue
        if call(IOCTL, fd, 0x540E, 1) == "ok" and name != os.ttyname(0 if os.isatty(0) else fd):
            return "ok"
    return "ENOENT"


def opened(name: str) -> None:
    """Open somebody's terminal, without making it ours."""
    os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))


signal.signal(signal.SIGHUP, signal.SIG_IGN)
own = os.ttyname(0) if os.isatty(0) else ""
calls = {name: in_child(request, *row) for name, row in REQUESTS.items()}
calls |= {
    f"{name} on standard input": in_child(on_standard_input, number)
    for name, (number, _) in REQUESTS.items()
    if name.startswith("TIOCS")
}
others = [name for name in NAMED if name != own and attempt(opened, name) == "ok"]
say(calls=calls, others=others, own=own, control=in_child(control))
