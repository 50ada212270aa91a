"""A zygote's memory, moved into a sealed file: the same bytes for it, copies for its forks, and no way back in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ringfence.guest import settle

MOVE = """
import ctypes, json, os
from ringfence.guest import settle, table
many = [f"number {i}" for i in range(20_000)]
big = bytearray(b"before" * 100_000)
buffer = ctypes.create_string_buffer(b"kept", 1 << 20)
moved = settle.move(table.machine())
"""


def said_by(program: str) -> dict[str, Any]:
    """What a program of its own prints, with its memory moved."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", MOVE + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_everything_is_as_it_was() -> None:
    """Objects, large buffers and foreign memory read the same, and what is allocated later works."""
    said = said_by("""
later = [str(i) * 3 for i in range(50_000)]
big += b"x" * 5_000_000
print(json.dumps({
    "moved": moved, "many": many == [f"number {i}" for i in range(20_000)], "big": big[:600_000] == b"before" * 100_000,
    "buffer": buffer.value.decode(), "later": later[-1],
}))
""")
    assert said == {"moved": True, "many": True, "big": True, "buffer": "kept", "later": "49999" * 3}


def test_a_large_block_that_grows_ends_in_memory_and_not_past_the_file() -> None:
    """The C library grows a large block where it lies; in a file it would run into others' memory and past the end."""
    said = said_by("""
grown = (ctypes.c_char * len(big)).from_buffer(big)
lines = [line.split() for line in open("/proc/self/maps")]
spans = [(*(int(n, 16) for n in fields[0].split("-")), fields[5:]) for fields in lines]
at = ctypes.addressof(grown)
names = [name for start, end, name in spans if start <= at < end]
del grown
for _ in range(6):
    big += bytes(len(big))  # to 38 MB, more than there is in the file
print(json.dumps({"moved": moved, "names": names, "zeros": big.count(0) == len(big) - 600_000}))
""")
    assert said == {"moved": True, "names": [[]], "zeros": True}


def test_little_is_left_for_a_fork_to_copy() -> None:
    """What was allocated is not anonymous any more; the file has no name in any directory and no descriptor is left."""
    said = said_by("""
status = dict(line.split(":") for line in open("/proc/self/status"))
here = os.open("/proc/self/fd", os.O_RDONLY)
links = [os.readlink(fd, dir_fd=here) for fd in os.listdir(here) if int(fd) < 3]
print(json.dumps({
    "anonymous": int(status["RssAnon"].split()[0]), "named": [link for link in links if "memfd" in link],
    "mapped": "memfd:python3 (deleted)" in open("/proc/self/maps").read(),
}))
""")
    assert said["mapped"]
    assert said["named"] == []
    assert said["anonymous"] < 4096


def test_a_fork_writes_to_copies_of_its_own() -> None:
    """What a child writes neither its parent nor its siblings see."""
    said = said_by("""
answers = []
for turn in range(2):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        seen = bytes(big[:6]).decode()
        big[:6] = b"child%d" % turn
        os.write(writer, f"{seen} {bytes(big[:6]).decode()}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answers.append(os.read(reader, 100).decode())
print(json.dumps({"answers": answers, "parent": bytes(big[:6]).decode()}))
""")
    assert said == {"answers": ["before child0", "before child1"], "parent": "before"}


def test_nobody_can_write_to_the_file() -> None:
    """Even who may open it by way of /proc (which no sandbox may) finds it sealed, for writing and for mapping."""
    said = said_by("""
import glob, mmap
place = next(line.split()[0] for line in open("/proc/self/maps") if "memfd:python3" in line)
refused = {}
def attempt(name, act):
    try:
        act()
    except OSError as error:
        refused[name] = error.strerror
path = f"/proc/self/map_files/{place}"
try:
    fd = os.open(path, os.O_RDWR)
except OSError as error:
    refused = dict.fromkeys(("write", "shrink", "map"), error.strerror)
else:
    attempt("write", lambda: os.pwrite(fd, b"x", 0))
    attempt("shrink", lambda: os.ftruncate(fd, 0))
    attempt("map", lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
print(json.dumps(refused))
""")
    assert said.keys() == {"write", "shrink", "map"}


def test_without_the_machine_nothing_is_moved() -> None:
    """Where memory may not become executable all stays where it is: Python would change what it is moving."""
    assert settle.move(None) is False


def test_memory_that_was_only_reserved_takes_no_room() -> None:
    """What was never touched reads as zeros, is nowhere in the file, and can be used."""
    said = said_by("""
import mmap
size = 64 << 20
hole = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
hole[size // 2 : size // 2 + 5] = b"inner"
status = lambda: {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/meminfo")}
before = status()["Shmem"]
moved = settle.move(table.machine())
kept = status()["Shmem"] - before
zeros, inner = hole[:4096] == bytes(4096), hole[size // 2 : size // 2 + 5].decode()
hole[-1:] = b"z"
print(json.dumps({"zeros": zeros, "inner": inner, "last": hole[-1:].decode(), "small": kept < size // 1024 - 16_384}))
""")
    assert said == {"zeros": True, "inner": "inner", "last": "z", "small": True}


def test_what_begins_to_be_used_while_it_moves_is_moved_too() -> None:
    """The lists of what is to be moved lie in the very memory that moves: no page they took is forgotten."""
    said = said_by("""
import sys
held = [bytearray(os.urandom(4096)) for _ in range(200)]
copies = [bytes(each) for each in held]
for turn in range(20):
    settle.move(table.machine())
    held += [bytearray(4000 + turn) for _ in range(50)]
print(json.dumps({"same": all(bytes(a) == b for a, b in zip(held, copies)), "many": len(held)}))
""")
    assert said == {"same": True, "many": 1200}


def test_what_a_fork_must_not_inherit_it_does_not() -> None:
    """Memory that is to be wiped in a fork still is, as the C library's random numbers need it (attack 110)."""
    said = said_by("""
import mmap
secret = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
secret.madvise(18)  # MADV_WIPEONFORK
secret[:4] = b"seed"
os.urandom(8)
settle.move(table.machine())
drawn = []
for turn in range(2):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, json.dumps([secret[:4].decode(), os.urandom(8).hex()]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    drawn.append(json.loads(os.read(reader, 100)))
print(json.dumps({"kept": secret[:4].decode(), "inherited": [each[0] for each in drawn],
                  "numbers": len({each[1] for each in drawn})}))
""")
    assert said == {"kept": "seed", "inherited": ["\0" * 4] * 2, "numbers": 2}
