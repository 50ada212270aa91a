"""Open sockets of every family and type, then load programs and filters into the ones that open."""

import ctypes
import json
import os
import socket
import struct

from ringfence.attack.probes.prelude import attempt, in_child, libc, say

TYPES = {1: "STREAM", 2: "DGRAM", 3: "RAW", 4: "RDM", 5: "SEQPACKET", 6: "DCCP", 10: "PACKET"}
PROTOCOLS = {16: range(23)}  # netlink: 0 is routing, every other one is something of the kernel's own


def opened(family: int, kind: int, protocol: int = 0) -> str:
    """Try one socket and close it."""
    return attempt(lambda: socket.socket(family, kind, protocol).close())


def of_family(family: int) -> dict[str, str]:
    """Every type of a family, in one child; in a child each where something ends the process."""
    together = in_child(lambda: json.dumps([opened(family, kind) for kind in TYPES]))
    outcomes = json.loads(together) if together.startswith("[") else [in_child(opened, family, kind) for kind in TYPES]
    return {f"socket {family} {name}": outcome for name, outcome in zip(TYPES.values(), outcomes, strict=True)}


def families() -> dict[str, str]:
    """How every type of every family fares."""
    found: dict[str, str] = {}
    for family in range(46):
        found |= of_family(family)
    for protocol in PROTOCOLS[16]:
        outcome = in_child(opened, 16, 3, protocol)
        found[f"netlink {protocol}"] = outcome
    for protocol in (1, 6, 17, 50, 132, 255):
        found[f"raw inet {protocol}"] = in_child(opened, 2, 3, protocol)
    return found


def pair(family: int) -> str:
    """socketpair(2) through the C library, because Python refuses some families itself."""
    fds = (ctypes.c_int * 2)()
    if libc.socketpair(family, 1, 0, fds) == -1:
        raise OSError(ctypes.get_errno(), "socketpair")
    os.close(fds[0])
    os.close(fds[1])
    return "ok"


def option(family: int, level: int, name: int, value: bytes) -> str:
    """Set one option on a fresh socket."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(level, name, value)
    return "ok"


FILTER = struct.pack("HHxxxxQ", 1, 0, 0)
OPTIONS = {
    "TCP_ULP tls": (socket.AF_INET, 6, 31, b"tls"),
    "TCP_ULP espintcp": (socket.AF_INET, 6, 31, b"espintcp"),
    "TCP_ULP smc": (socket.AF_INET, 6, 31, b"smc"),
    "SO_ATTACH_FILTER": (socket.AF_INET, 1, 26, FILTER),
    "SO_ATTACH_BPF": (socket.AF_INET, 1, 50, struct.pack("i", -1)),
    "SO_ATTACH_REUSEPORT_CBPF": (socket.AF_INET, 1, 51, FILTER),
    "SO_ATTACH_REUSEPORT_EBPF": (socket.AF_INET, 1, 52, struct.pack("i", -1)),
    "IPT_SO_SET_REPLACE": (socket.AF_INET, 0, 64, bytes(100)),
    "IPT_SO_SET_ADD_COUNTERS": (socket.AF_INET, 0, 65, bytes(100)),
    "IP6T_SO_SET_REPLACE": (socket.AF_INET6, 41, 64, bytes(100)),
}


def urgent() -> str:
    """Out-of-band data over a Unix pair: a small, rarely walked corner of the kernel."""
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x", socket.MSG_OOB)
    return "ok"


calls = families()
calls |= {f"socketpair {family}": attempt(pair, family) for family in range(46)}
calls |= {name: in_child(option, *row) for name, row in OPTIONS.items()}
calls["MSG_OOB on a Unix pair"] = in_child(urgent)
say(calls=calls)
