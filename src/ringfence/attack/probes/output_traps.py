"""Leave traps where results are collected: links out, a pipe, a socket, a huge sparse file, very many files."""

import contextlib
import hashlib
import os
import socket

from ringfence.attack.probes.prelude import attempt, facts, say


def very_many() -> None:
    """Ten thousand empty files."""
    for number in range(10_000):
        os.close(os.open(f"many/{number}", os.O_CREAT))


folder = os.path.expanduser("~/out")
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
made = {
    "r": attempt(os.symlink, "/etc/passwd", "r"),
    "d": attempt(os.symlink, "/", "d"),
    "p": attempt(os.symlink, "/proc/self/environ", "p"),
    "up": attempt(os.symlink, "../../../../../../etc/shadow", "up"),
    "loop": attempt(os.symlink, "loop", "loop"),
    "fifo": attempt(os.mkfifo, "fifo"),
    "sparse": attempt(lambda: os.truncate(os.open("sparse", os.O_CREAT | os.O_RDWR), 1 << 40)),
    "sparse within bounds": attempt(
        lambda: os.truncate(os.open("big", os.O_CREAT | os.O_RDWR), facts.get("big", 900 << 20))
    ),
    "null": attempt(os.symlink, "/dev/zero", "null"),
}
with socket.socket(socket.AF_UNIX) as sock:
    made["socket"] = attempt(sock.bind, "socket")
os.makedirs("many", exist_ok=True)
made["many"] = attempt(very_many)
readable = {}
for name in os.listdir("."):
    with contextlib.suppress(OSError):
        if os.path.isfile(name) and os.stat(name).st_size < 1 << 20:
            with open(name, "rb") as file:
                readable[f"out/{name}"] = hashlib.sha256(file.read(1 << 20)).hexdigest()
say(made=made, readable=readable)
