"""What the commands that run one program share: how it is named, its options, and who runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ringfence.cli import program
from ringfence.cli.lazy import loaded
from ringfence.cli.options import Shared, egress, limits, pairs, said
from ringfence.client import Client
from ringfence.client.settings import configured


def program_of(words: tuple[str, ...], code: str | None, shell: str | None) -> dict[str, Any]:
    """The program as a request names it. Raises UsageError when it is named twice, or not at all."""
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


def options_of(rest: dict[str, Any], stdin: bytes | None) -> dict[str, Any]:
    """What the options say of a run, but for what is fetched from it."""
    return said(
        stdin=stdin,
        template=rest["template"],
        isolation=rest["isolation"],
        egress=egress(rest["egress_"]),
        egress_gateway=rest["egress_gateway"],
        secrets=rest["secrets"],
        timeout=rest["timeout"],
        cwd=rest["cwd"],
        env=pairs(rest["env"], "--env"),
        labels=pairs(rest["labels"], "--label"),
        limits=limits(rest["limits_"]),
        files=dict(_placed(entry) for entry in rest["files"]),
    )


def _placed(entry: str) -> tuple[str, bytes]:
    local, _, inside = entry.partition(":")
    try:
        return inside or Path(local).name, Path(local).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--file: cannot read {local}: {error.strerror}") from None


@contextlib.contextmanager
def opened(shared: Shared) -> Iterator[Client]:
    """A client of the configured server, or of one that is started for this alone."""
    if configured(shared.url):
        with shared.client() as client:
            yield client
        return
    with loaded("ringfence.cli.embedded", "server")(shared.screen) as (url, key), Client(url, key) as client:
        yield client
