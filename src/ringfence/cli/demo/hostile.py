"""The demo's tour of attacks: small real programs, each run in a sandbox of its own, and how each is judged."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ringfence.cli.output import size, span
from ringfence.client import Client, RunResult, Sandbox
from ringfence.client.errors import described
from ringfence.domain.errors import RingfenceError
from ringfence.domain.limits import MIB
from ringfence.domain.process import How

Judge = Callable[[RunResult], bool]
LAST_LINE: Final = 160


@dataclass(frozen=True, slots=True)
class Deed:
    """One attack: its program, the wall it runs against, and what must be true of the result when that held."""

    title: str
    code: str
    wall: str
    held: Judge
    limits: Mapping[str, float] = field(default_factory=dict)
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one attack."""

    title: str
    contained: bool
    happened: str
    how: str
    why: str
    seconds: float


def ended(*hows: How) -> Judge:
    """Held when it ended in one of these ways."""
    return lambda result: result.exit.how in hows


def said(word: str) -> Judge:
    """Held when the program itself had to report this."""
    return lambda result: result.exit.ok and word in result.stdout


def either(first: Judge, second: Judge) -> Judge:
    """Held when either says so."""
    return lambda result: first(result) or second(result)


FORK: Final = """
import os, time
try:
    while True:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.01)
except OSError as error:
    alive = sum(name.isdigit() for name in os.listdir("/proc"))
    print(f"refused at {alive} processes: {error.strerror}")
"""
MEMORY: Final = """
kept = []
while True:
    kept.append(bytearray(b"x" * (8 << 20)))
"""
DISK: Final = """
written = 0
try:
    with open("filler", "wb", buffering=0) as file:
        while True:
            written += file.write(bytes(1 << 20))
except OSError as error:
    print(f"refused after {written >> 20} MiB: {error.strerror}")
"""
SECRETS: Final = """
import glob, os
found = []
paths = ["/etc/shadow", "/root/.ssh", "/root/.bash_history", "/var/lib/ringfence", "/etc/ringfence", "/run/docker.sock",
         "/var/run/docker.sock", "/proc/1/root/root", CANARY, "/proc/1/root" + CANARY]
for path in paths:
    try:
        if os.path.isdir(path):
            found += [path] if os.listdir(path) else []
        elif os.path.exists(path):
            open(path, "rb").read(1)
            found.append(path)
    except OSError:
        pass
words = ("KEY", "TOKEN", "SECRET", "PASSWORD", "RINGFENCE", "AWS", "SSH")
for source in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
    try:
        names = [entry.split(b"=")[0].decode() for entry in open(source, "rb").read().split(b"\\0") if entry]
    except OSError:
        continue
    found += [f"{source}: {name}" for name in names if any(word in name.upper() for word in words)]
print("found " + ", ".join(found[:5]) if found else "found no file, no key, no variable of the host")
"""
NETWORK: Final = """
import socket
reached = []
def tcp(host, port):
    with socket.create_connection((host, port), timeout=0.4):
        reached.append(f"{host}:{port}")
def udp(host, port, data):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.4)
        s.sendto(data, (host, port))
        s.recv(512)
        reached.append(f"{host}:{port}/udp")
question = b"\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\7example\\3com\\0\\0\\1\\0\\1"
tries = [lambda: tcp("169.254.169.254", 80), lambda: tcp("127.0.0.1", PORT), lambda: tcp("1.1.1.1", 443),
         lambda: tcp(HOST, PORT), lambda: tcp(HOST, 22), lambda: udp("8.8.8.8", 53, question),
         lambda: reached.append(socket.gethostbyname("example.com"))]
for attempt in tries:
    try:
        attempt()
    except OSError:
        pass
nothing = f"reached nothing in {len(tries)} tries: metadata, host, DNS, internet"
print("reached " + ", ".join(reached) if reached else nothing)
"""
KILL: Final = """
import os, signal
killed = []
for pid in [-1, *range(1, 5000)]:
    if pid == os.getpid():
        continue
    try:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    except OSError:
        pass
print(f"signalled {len(killed)} of its own processes, none of anybody else's")
"""
WALLS: Final = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
opened = []
def attempt(name, call, *arguments):
    if call(*arguments) >= 0:
        opened.append(name)
