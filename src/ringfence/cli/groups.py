"""Groups of commands that answer a misspelt name with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click


class Subcommands(click.Group):
    """A group of commands, such as `ringfence sandbox`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does, but suggest one when there is none."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown(args[0], self.commands, ctx)
        return super().resolve_command(ctx, args)


def unknown(word: str, known: Iterable[str], ctx: click.Context) -> click.UsageError:
    """Return the error for a command that does not exist."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    meant = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return click.UsageError(f"No such command {word!r}.{meant}", ctx)


def examples(*lines: str, title: str = "Examples") -> str:
    """Return a block for the end of a help page; the first character tells click to leave its lines as they are."""
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])
