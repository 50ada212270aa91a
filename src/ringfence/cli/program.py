"""Running programs from the command line: their input, their output, and the last word about them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import click

from ringfence.cli import codes
from ringfence.cli.output import ProgramOutput, Screen
from ringfence.client import ProcessResult, RunResult, Stream
from ringfence.client.errors import described
from ringfence.client.results import with_output
from ringfence.wire import Exit

INPUT_BYTES: Final = 32 * 1024 * 1024  # the server bounds a request; a larger input belongs in a file
PATIENCE_SECONDS: Final = 2.0

R = TypeVar("R", bound=RunResult | ProcessResult)


def read_input(screen: Screen, *, wanted: bool) -> bytes | None:
    """What was piped into us, whole, or None when nothing is. A pipe that stays open is waited for, and said so."""
    if not wanted or sys.stdin is None or sys.stdin.isatty():
        return None
    told = threading.Timer(
        PATIENCE_SECONDS, screen.say, ("waiting for the end of standard input (--no-stdin does not)",)
    )
    told.daemon = True
    told.start()
    try:
        data = sys.stdin.buffer.read(INPUT_BYTES + 1)
    finally:
        told.cancel()
    if len(data) > INPUT_BYTES:
        raise click.UsageError("standard input is larger than 32 MiB; upload it with --file instead")
    return data or None


def source(file: str) -> str:
    """The text of a program in a file, or of standard input for `-`."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(INPUT_BYTES).decode()
        with open(file, "rb") as opened:
            return opened.read(INPUT_BYTES).decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None


@contextlib.contextmanager
def program_output() -> Iterator[ProgramOutput]:
    """Standard output and error for a program's own bytes."""
    output = ProgramOutput()
    try:
        yield output
    finally:
        output.close()


def relay(stream: Stream[R], screen: Screen) -> R:
    """Show a program's output as it is written, or keep it for the one JSON object; return how it ended."""
    if screen.json:
        return stream.wait()
    with stream, program_output() as output:
        for chunk in stream:
            output.write(chunk.stream, chunk.data)
    return with_output(stream.result, b"", b"")


def last_word(screen: Screen, exit_: Exit, *, truncated: bool, why: str | None = None) -> int:
    """Say in one line how it ended, unless it just exited; return the code for our own exit."""
    code = codes.for_exit(exit_)
    if exit_.how != "exited" and not screen.json:
        more = f" (more: ringfence why {why})" if why else ""
        screen.say(f"ringfence: {described(exit_)}; exit code {code}{more}", style="yellow")
    elif truncated and not screen.json:
        screen.say("ringfence: the output was cut at its limit", style="yellow")
    return code


def as_json(result: RunResult | ProcessResult) -> dict[str, Any]:
    """A result's stable JSON form: text where it is text, base64 where it is not."""
    table: dict[str, Any] = {
        "exit": result.exit,
        "exit_code": codes.for_exit(result.exit),
        **_stream_json("stdout", result.stdout_bytes),
        **_stream_json("stderr", result.stderr_bytes),
        "truncated": result.truncated,
        "timings": result.timings,
        "usage": result.usage,
    }
    if isinstance(result, ProcessResult):
        return {"pid": result.pid, **table}
    named = {"id": result.id, "sandbox": result.sandbox, "template": result.template}
    return {**named, **table, "created_at": result.created_at, "labels": dict(result.labels)}


def _stream_json(name: str, data: bytes) -> dict[str, Any]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: None, f"{name}_base64": data}
