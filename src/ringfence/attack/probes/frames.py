"""Write forged messages to every descriptor: another job's result, absurd lengths, half a frame, hostile JSON."""

import json
import os
import struct

from ringfence.attack.probes.prelude import attempt, facts, say


def frame(kind: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """One frame as the platform writes it, or with a lie about its length."""
    return struct.pack(">IBI", len(payload) if length is None else length, kind, stream) + payload


FORGED = [
    frame(8, 1, json.dumps({"exit": {"how": "exited", "code": 0, "signal": None, "cpu_seconds": 0}}).encode()),
    frame(8, 0, b'{"exit": {"how": "exited", "code": 0}}'),
    frame(3, 2, b"another stream's output"),
    frame(7, 0, b'{"ready": {"layers": []}}'),
    frame(6, 1, struct.pack(">I", 0xFFFFFFFF)),
    frame(8, 1, b"x", length=0x7FFFFFFF),
    frame(255, 1, b""),
    b'{"run": {"id": "r' + b"a" * 26 + b'", "exit": {"how": "exited", "code": 0}}}\n',
    b'{"exit": NaN}\n' + b"[" * 10_000 + b"]" * 10_000 + b"\n",
    b"\xff\xfe\x00\xed\xa0\x80\n",
    frame(8, 1, b"half a frame", length=400)[:12],
]


def descriptors() -> list[int]:
    """Every open descriptor but the standard input and error."""
    open_now = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in open_now if fd not in {0, 2} and attempt(os.fstat, fd) == "ok"]


wrote = {}
for fd in descriptors():
    os.set_blocking(fd, False)
    outcomes = [attempt(os.write, fd, data) for data in FORGED]
    wrote[fd] = outcomes.count("ok")
    os.set_blocking(fd, True)
say(wrote=wrote, token=facts.get("token", ""))
os._exit(7)
