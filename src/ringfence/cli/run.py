"""`ringfence run`: one program, one fresh sandbox, its output and exit code as if it had run here."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import click

from ringfence.cli import program
from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, egress_option, gateway_option, program_options, said, server_options
from ringfence.cli.running import opened, options_of, program_of
from ringfence.client import RunResult, transfer


@click.command(
    epilog=examples(
        "ringfence run script.py",
        "ringfence run script.py -- --an-option-of-the-script",
        "ringfence run -c 'print(6 * 7)'",
        "ringfence run -t python report.py -f sales.csv -o chart.png",
        "cat data.csv | ringfence run clean.py > clean.csv",
        "ringfence run -s 'ls -la /' --timeout 5s -L memory=64MiB",
    )
)
@click.argument("words", nargs=-1, metavar="[FILE|-] [ARGS]...")
@program_options
@click.option("--collect", "-o", multiple=True, metavar="PATH[:LOCAL]", help="Fetch a file out after; repeatable.")
@egress_option
@gateway_option
@server_options
def run(shared: Shared, words: tuple[str, ...], code: str | None, shell: str | None, **rest: Any) -> int:
    """Run FILE (or - for standard input) in a fresh sandbox that is gone afterwards.

    FILE is Python source, or a shell script when it ends in .sh. What is piped in becomes the program's input; its
    output is ours, raw into a pipe and made safe for a terminal; its exit code is ours (see `ringfence --help`).
    With no server configured, one is started for this run alone.
    """
    what = program_of(words, code, shell) if words or code or shell or not rest["template"] else {}  # an image says
    piped = words[:1] == ("-",) and not (code or shell)
    options = options_of(rest, program.read_input(shared.screen, wanted=not piped and not rest["no_stdin"]))
    options |= said(collect=[inside for inside, _ in map(_target, rest["collect"])])
    with opened(shared) as client:
        result = program.relay(client.stream_run(**what, **options), shared.screen)
    fetched = _keep(result, rest["collect"])
    if shared.screen.json:
        shared.screen.data({**program.as_json(result), "files": fetched})
    for path, error in result.file_errors.items():
        shared.screen.say(f"ringfence: not collected: {path}: {error.cause}", style="yellow")
    return program.last_word(shared.screen, result.exit, truncated=result.truncated, why=result.id)


def _target(entry: str) -> tuple[str, Path]:
    """Split PATH[:LOCAL]. Only these words, never the sandbox, decide where on this machine a file is written."""
    inside, _, local = entry.partition(":")
    name = PurePosixPath(inside).name
    if not local and name in {"", "..", "."}:
        raise click.UsageError(f"--collect {entry!r} names no file; write PATH:LOCAL")
    return inside, Path(local or name)


def _keep(result: RunResult, collect: tuple[str, ...]) -> list[dict[str, Any]]:
    kept = []
    for inside, local in map(_target, collect):
        if inside in result.files:
            with transfer.target(local) as file:
                file.write(result.files[inside])
            kept.append({"path": inside, "local": str(local), "size": len(result.files[inside])})
    return kept
