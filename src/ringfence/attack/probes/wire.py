# ruff: noqa: S108 - unsafe on purpose: it runs inside a sandbox
"""With a wire: forge what goes over it, change it, speak beside it, find whoever else has one."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

from ringfence.attack.probes.prelude import attempt, call, in_child, name_of, rewired, say, text_of

HERE = "198.18.0.1"
OTHERS = [f"198.18.0.{number}" for number in range(2, 5)]
QUESTION = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\7example\3com\0\0\1\0\1"
IOCTLS = {
    "SIOCSIFFLAGS": 0x8914, "SIOCSIFADDR": 0x8916, "SIOCSIFNETMASK": 0x891C, "SIOCSIFMTU": 0x8922,
    "SIOCSIFHWADDR": 0x8924, "SIOCADDRT": 0x890B, "SIOCDELRT": 0x890C, "SIOCSARP": 0x8955, "SIOCSIFNAME": 0x8923,
    "SIOCETHTOOL": 0x8946, "SIOCBONDENSLAVE": 0x8990, "SIOCBRADDBR": 0x89A0,
}  # fmt: skip
FREEBIND, TRANSPARENT, SPEC_DST = (socket.SOL_IP, 15), (socket.SOL_IP, 19), (socket.SOL_IP, 8)


def own_address() -> str:
    """Ours, as the kernel would choose it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((HERE, 53))
        return str(sock.getsockname()[0])


def forged(source: str, option: tuple[int, int] | None) -> str:
    """Ask the resolver in somebody else's name: "ok" when a packet went."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.15)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(*option, 1)
        try:
            sock.bind((source, 0))
            sock.sendto(QUESTION, (HERE, 53))
        except OSError as error:
            return name_of(error.errno)
    return "ok"


def forged_by_message(source: str) -> str:
    """The same by a message that says where it comes from: "ok" when a packet went, and not in our own name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)  # our own resolver's answer is late on a busy machine, and there is none to a forged one
        info = struct.pack("I4s4s", 0, socket.inet_aton(source), bytes(4))
        try:
            sock.sendmsg([QUESTION], [(*SPEC_DST, info)], 0, (HERE, 53))
            sock.recv(512)
        except TimeoutError:
            return "ok"
        except OSError as error:
            return name_of(error.errno)
    return "in our own name"


def forging() -> dict[str, str]:
    """Sources that are not ours: a neighbour's, the router's, the metadata service's, a stranger's, none."""
    tries = {}
    for source in (*OTHERS, HERE, "169.254.169.254", "8.8.8.8"):
        if source == own_address():
            continue
        for name, option in (("", None), (" by FREEBIND", FREEBIND), (" by TRANSPARENT", TRANSPARENT)):
            tries[f"forge {source}{name}"] = in_child(forged, source, option, seconds=60)
        tries[f"forge {source} by message"] = in_child(forged_by_message, source, seconds=60)
    return tries


def raw() -> dict[str, str]:
    """Sockets that would let us write packets ourselves."""
    tries = {}
    for family, kinds, protocols in (
        (socket.AF_PACKET, (2, 3, 10), (3, 8, 0x0300)),
        (socket.AF_INET, (3, 10), (1, 2, 6, 17, 47, 132, 255)),
        (socket.AF_INET6, (3, 10), (6, 17, 58, 255)),
        (44, (3,), (0,)),  # AF_XDP
    ):
        for kind in kinds:
            for protocol in protocols:
                tries[f"socket {int(family)} {kind} {protocol}"] = attempt(socket.socket, family, kind, protocol)
    for group in (2, 4, 6, 10, 12, 13, 16):  # what netlink has beside routing: sockets, SELinux, xfrm, netfilter
        tries[f"netlink {group}"] = attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, group)
    return tries


def configured(request: int, interface: bytes) -> str:
    """One ioctl on an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        data = ctypes.create_string_buffer(struct.pack("16s48x", interface), 64)
        return call(16, sock.fileno(), request, ctypes.addressof(data))


def heard(family: int, kind: int, protocol: int, address: tuple[object, ...], words: bytes) -> str:
    """Speak where nobody should be: "ok" when somebody answers; silence is as good as a refusal."""
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(0.15)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if kind == socket.SOCK_STREAM:
            sock.connect(address)
        else:
            sock.sendto(words, address)
        sock.recv(512)
    return "ok"


def beside() -> dict[str, str]:
    """IPv6, broadcast, multicast, echo, neighbours."""
    tries: dict[str, str] = {}
    for name, index in ((name, index) for index, name in socket.if_nameindex() if name != "lo"):
        for target in ("ff02::1", "ff02::2", "ff02::fb", "fe80::1", "fe80::ff:feff:1"):
            where = (target, 5353, 0, index)
            tries[f"{target} on {name}"] = attempt(heard, 10, 2, 0, where, QUESTION)
            tries[f"{target} on {name} by stream"] = attempt(heard, 10, 1, 0, (target, 80, 0, index), b"")
    for target in ("2001:4860:4860::8888", "fd00:ec2::254", "64:ff9b::808:808"):
        tries[target] = attempt(heard, 10, 1, 0, (target, 443), b"")
    for target, port in (
        ("255.255.255.255", 67),
        ("224.0.0.251", 5353),
        ("239.255.255.250", 1900),
        ("198.19.255.255", 137),
    ):
        tries[f"{target}:{port}"] = attempt(heard, 2, 2, 0, (target, port), QUESTION)
    echo = b"\x08\0\xf7\xff\0\0\0\0"
    mine = own_address()
    others = [other for other in OTHERS if other != mine]  # one's own address answers, from inside
    for target in (HERE, "8.8.8.8", *others):
        tries[f"echo {target}"] = attempt(heard, 2, 2, 1, (target, 0), echo)
    for target in others:
        for port in (53, 80, 5353, 8000):  # a question anywhere comes to our own resolver, which refuses it
            tries[f"{target}:{port}"] = "ours" if port == 53 else attempt(heard, 2, 2, 0, (target, port), QUESTION)
    return tries


def overwritten() -> dict[str, str]:
    """Ask somebody else for names."""
    place = "/etc/resolv.conf"

    def write() -> None:
        with open(place, "a") as file:
            file.write("nameserver 8.8.8.8\n")

    tries = {
        "write": attempt(write), "unlink": attempt(os.unlink, place), "chmod": attempt(os.chmod, place, 0o666),
        "rename over": attempt(os.rename, "/tmp", place), "link over": attempt(os.symlink, "/tmp/x", place),
        "truncate": attempt(os.truncate, place, 0), "lock": attempt(lambda: fcntl.flock(os.open(place, os.O_RDWR), 2)),
    }  # fmt: skip
    return {f"{what} {place}": how for what, how in tries.items()}


names = sorted(name for _, name in socket.if_nameindex())
wire = next((index for index, name in socket.if_nameindex() if name == "eth0"), 0)
tries = forging() | raw() | rewired(wire) | beside() | overwritten()
tries |= {f"{name} on {i.decode()}": configured(number, i) for name, number in IOCTLS.items() for i in (b"eth0", b"lo")}
say(
    found=[f"{what}: {how}" for what, how in tries.items() if how in {"ok", "hung"}]
    + ([] if names == ["eth0", "lo"] else [f"interfaces {names}"])
    + ([] if text_of("/etc/resolv.conf").split()[:2] == ["nameserver", HERE] else ["another resolver"]),
    tried=len(tries) + 2,
)
