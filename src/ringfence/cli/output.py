"""What the CLI writes: data to stdout, talk to stderr; tables for people, JSON lines for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringfence.cli.safe import Sanitiser, clean
from ringfence.domain.errors import RingfenceError

PIPE_WIDTH: Final = 1000  # a table in a pipe is never cut to a screen it does not have


@dataclass(frozen=True, slots=True)
class Screen:
    """Where one command writes. `json` means that stdout carries nothing but JSON."""

    json: bool = False
    colour: bool = True

    @property
    def out(self) -> Console:
        """Standard output, for data."""
        return _console(sys.stdout, self.colour)

    @property
    def err(self) -> Console:
        """Standard error, for talk."""
        return _console(sys.stderr, self.colour)

    def data(self, value: Any) -> None:
        """One object as one line of JSON. To a terminal it is written in ASCII, which no terminal obeys."""
        plain = msgspec.to_builtins(value)
        sys.stdout.write(json.dumps(plain, ensure_ascii=sys.stdout.isatty(), separators=(", ", ": ")) + "\n")
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """A line that begins a part of what people read."""
        self.out.print(Text.assemble("\n", (clean(text), "bold")))

    def line(self, text: str) -> None:
        """One line of data for people."""
        self.out.print(Text(clean(text)))

    def say(self, text: str, style: str = "") -> None:
        """One line of talk."""
        self.err.print(Text(clean(text), style=style))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows for people; every cell is made harmless first."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(clean(str(cell))) for cell in row))
        console = self.out
        if console.is_terminal:
            console.print(table)
            return
        with console.capture() as captured:  # the padding that fills a screen is noise in a file
            console.print(table)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))

    @contextlib.contextmanager
    def waiting(self, words: str) -> Iterator[Callable[[str], None]]:
        """Something that moves on stderr while people wait, if that is a terminal; call what it gives to say more."""
        if self.json or not self.err.is_terminal:
            yield lambda _: None
            return
        with self.err.status(words) as status:
            yield status.update

    def show(self, values: Sequence[Any], columns: Sequence[str], row: Any) -> None:
        """A list: one JSON object per line, or a table with `row(value)` as its cells."""
        if self.json:
            for value in values:
                self.data(value)
        else:
            self.table(columns, (row(value) for value in values))

    def error(self, error: RingfenceError) -> None:
        """A refusal or a fault, and what to do about it."""
        say_error(error, colour=self.colour)


def say_error(error: RingfenceError, *, colour: bool = True) -> None:
    """Write `error[code]: cause` and `hint: remediation` to stderr."""
    console = _console(sys.stderr, colour)
    console.print(Text.assemble((f"error[{clean(error.code)}]", "bold red"), f": {clean(error.cause)}"))
    if error.remediation:
        console.print(Text.assemble(("hint", "bold cyan"), f": {clean(error.remediation)}"))


def _console(file: Any, colour: bool) -> Console:
    tty = file.isatty()
    return Console(
        file=file, highlight=False, emoji=False, markup=False, soft_wrap=not tty,
        no_color=None if colour else True, width=None if tty else PIPE_WIDTH,
    )  # fmt: skip


class ProgramOutput:
    """A program's own output: raw into a pipe, made safe for a terminal."""

    def __init__(self) -> None:
        self._filters = {
            name: Sanitiser() if stream.isatty() else None
            for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr))
        }

    def write(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Write one piece at once."""
        guard = self._filters[stream]
        self._raw(stream, data if guard is None else _encoded(guard.feed(data)))

    def close(self) -> None:
        """Write what a filter still held back."""
        for stream, guard in self._filters.items():
            if guard is not None:
                self._raw(stream, _encoded(guard.close()))

    def _raw(self, stream: str, data: bytes) -> None:
        file: BinaryIO = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        file.write(data)
        file.flush()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def moment(seconds: float | None) -> str:
    """A moment in local time, or a dash."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def span(seconds: float | None) -> str:
    """A length of time in one or two units, or a dash."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """A number of bytes in its own unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.0f}"