attempt("new user namespace", libc.unshare, 0x10000000)
attempt("new mount namespace", libc.unshare, 0x00020000)
attempt("mount", libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
attempt("chroot", libc.chroot, b"/tmp")
attempt("ptrace of pid 1", libc.ptrace, 16, 1, 0, 0)
attempt("bpf map", libc.syscall, 321, 0, struct.pack("5I", 2, 4, 4, 1, 0), 20)
attempt("io_uring", libc.syscall, 425, 1, ctypes.create_string_buffer(120))
attempt("userfaultfd", libc.syscall, 323, 0)
attempt("raw packets", libc.socket, 17, 3, 0)
attempt("setuid 0", libc.setuid, 0)
kinds = "namespaces, mount, chroot, ptrace, bpf, packets, root"
print("opened " + ", ".join(opened) if opened else "refused all ten: " + kinds)
"""
FLOOD: Final = """
import sys
while True:
    sys.stdout.write("all work and no play\\n" * 4096)
"""
LOOP: Final = """
while True:
    pass
"""


def deeds(canary: str, host: str, port: int) -> tuple[Deed, ...]:
    """Every attack of the tour, aimed at a file of this host, its address and the server's own port."""
    aimed = f"CANARY = {canary!r}\n" + SECRETS, f"HOST, PORT = {host!r}, {port}\n" + NETWORK
    filled = either(said("refused after"), ended(How.DISK_FULL))
    refused = either(said("refused all"), ended(How.POLICY_KILLED))
    return (
        Deed("fork bomb", FORK, "the limit of 64 processes", said("refused at"), {"processes": 64}),
        Deed("memory bomb", MEMORY, "the limit of 128 MiB", ended(How.OUT_OF_MEMORY), {"memory_bytes": 128 * MIB}),
        Deed("fill the disk", DISK, "the limit of 32 MiB of scratch space", filled, {"scratch_bytes": 32 * MIB}),
        Deed("read the host's secrets", aimed[0], "a root file system and processes of its own", said("found no file")),
        Deed("reach the network", aimed[1], "a network of its own, with nothing in it", said("reached nothing")),
        # Judged by what is still alive afterwards: every attack is followed by a look at the neighbour.
        Deed("kill every process", KILL, "a process namespace of its own", lambda _: True),
        Deed("break the walls", WALLS, "no capability, and an allow list of system calls", refused),
        Deed("flood of output", FLOOD, "the limit of 1 MiB", ended(How.OUTPUT_CAPPED), {"output_bytes": 1 * MIB}),
        Deed("loop for ever", LOOP, "the time limit of 1 s", ended(How.TIMED_OUT), timeout=1.0),
    )


def tour(client: Client, host: str, port: int) -> Iterator[Verdict]:
    """Run every attack, each beside a peaceful neighbour who must not notice."""
    with (
        tempfile.NamedTemporaryFile("w", prefix="ringfence-demo-", suffix=".secret") as canary,
        Sandbox.create("base", ttl=120, client=client) as neighbour,
    ):
        canary.write(secrets.token_hex())
        canary.flush()
        Path(canary.name).chmod(0o644)  # any user of this host may read it; a sandbox must not
        for deed in deeds(canary.name, host, port):
            yield _judged(client, neighbour, deed)


def _judged(client: Client, neighbour: Sandbox, deed: Deed) -> Verdict:
    began = time.monotonic()
    try:
        result = client.run(deed.code, template="base", limits=deed.limits, timeout=deed.timeout)
        held, how = deed.held(result), str(result.exit.how)
        happened, why = _happened(result), result.exit.reason or deed.wall
    except RingfenceError as error:
        # Our own fault is not containment: a demo that called it so would hide a bug.
        held, happened, how, why = False, f"error[{error.code}]", "error", error.cause
    seconds = time.monotonic() - began
    if not _unharmed(neighbour):
        return Verdict(deed.title, False, happened, how, "a neighbouring sandbox was harmed", seconds)
    return Verdict(deed.title, held, happened, how, why, seconds)


def _unharmed(neighbour: Sandbox) -> bool:
    try:
        return neighbour.run("print(6 * 7)", timeout=60).stdout == "42\n"
    except RingfenceError:
        return False


def _happened(result: RunResult) -> str:
    """What it said last, or, of a program that was ended in mid-course, how far it had come."""
    if result.exit.how is How.OUTPUT_CAPPED:
        return f"wrote {size(len(result.stdout_bytes))}, then was cut off"
    if result.exit.how is How.OUT_OF_MEMORY:
        return f"held {size(result.usage.peak_memory_bytes)}, then was ended"
    if result.exit.how is How.TIMED_OUT:
        return f"used {span(result.usage.cpu_seconds)} of processor, then was ended"
    lines = [line for line in (result.stdout or result.stderr).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:LAST_LINE] if lines else f"said nothing; {described(result.exit)}"
