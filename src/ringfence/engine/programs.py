"""What became of a program: the node's verdict above the guest's word, and never an invented fate."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from ringfence import wire
from ringfence.domain.errors import SandboxLost
from ringfence.domain.process import How, Timings, Usage
from ringfence.engine.answers import GuestEnd, GuestExit, RunEnd, decode_node, guest_end, raise_node
from ringfence.engine.link import End, NodeStream

KILLED: Final = 9
SHELL_KILLED: Final = 128 + KILLED  # what a shell says when its child was killed


class Fate(NamedTuple):
    """A program's end, all of it."""

    exit: wire.Exit
    usage: Usage | None
    timings: Timings | None
    sandbox: str | None
    oom_kills: int


def read(end: End) -> tuple[RunEnd, GuestEnd]:
    """Decode the last frame of a guest stream. Raises what the node or the agent raised."""
    header = decode_node(end.header, RunEnd)
    raise_node(header.error)
    if header.override is not None:
        return header, _whatever(end.guest)
    return header, guest_end(end.guest)


def _whatever(payload: bytes) -> GuestEnd:
    """What a condemned guest said, if it can be read at all: the node's verdict stands either way."""
    try:
        return guest_end(payload)
    except Exception:  # noqa: BLE001 - a lie beside a verdict changes nothing
        return GuestEnd()


def fate(end: End, oom_kills_before: int = 0) -> Fate:
    """A program's fate. Raises SandboxLost when nobody knows it."""
    header, guest = read(end)
    if header.override is not None:
        said = guest.exit
        known = wire.Exit(
            how=header.override.how,
            code=said.code if said else None,
            signal=said.signal if said else None,
            reason=header.override.reason,
        )
    elif guest.exit is not None:
        known = _judged(guest.exit, header, oom_kills_before)
    else:
        raise SandboxLost("the sandbox ended before the program's fate was known", remediation="run it again")
    return Fate(known, header.usage, header.timings, header.sandbox, header.oom_kills)


def _judged(said: GuestExit, header: RunEnd, oom_kills_before: int) -> wire.Exit:
    killed = said.signal == KILLED or said.code == SHELL_KILLED or (header.oom_hidden and said.code != 0)
    if said.how in {"exited", "signalled"} and killed and header.oom_kills > oom_kills_before:
        return wire.Exit(
            how=How.OUT_OF_MEMORY, code=said.code, signal=said.signal, reason="the memory limit was reached"
        )
    if said.how == "exited" and said.code and said.scratch_full:
        return wire.Exit(how=How.DISK_FULL, code=said.code, reason="the scratch space is full")
    return said.public()


async def feed(stream: NodeStream, data: bytes | None) -> None:
    """Give a program its whole input and close it; returns early when the program ended first."""
    if data is None:
        return
    if await stream.send(data):
        stream.eof()


async def finished(stream: NodeStream, stdin: bytes | None = None) -> End:
    """Feed, and wait for the end. Cancelling cancels the stream."""
    try:
        if stdin is not None:
            feeding = asyncio.get_running_loop().create_task(feed(stream, stdin))
            try:
                return await stream.ended
            finally:
                feeding.cancel()
        return await stream.ended
    finally:
        stream.cancel()
