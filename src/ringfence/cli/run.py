"""`ringfence run`: one program, one fresh sandbox, its output and exit code as if it had run here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import click

from ringfence.cli import program
from ringfence.cli.groups import examples
from ringfence.cli.lazy import loaded
from ringfence.cli.options import (
    Shared,
    egress,
    egress_option,
    env_option,
    isolation_option,
    label_option,
    limit_option,
    limits,
    pairs,
    said,
    seconds,
    server_options,
    template_option,
)
from ringfence.client import Client, RunResult, transfer
from ringfence.client.settings import configured


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
@click.option("--code", "-c", metavar="SOURCE", help="Python source instead of a file.")
@click.option("--shell", "-s", metavar="COMMAND", help="A shell command instead of a file.")
@template_option
@click.option("--file", "-f", "files", multiple=True, metavar="LOCAL[:PATH]", help="Put a file in; repeatable.")
@click.option("--collect", "-o", multiple=True, metavar="PATH[:LOCAL]", help="Fetch a file out after; repeatable.")
@limit_option
@click.option("--timeout", type=seconds, metavar="TIME", help="Stop it after this long, as 30s or 5m.")
@env_option
@click.option("--cwd", metavar="PATH", help="Where it starts (default: /home/user).")
@isolation_option
@egress_option
@label_option
@click.option("--no-stdin", is_flag=True, help="Do not read what is piped in.")
@server_options
def run(shared: Shared, words: tuple[str, ...], code: str | None, shell: str | None, **rest: Any) -> int:
    """Run FILE (or - for standard input) in a fresh sandbox that is gone afterwards.

    FILE is Python source, or a shell script when it ends in .sh. What is piped in becomes the program's input; its
    output is ours, raw into a pipe and made safe for a terminal; its exit code is ours (see `ringfence --help`).
    With no server configured, one is started for this run alone.
    """
    what = _program(words, code, shell) if words or code or shell or not rest["template"] else {}  # an image says
    piped = words[:1] == ("-",) and not (code or shell)
    options = _options(rest, program.read_input(shared.screen, wanted=not piped and not rest["no_stdin"]))
    with _client(shared) as client:
        result = program.relay(client.stream_run(**what, **options), shared.screen)
    fetched = _keep(result, rest["collect"])
    if shared.screen.json:
        shared.screen.data({**program.as_json(result), "files": fetched})
    for path, error in result.file_errors.items():
        shared.screen.say(f"ringfence: not collected: {path}: {error.cause}", style="yellow")
    return program.last_word(shared.screen, result.exit, truncated=result.truncated, why=result.id)


def _program(words: tuple[str, ...], code: str | None, shell: str | None) -> dict[str, Any]:
    if code is not None and shell is not None:
        raise click.UsageError("give one of --code and --shell, not both")
    if code is not None:
        return {"code": code, **said(args=words)}
    if shell is not None:
        return {"argv": ["/bin/sh", "-c", shell, "sh", *words]}
    if not words:
        raise click.UsageError("give a FILE, - for standard input, --code or --shell")
    file, *args = words
    text = program.source(file)
    return {"argv": ["/bin/sh", "-c", text, file, *args]} if file.endswith(".sh") else {"code": text, **said(args=args)}


def _options(rest: dict[str, Any], stdin: bytes | None) -> dict[str, Any]:
    return said(
        stdin=stdin,
        template=rest["template"],
        isolation=rest["isolation"],
        egress=egress(rest["egress_"]),
        timeout=rest["timeout"],
        cwd=rest["cwd"],
        env=pairs(rest["env"], "--env"),
        labels=pairs(rest["labels"], "--label"),
        limits=limits(rest["limits_"]),
        files=dict(_placed(entry) for entry in rest["files"]),
        collect=[inside for inside, _ in map(_target, rest["collect"])],
    )


def _placed(entry: str) -> tuple[str, bytes]:
    local, _, inside = entry.partition(":")
    try:
        return inside or Path(local).name, Path(local).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--file: cannot read {local}: {error.strerror}") from None


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


@contextlib.contextmanager
def _client(shared: Shared) -> Iterator[Client]:
    if configured(shared.url):
        with shared.client() as client:
            yield client
        return
    with loaded("ringfence.cli.embedded", "server")(shared.screen) as (url, key), Client(url, key) as client:
        yield client
