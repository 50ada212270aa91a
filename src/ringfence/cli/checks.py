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
@click.option("--isolation", metavar="RUNTIME", help="Attack this way to isolate (default: auto).")
@click.option("--all", "all_", is_flag=True, help="Attack every way to isolate that this machine has.")
@click.option("--save", metavar="FILE", help="Write the table here too, as Markdown.")
@click.option("--url", metavar="URL", help="Attack this server (default: one started for this).")
@state_option
@screen_options
def attack(screen: Screen, **options: Any) -> int:
    """Attack this machine's sandboxes as a hostile program would, and report what held.

    All probes when none is named. The exit code is 0 only when every one was contained. "differs" means that a
    runtime answers otherwise and no fence is missing; the reasons are told.
    """
    return _perform("ringfence.attack.command", screen, **options)


@click.command()
@click.argument("names", nargs=-1, metavar="[MEASURE]...")
@click.option("--quick", is_flag=True, help="Small counts: done within 50 seconds.")
@click.option("--seconds", type=seconds, default=None, metavar="TIME", help="How long each load takes.")
@click.option("--density", type=int, default=None, metavar="N", help="How many idle sandboxes to hold at once.")
@click.option("--published", type=int, default=None, metavar="N", help="How many sandboxes to publish at once.")
@click.option("--plot", metavar="FILE", help="Draw the figures into this PNG, in a sandbox of course.")
@click.option("--save", metavar="FILE", help="Write the JSON here too.")
@click.option("--check", is_flag=True, help="Exit 1 when a promised figure is not reached.")
@state_option
@screen_options
def bench(screen: Screen, **options: Any) -> int:
    """Measure this machine: latency, runs a second, memory of an idle sandbox, beside other ways to run the same.

    Each ratio is of two things measured in turn, in the same run. All measures when none is named.

    \b
    Examples:
      ringfence bench                              about five minutes
      ringfence bench --quick --json               one object, within 50 seconds
      ringfence bench density --density 2000
      ringfence bench ingress egress               published ports, policies
      ringfence bench e2b                          E2B's newest Python client, fetched from PyPI, beside ours
    """  # noqa: D301 - click reads the backspace itself as "do not wrap"
    return _perform("ringfence.bench.command", screen, **options)
