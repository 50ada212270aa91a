"""Starts the unfenced server (see unfenced.py) for as long as the bench runs, and gives it a key."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ringfence.bench.exchange import Target
from ringfence.bench.programs import Command
from ringfence.bench.unfenced import LOOPBACK, Orders
from ringfence.config import ServerSettings
from ringfence.domain.errors import PlatformFault
from ringfence.store.sqlite import KeyRing

READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
TENANT: Final = "bench"


@contextlib.contextmanager
def unfenced(state: Path, commands: Mapping[str, Command]) -> Iterator[Target]:
    """A server that runs these commands as plain child processes. It stops, and is killed if need be, at the end."""
    settings = ServerSettings(state=str(state), host=LOOPBACK, port=0)
    key = _key(settings)
    with socket.create_server((LOOPBACK, 0), backlog=4096) as listener:
        port = listener.getsockname()[1]
        process, ready = _start(Orders(settings, dict(commands)), listener)
    try:
        _await(ready)
        yield Target(LOOPBACK, port, key)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _key(settings: ServerSettings) -> str:
    settings.database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ring = KeyRing(settings.database)
    try:
        return ring.add(TENANT, "for one bench")[0]
    finally:
        ring.close()


def _start(orders: Orders, listener: socket.socket) -> tuple[subprocess.Popen[bytes], int]:
    orders_in = os.memfd_create("ringfence-bench", os.MFD_CLOEXEC)
    os.write(orders_in, msgspec.json.encode(orders))
    os.lseek(orders_in, 0, os.SEEK_SET)
    ready_in, ready_out = os.pipe2(os.O_CLOEXEC)
    fds = {"--orders-fd": orders_in, "--listen-fd": listener.fileno(), "--ready-fd": ready_out}
    words = [str(word) for pair in fds.items() for word in pair]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ringfence.bench.unfenced", *words, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=tuple(fds.values()), start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(orders_in)
        os.close(ready_out)
    return process, ready_in


def _await(ready: int) -> None:
    with os.fdopen(ready, "rb") as pipe:
        woken, _, _ = select.select([pipe], [], [], READY_SECONDS)
        if not woken or not pipe.readline():
            raise PlatformFault("the unfenced server for comparison did not start", code="not_started")
