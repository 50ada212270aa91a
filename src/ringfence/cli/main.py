"""The `ringfence` command: a table of commands, each loaded when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from ringfence.cli import codes
from ringfence.cli.groups import examples, unknown
from ringfence.cli.output import say_error
from ringfence.domain.errors import RingfenceError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives and what `--help` says about it.

    The module is loaded when the command is used: nobody who runs a script should wait for a web server to be imported.
    """

    home: str
    help: str
    section: str


RUN, LIVE, MACHINE, HERE = "Run", "Sandboxes", "The server", "This machine"
COMMANDS: Final[dict[str, Entry]] = {
    "run": Entry("run:run", "Run one program in a fresh sandbox.", RUN),
    "why": Entry("reports:why", "Explain why a run or a sandbox ended as it did.", RUN),
    "demo": Entry("demo.command:demo", "See it work: a data job, then a tour of attacks.", RUN),
    "sandbox": Entry("sandboxes:sandbox", "Create, use and stop sandboxes that live on.", LIVE),
    "events": Entry("reports:events", "Show what happens to sandboxes and runs.", LIVE),
    "policy": Entry("policy:policy", "Learn, check and explain egress policies.", LIVE),
    "status": Entry("reports:status", "Show how the server is.", MACHINE),
    "templates": Entry("templates:templates", "List, build and verify templates.", MACHINE),
    "secrets": Entry("secrets:secrets", "Keep secrets that sandboxes use and never hold.", MACHINE),
    "runtimes": Entry("reports:runtimes", "Show the ways to isolate, and the layers in force.", MACHINE),
    "serve": Entry("server:serve", "Start a server on this machine.", HERE),
    "hosts": Entry("hosts:hosts", "Find sandboxes by name on this machine.", HERE),
    "keys": Entry("keys:keys", "Create, list and revoke keys.", HERE),
    "doctor": Entry("checks:doctor", "Check what this machine can enforce.", HERE),
    "attack": Entry("checks:attack", "Attack this machine's sandboxes and report.", HERE),
    "bench": Entry("checks:bench", "Measure this machine.", HERE),
    "completion": Entry("reports:completion", "Write a completion script for a shell.", HERE),
    "version": Entry("reports:version", "Show the version.", HERE),
}

EPILOG: Final = "\n\n".join(
    (
        examples(
            "ringfence demo                         see it work",
            "ringfence run script.py                run a file; its output and exit code are yours",
            "echo 'print(1)' | ringfence run -      run what comes in",
            "ringfence sandbox create -t python     a sandbox that stays",
            "ringfence sandbox shell ID             a terminal in it",
            "ringfence COMMAND --help               more about one command",
        ),
        examples(*(f"{code:<9} {meaning}" for code, meaning in codes.MEANING), title="Exit codes"),
        examples(
            "RINGFENCE_URL, RINGFENCE_KEY   the server and your key (or ~/.config/ringfence/client.toml)",
            "RINGFENCE_STATE                where a server on this machine keeps its state",
            "NO_COLOR                       no colours",
            title="Environment",
        ),
    )
)


class Commands(click.Group):
    """A group whose commands are named in a table and loaded when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.home.partition(":")
        command = getattr(importlib.import_module(f"ringfence.cli.{module}"), name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader of its output who leaves early ends it quietly."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain once more while it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return codes.BROKEN_PIPE
        return result

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with the nearest known ones."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown(args[0], COMMANDS, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, by section, without loading anything."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, e.help) for name, e in COMMANDS.items() if e.section == section])


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run code from strangers, each program in an isolated sandbox of its own."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line; the result is the exit code."""
    try:
        result = cli.main(args=None if args is None else list(args), prog_name="ringfence", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return codes.INTERRUPTED
    except RingfenceError as error:
        say_error(error, colour="--no-color" not in (sys.argv if args is None else args))
        return codes.for_error(error)
    return result if isinstance(result, int) else 0
