"""A sandbox's way from the clone to its interpreter, made by machine: each call in its turn, and each failure told."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

START = """
import json, os, socket
from ringfence.guest import birth, frames, init, steps, syscalls as sc, table
from ringfence.guest.plan import CHANNEL_FD, OUTPUT_FDS
class Program:
    def __init__(self, *calls):
        self.calls = list(calls)
    def layer(self, index):
        return ["first", "second"][index] if index < len(self.calls) else "agent"
def born(*calls, spread=0):
    '''What the zygote is given, and the node's ends of the channel and of the output.'''
    node, guest = socket.socketpair()
    reader, writer = os.pipe()
    low = os.dup(guest.fileno()), os.dup(writer), os.dup(writer), os.memfd_create("fate")
    ends = tuple(os.dup2(fd, 40 + spread + place) for place, fd in enumerate(low))
    made = birth.Birth(table.machine(), sc.Cloner(0), Program(*calls), init.Init(0))
    for fd in (*low, writer, guest.detach()):
        os.close(fd)
    return made, ends, node, reader
"""


def said_by(program: str) -> dict[str, Any]:
    """What a program of its own, with one thread, prints."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", START + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_interpreter_comes_back_and_process_1_tells_how_it_ended() -> None:
    """After the node's word and every call, twice from other descriptors; process 1 stays and reports."""
    said = said_by("""
told = []
made, ends, node, reader = born(sc.call("umask", 0o27))
for turn in range(2):
    if turn:
        for fd in ends:
            os.close(fd)
        _, ends, node, reader = born(spread=10)
    pid, pidfd = made.give(ends)
    if pid == 0:
        os.write(OUTPUT_FDS[0], f"{os.umask(0):o}".encode())
        os._exit(7)
    for fd in ends:
        os.close(fd)
    node.send(b"G")
    output = os.read(reader, 100).decode()
    frame = frames.Parser().feed(node.recv(1000))[0]
    ended = init.answer(frame.payload)
    node.close()
    told.append([output, ended["how"], ended["code"], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])])
    ends = ()
print(json.dumps({"told": told}))
""")
    assert said == {"told": [["27", "exited", 7, 0]] * 2}


def test_a_call_that_fails_is_named_by_process_1() -> None:
    """The layer it belongs to and what went wrong; the interpreter is never forked."""
    said = said_by("""
made, ends, node, reader = born(sc.call("umask", 0o27), sc.call("close", (1 << 64) - 1, what="close nothing"))
try:
    pid, pidfd = made.give(ends)
except steps.StepFailed as error:
    os.write(CHANNEL_FD, str(error).encode())
    os._exit(3)
node.send(b"G")
print(json.dumps({"told": node.recv(1000).decode(), "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}))
""")
    assert said == {"told": "second: close nothing: Bad file descriptor", "code": 3}


def test_a_node_that_hangs_up_first_ends_it_in_silence() -> None:
    """Without the node's word none of the calls is made."""
    said = said_by("""
made, ends, node, reader = born(sc.call("mkdir", b"/nowhere/at/all", 0o700))
try:
    pid, pidfd = made.give(ends)
except birth.Unborn:
    os._exit(4)
for fd in ends:
    os.close(fd)
node.close()
print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}))
""")
    assert said == {"code": 4}


def test_a_zygote_that_cannot_clone_says_why() -> None:
    """An error of the clone itself is the zygote's to tell."""
    said = said_by("""
made, ends, node, reader = born()
import struct
struct.pack_into("=Q", made._cloner._fields, 0, 0xFFFF_FFFF_0000_0000)
try:
    made.give(ends)
except sc.SetupError as error:
    print(json.dumps({"told": str(error.strerror or error)}))
""")
    assert "clone3" in said["told"]
