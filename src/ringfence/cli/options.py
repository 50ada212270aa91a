"""Options shared by commands, and how their values are read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import click

from ringfence.cli.output import Screen
from ringfence.cli.policyfile import merged
from ringfence.client import Client
from ringfence.domain.limits import BOUNDS

R = TypeVar("R")

UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
AMOUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
SPAN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|min|h|)", re.IGNORECASE)
SPANS: Final = {"ms": 0.001, "": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
SHORT_NAMES: Final = {name.rsplit("_", 1)[0]: name for name in BOUNDS if name.endswith(("_bytes", "_seconds"))}


@dataclass(frozen=True, slots=True)
class Shared:
    """What every command that speaks to a server gets."""

    screen: Screen
    url: str | None = None
    client: Callable[[], Client] = field(default=Client)


def screen_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command --json and --no-color, and a Screen as its first argument."""

    @click.option("--json", "json_", is_flag=True, help="Write JSON to stdout: one object, or one per line.")
    @click.option("--no-color", is_flag=True, help="No colours (also: NO_COLOR, or output that is not a terminal).")
    @functools.wraps(function)
    def command(*args: Any, json_: bool, no_color: bool, **kwargs: Any) -> R:
        return function(Screen(json=json_, colour=not no_color), *args, **kwargs)

    return command


def server_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command --url besides, and a Shared as its first argument. The key is never on a command line."""

    @click.option("--url", metavar="URL", help="The server (default: RINGFENCE_URL, the settings file, loopback).")
    @screen_options
    @functools.wraps(function)
    def command(screen: Screen, *args: Any, url: str | None, **kwargs: Any) -> R:
        return function(Shared(screen, url, functools.partial(Client, url)), *args, **kwargs)

    return command


def seconds(text: str) -> float:
    """Read a length of time: `90`, `1.5s`, `10m`, `2h`. Raises BadParameter for anything else."""
    found = SPAN.fullmatch(str(text).strip())
    if not found:
        raise click.BadParameter(f"{text!r} is not a length of time; write 90, 1.5s, 10m or 2h")
    return float(found[1]) * SPANS[found[2].lower()]


def pairs(values: Iterable[str], what: str) -> dict[str, str]:
    """`name=value` texts as a table. Raises UsageError for one without a name."""
    table: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{what} must be NAME=VALUE, not {value!r}")
        table[name] = rest
    return table


def limits(values: Iterable[str]) -> dict[str, float]:
    """`name=amount` texts as limits; `memory=512MiB` and `wall=2m` are read as people write them."""
    table: dict[str, float] = {}
    for short, amount in pairs(values, "--limit").items():
        name = SHORT_NAMES.get(short, short)
        if name not in BOUNDS:
            raise click.UsageError(f"there is no limit {short!r}; use one of {', '.join(BOUNDS)}")
        table[name] = _amount(name, amount)
    return table


def _amount(name: str, text: str) -> float:
    pattern, units = (SPAN, SPANS) if name.endswith("_seconds") else (AMOUNT, UNITS)
    found = pattern.fullmatch(text.strip())
    if not found:
        raise click.UsageError(f"limit {name} wants a number, not {text!r}")
    amount = float(found[1]) * units[found[2].lower()]
    return int(amount) if amount == int(amount) else amount


label_option = click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="A label; repeatable.")
limit_option = click.option(
    "--limit", "-L", "limits_", multiple=True, metavar="NAME=AMOUNT", help="A limit, as memory=256MiB; repeatable."
)
env_option = click.option("--env", "-e", "env", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable.")
template_option = click.option("--template", "-t", metavar="NAME", help="What the sandbox is made of (default: base).")
egress_option = click.option(
    "--egress",
    "egress_",
    multiple=True,
    metavar="NAME",
    help="What it may reach: a host, as api.example.com, a bundle, as pypi, or @FILE of a policy; repeatable.",
)
gateway_option = click.option(
    "--egress-gateway", metavar="NAME", help="The operator's gateway by which its connections leave."
)
secret_option = click.option(
    "--secret", "secrets", multiple=True, metavar="NAME", help="A kept secret it may use, as a placeholder; repeatable."
)
isolation_option = click.option("--isolation", metavar="RUNTIME", help="How it is isolated (default: auto).")


_OF_A_PROGRAM: Final[tuple[Callable[[Any], Any], ...]] = (
    click.option("--code", "-c", metavar="SOURCE", help="Python source instead of a file."),
    click.option("--shell", "-s", metavar="COMMAND", help="A shell command instead of a file."),
    template_option,
    click.option("--file", "-f", "files", multiple=True, metavar="LOCAL[:PATH]", help="Put a file in; repeatable."),
    limit_option,
    click.option("--timeout", type=seconds, metavar="TIME", help="Stop it after this long, as 30s or 5m."),
    env_option,
    click.option("--cwd", metavar="PATH", help="Where it starts (default: /home/user)."),
    isolation_option,
    secret_option,
    label_option,
    click.option("--no-stdin", is_flag=True, help="Do not read what is piped in."),
)


def egress(words: tuple[str, ...]) -> dict[str, Any] | str | None:
    """The policy that words mean: a bundle has no dot in its name, a host has, a file an @. "none" stands alone."""
    if words == ("none",):
        return "none"
    files = [word[1:] for word in words if word.startswith("@")]
    names = [word for word in words if not word.startswith("@")]
    hosts = [word for word in names if "." in word]
    table = {"allow": hosts, "bundles": [word for word in names if "." not in word]}
    return merged(files, table) if files else table if words else None


def program_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command what may be said of a program that is run once."""
    for option in reversed(_OF_A_PROGRAM):
        function = option(function)
    return function


def said(**values: Any) -> dict[str, Any]:
    """Only the options that were given, so that the server's defaults stand for the rest."""
    return {name: value for name, value in values.items() if value not in (None, (), {}, [], "")}
