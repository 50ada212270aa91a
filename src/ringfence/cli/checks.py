"""`ringfence doctor`, `attack` and `bench`: this machine, examined. Each does its work in a module of its own."""

from __future__ import annotations

from typing import Any

import click

from ringfence.cli.lazy import loaded
from ringfence.cli.options import screen_options, seconds
from ringfence.cli.output import Screen


def _perform(module: str, screen: Screen, **options: Any) -> int:
    return int(loaded(module, "main")({"json": screen.json, "colour": screen.colour, **options}))


state_option = click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")


@click.command()
@state_option
@screen_options
def doctor(screen: Screen, state: str | None) -> int:
    """Check what this machine can enforce: each layer of each runtime, in force or missing, and what would add it.

    The exit code is 0 when untrusted code can be run here.
    """
    return _perform("ringfence.doctor.report", screen, state=state)


@click.command()
@click.argument("names", nargs=-1, metavar="[PROBE]...")
@click.option("--list", "list_", is_flag=True, help="Name the probes and stop.")
@click.option("--runtime", metavar="NAME", help="Attack this way to isolate (default: auto).")
@click.option("--url", metavar="URL", help="Attack this server (default: one started for this).")
@state_option
@screen_options
def attack(screen: Screen, **options: Any) -> int:
    """Attack this machine's sandboxes as a hostile program would, and report what held.

    All probes when none is named. The exit code is 0 only when every one was contained.
    """
    return _perform("ringfence.attack.command", screen, **options)


@click.command()
@click.argument("names", nargs=-1, metavar="[MEASURE]...")
@click.option("--seconds", type=seconds, default="5", show_default=True, metavar="TIME", help="How long each takes.")
@click.option("--url", metavar="URL", help="Measure this server (default: one started for this).")
@state_option
@screen_options
def bench(screen: Screen, **options: Any) -> int:
    """Measure this machine: time to first instruction, runs a second, memory of an idle sandbox."""
    return _perform("ringfence.bench.command", screen, **options)
