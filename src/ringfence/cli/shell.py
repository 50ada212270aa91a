"""`ringfence sandbox shell`: this terminal, in a sandbox, until the shell there ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Final

import click

from ringfence.cli import program
from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, server_options
from ringfence.cli.safe import StringFilter
from ringfence.client import AsyncClient, AsyncSandbox, AsyncTerminal
from ringfence.wire import Exit

PIECE: Final = 16 * 1024
# Undoes what a full-screen program may have left on: other screen, hidden cursor, mouse reports, pasting marks, colour.
TIDY: Final = (
    b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m"
)


@click.command(
    epilog=examples(
        "ringfence sandbox shell $(ringfence sandbox create -t python)",
    )
)
@click.argument("id_", metavar="ID")
@click.option("--shell", "shell_", metavar="PATH", help="Which shell (default: the template's).")
@click.option("--raw", is_flag=True, help="Also pass titles, clipboard writes and other strings to this terminal.")
@server_options
def shell(shared: Shared, id_: str, shell_: str | None, raw: bool) -> int:
    """Open a terminal in a sandbox. Every key goes there, Ctrl-C too; type Enter ~ . to leave without ending it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("shell needs a terminal; use `ringfence sandbox exec` in scripts")
    ended = asyncio.run(_session(shared.url, id_, shell_, raw=raw))
    if ended is None:
        shared.screen.say("ringfence: left; the sandbox lives on")
        return 0
    return program.last_word(shared.screen, ended, truncated=False)


async def _session(url: str | None, sandbox: str, shell_: str | None, *, raw: bool) -> Exit | None:
    size = os.get_terminal_size()
    async with AsyncClient(url) as client:
        place = await AsyncSandbox.connect(sandbox, client=client)
        async with await place.terminal(size.columns, size.lines, shell=shell_) as terminal:
            with raw_terminal(sys.stdin.fileno(), sys.stdout.fileno()):
                await _both_ways(terminal, None if raw else StringFilter())
            return terminal.exit


async def _both_ways(terminal: AsyncTerminal, guard: StringFilter | None) -> None:
    loop = asyncio.get_running_loop()
    resizes: set[asyncio.Task[None]] = set()

    def resized() -> None:
        size = os.get_terminal_size()
        task = loop.create_task(terminal.resize(size.columns, size.lines))
        resizes.add(task)
        task.add_done_callback(resizes.discard)

    typing, showing = loop.create_task(_type(terminal)), loop.create_task(_show(terminal, guard))
    with _handling({signal.SIGWINCH: resized, signal.SIGTERM: typing.cancel, signal.SIGHUP: typing.cancel}):
        done, left = await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, *resizes, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


async def _type(terminal: AsyncTerminal) -> None:
    keys = Escape()
    while True:
        data = await _readable(sys.stdin.fileno())
        if not data or keys.leaves(data):
            return
        await terminal.send(data)


async def _show(terminal: AsyncTerminal, guard: StringFilter | None) -> None:
    async for data in terminal:
        write_all(sys.stdout.fileno(), data if guard is None else guard.feed(data))


async def _readable(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, PIECE)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however few the terminal takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Escape:
    """Finds `~.` at the start of a line, the sign to leave."""

    def __init__(self) -> None:
        self._tail = b"\r"

    def leaves(self, data: bytes) -> bool:
        """Whether these keys complete the sign."""
        self._tail = (self._tail + data)[-3 - len(data) :]
        found = b"\r~." in self._tail or b"\n~." in self._tail
        self._tail = self._tail[-2:]
        return found


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def raw_terminal(keyboard: int, screen: int) -> Iterator[None]:
    """Every key as it is typed, for a while; afterwards the terminal is as it was, whatever happened.

    What was still unread is thrown away: an answer our terminal gave to the sandbox's program must not be typed into
    the user's own shell.
    """
    before = termios.tcgetattr(keyboard)
    tty.setraw(keyboard, termios.TCSADRAIN)  # what was typed ahead is kept
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            write_all(screen, TIDY)
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)
