"""What the attacking programs share: call the kernel, try in a child, say what was seen.

`programs.text` puts this file in place of the line that imports from it, so a program arrives whole.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
facts: dict[str, Any] = json.loads(os.environ.get("PROBE_FACTS") or "{}")


def say(**seen: Any) -> None:
    """Print the one line the judge reads."""
    sys.stdout.write("\n" + json.dumps(seen, default=repr) + "\n")
    sys.stdout.flush()


def name_of(number: int | None) -> str:
    """The errno's name, as in the manual."""
    return errno.errorcode.get(number or 0, f"errno {number}")


def call(number: int, *arguments: int) -> str:
    """Make one system call; its errno's name, or "ok"."""
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)) == -1:
        return name_of(ctypes.get_errno())
    return "ok"


def attempt(action: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Try it here: "ok", the errno's name, or the exception's."""
    try:
        action(*arguments, **options)
    except OSError as error:
        return name_of(error.errno)
    except Exception as error:  # noqa: BLE001 -- whatever it raises is the observation
        return type(error).__name__
    return "ok"


def _child(write: int, action: Callable[..., str], arguments: tuple[Any, ...], seconds: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        outcome = action(*arguments)
    except OSError as error:
        outcome = name_of(error.errno)
    except BaseException as error:  # noqa: BLE001 -- a child must never return into the parent's code
        outcome = type(error).__name__
    os.write(write, outcome.encode()[:4000])
    os._exit(0)


def in_child(action: Callable[..., str], *arguments: Any, seconds: int = 20) -> str:
    """Try it in a child of its own: what it returned, or the signal that ended it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _child(write, action, arguments, seconds)
    os.close(write)
    with open(read, "rb") as pipe:
        outcome = pipe.read(4096).decode("utf-8", "replace")
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hung" if number == signal.SIGALRM else signal.Signals(number).name
    return outcome or "said nothing"


def text_of(path: str, most: int = 1 << 20) -> str:
    """A file's text, or "" when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def routing(kind: int, flags: int, body: bytes) -> str:
    """One routing-netlink request; "ok" when the kernel acknowledges it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(1)
        sock.send(struct.pack("IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
        answer = sock.recv(8192)
    kind_back, error = struct.unpack_from("H", answer, 4)[0], struct.unpack_from("i", answer, 16)[0]
    return "ok" if kind_back == 2 and error == 0 else name_of(-error)


def rewired(interface: int) -> dict[str, str]:
    """Change the network by routing netlink: a new link, an address, a route, a rule, taking an interface away."""
    link = struct.pack("BxHiII", 0, 0, 0, 1, 1) + attribute(3, b"probe0\0") + attribute(18, attribute(1, b"dummy"))
    address = struct.pack("BBBBI", 2, 24, 0, 0, interface) + attribute(2, bytes([10, 9, 8, 7]))
    route = struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(4, struct.pack("I", interface))
    rule = struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)
    down = struct.pack("BxHiII", 0, 0, interface, 0, 1)
    return {
        "add a link": in_child(routing, 16, 0x600, link),
        "add an address": in_child(routing, 20, 0x600, address),
        "add a route": in_child(routing, 24, 0x600, route),
        "add a rule": in_child(routing, 32, 0x600, rule),
        "switch an interface off": in_child(routing, 16, 0, down),
        "remove an interface": in_child(routing, 17, 0, down),
    }
