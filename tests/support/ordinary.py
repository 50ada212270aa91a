"""An ordinary program: it does what ordinary programs do, in the current directory, and prints "done"."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import pty
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path


def square(number: int) -> int:
    """Work for a pool."""
    return number * number


def pools() -> None:
    """Threads, and processes by fork and by spawn."""
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(square, range(10))) == 285
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as processes:
            assert processes.map(square, [3]) == [9]


async def talk() -> None:
    """A server and its client on the loopback, and a child process, in one event loop."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"hello"
        writer.close()
    process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert (await process.communicate(b"cat"))[0] == b"cat"


def files() -> None:
    """A database with a write-ahead log, a named pipe, copies with their attributes, a lookup, a shell pipeline."""
    with contextlib.closing(sqlite3.connect("a.db")) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table squares(n)")
        database.executemany("insert into squares values(?)", [(square(n),) for n in range(100)])
        database.commit()
    Path("tree").mkdir()
    shutil.copy2("a.db", "tree/b.db")
    shutil.copytree("tree", "copy")
    os.mkfifo("pipe")
    assert socket.getaddrinfo("localhost", 80)
    pipeline = subprocess.run("seq 9 | sort -r | head -1", shell=True, capture_output=True, check=True)
    assert pipeline.stdout == b"9\n"


def terminal() -> None:
    """A child on a terminal of its own."""
    child, master = pty.fork()
    if child == 0:
        os.execvp("stty", ["stty", "size"])
    assert b"0 0" in os.read(master, 99)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    pools()
    asyncio.run(talk())
    files()
    terminal()
    print("done")
