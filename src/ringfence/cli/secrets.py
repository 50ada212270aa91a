"""`ringfence secrets`: keep, list and remove secrets that sandboxes use and never hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from ringfence import wire_secrets
from ringfence.cli.groups import Subcommands, examples
from ringfence.cli.options import Shared, server_options
from ringfence.cli.output import moment

MOST_BYTES: Final = 64 * 1024
COLUMNS: Final = ("NAME", "HOSTS", "WHERE", "VARIABLE", "CHANGED")


@click.group(
    cls=Subcommands,
    epilog=examples(
        "ringfence secrets set openai --host api.openai.com --header authorization --env OPENAI_API_KEY",
        "pass show stripe | ringfence secrets set stripe --host api.stripe.com --header authorization",
        "ringfence run agent.py --secret openai",
        "ringfence secrets list",
        "ringfence secrets remove openai",
    ),
)
def secrets() -> None:
    """Keep secrets that sandboxes use and never hold.

    A sandbox made with --secret NAME finds a placeholder in a variable. In requests by TLS to the secret's hosts,
    in the places that are named here, the value takes the placeholder's place; sent anywhere else, it is refused.
    """


@secrets.command(name="set")
@click.argument("name")
@click.option("--host", "hosts", multiple=True, required=True, metavar="HOST", help="Who may be sent it; repeatable.")
@click.option("--header", "headers", multiple=True, metavar="NAME", help="A header that carries it; repeatable.")
@click.option("--query", "queries", multiple=True, metavar="NAME", help="A field of the query; repeatable.")
@click.option("--body", is_flag=True, help="Anywhere in the body.")
@click.option("--env", metavar="VARIABLE", help="Where its placeholder is found inside (default: NAME in capitals).")
@click.option("--file", "-f", metavar="FILE", help="Read the value from a file instead of standard input.")
@server_options
def set_(shared: Shared, name: str, **rest: Any) -> None:
    """Keep a secret, or change it. Its value is asked for, or read from a pipe or a file; never from this line."""
    value = _value(name, rest.pop("file"))
    with shared.client() as client:
        kept = client.set_secret(name, value, **rest)
    if shared.screen.json:
        shared.screen.data(kept)
    else:
        shared.screen.line(f"{kept.name} kept; inside it is ${kept.env}")


def _value(name: str, file: str | None) -> str:
    """The value, without the line end that editors and `echo` leave behind."""
    try:
        if file is not None:
            data = Path(file).read_bytes()[: MOST_BYTES + 1]
        elif sys.stdin is not None and not sys.stdin.isatty():
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            asked: str = click.prompt(f"Value of {name}", hide_input=True, err=True)
            return asked
        return data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError("the value is not UTF-8 text") from None


@secrets.command(name="list")
@server_options
def list_(shared: Shared) -> None:
    """List secrets: what they are for, never their values."""
    with shared.client() as client:
        found = client.secrets()
    shared.screen.show(found, COLUMNS, _row)


def _row(found: wire_secrets.Secret) -> tuple[str, ...]:
    places = [*(f"header {name}" for name in found.headers), *(f"query {name}" for name in found.queries)]
    where = ", ".join([*places, *(["body"] if found.body else [])])
    return (found.name, " ".join(found.hosts), where, found.env, moment(found.changed_at))


@secrets.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@server_options
def remove(shared: Shared, names: tuple[str, ...]) -> None:
    """Forget secrets. In living sandboxes their placeholders are worth nothing from then on."""
    with shared.client() as client:
        for name in names:
            client.remove_secret(name)
            if shared.screen.json:
                shared.screen.data({"name": name, "removed": True})
            else:
                shared.screen.line(f"{name} removed")
