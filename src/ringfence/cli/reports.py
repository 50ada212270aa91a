"""Commands that only look: why, status, events, runtimes, version, completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any, Final

import click
from click.shell_completion import get_completion_class
from rich.text import Text

from ringfence import wire
from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, screen_options, server_options
from ringfence.cli.output import Screen, moment, size, span
from ringfence.domain.errors import NotFound
from ringfence.domain.process import Timings, Usage

QUIET_SECONDS: Final = 0.5  # kept events arrive at once; after this long there were no more of them
DENIED: Final = "egress.denied"
PHASES: Final = ("queue", "claim", "start", "run", "collect")


@click.command(
    epilog=examples(
        "ringfence why rabc...     # the id that `ringfence run` or a create printed",
        "ringfence why sabc... --denied",
    )
)
@click.argument("id_", metavar="ID")
@click.option("--denied", is_flag=True, help="Only what its egress policy did not let it reach, and why.")
@server_options
def why(shared: Shared, id_: str, denied: bool) -> None:
    """Explain why a run or a sandbox ended as it did, and where its time went."""
    with shared.client() as client:
        found = client.why(id_)
    if denied:
        _denied(shared.screen, [event for event in found.events if event.type == DENIED])
        return
    if shared.screen.json:
        shared.screen.data(found)
        return
    screen = shared.screen
    screen.line(found.summary)
    if found.limit is not None:
        screen.line(f"limit {found.limit.name}: {found.limit.value}, seen {found.limit.seen}; {found.limit.change}")
    if found.error is not None:
        screen.line(f"error[{found.error.code}]: {found.error.cause}")
    if found.advice:
        screen.line(f"advice: {found.advice}")
    if found.time:
        screen.line(found.time)
    _numbers(screen, found.timings, found.usage)
    if found.events:
        screen.table(("WHEN", "EVENT", "DETAILS"), map(_event_cells, found.events))


def _denied(screen: Screen, events: list[wire.Event]) -> None:
    if screen.json:
        for event in events:
            screen.data(event)
    elif not events:
        screen.line("Nothing was denied.")
    else:
        screen.table(("WHEN", "WHERE TO", "HOW", "WHY"), map(_denied_cells, events))


def _denied_cells(event: wire.Event) -> tuple[str, str, str, str]:
    data = event.data
    place = f"{data.get('name') or data.get('address')}:{data.get('port')}"
    return moment(event.time), place, str(data.get("protocol")), str(data.get("reason"))


def _numbers(screen: Screen, timings: Timings | None, usage: Usage | None) -> None:
    if timings is not None:
        table = asdict(timings)
        screen.line("time: " + ", ".join(f"{phase} {span(table[phase] / 1000)}" for phase in PHASES))
    if usage is not None:
        used = f"used: {span(usage.cpu_seconds)} of processor, {size(usage.peak_memory_bytes)} of memory at most"
        screen.line(f"{used}, {size(usage.output_bytes)} of output (measured by {usage.source})")


def _event_cells(event: wire.Event) -> tuple[str, str, str]:
    return (moment(event.time), event.type, _details(event.data))


def _details(data: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in data.items())


@click.command(
    epilog=examples(
        "ringfence events",
        "ringfence events --follow --json | jq .type",
    )
)
@click.option("--follow", "-f", is_flag=True, help="Go on showing events as they happen.")
@click.option("--after", metavar="ID", help="Only events after this one (default: all that are kept).")
@server_options
def events(shared: Shared, follow: bool, after: str | None) -> None:
    """Show what happened to your sandboxes and runs, oldest first."""
    with shared.client() as client:
        for event in client.events("0" if after is None else after, quiet=None if follow else QUIET_SECONDS):
            if shared.screen.json:
                shared.screen.data(event)
            else:
                about = event.sandbox or event.run or "-"
                cells = (str(event.id), moment(event.time), event.type, about, _details(event.data))
                shared.screen.line("  ".join(cells).rstrip())


@click.command()
@server_options
def status(shared: Shared) -> None:
    """Show whether the server is ready, who you are to it, and what it holds for you."""
    with shared.client() as client:
        found, url = client.status(), client.target.url
    if shared.screen.json:
        shared.screen.data(found)
        return
    rows = [
        ("server", url),
        ("version", found.version),
        ("ready", "yes" if found.ready else "no"),
        ("up", span(found.uptime_seconds)),
        ("tenant", found.tenant),
        ("sandboxes", str(found.sandboxes)),
        ("runs", str(found.runs)),
        *map(_pool_cells, found.pools),
    ]
    shared.screen.table(("", ""), rows)


def _pool_cells(pool: Mapping[str, Any]) -> tuple[str, str]:
    kind = " for runs" if pool.get("one_shot") else ""
    counts = ", ".join(f"{pool[name]} {name}" for name in ("idle", "starting", "waiting") if name in pool)
    return (f"warm {pool.get('template', '')}{kind}", f"{counts}; {pool.get('least')} to {pool.get('most')}")


@click.command()
@server_options
def runtimes(shared: Shared) -> None:
    """Show each way to isolate that the server knows, and which layers are in force there."""
    with shared.client() as client:
        found = client.runtimes()
    shared.screen.show(found, ("RUNTIME", "USABLE", "LIMITS BY", "IN FORCE", "MISSING"), _runtime_cells)


def _runtime_cells(runtime: wire.Runtime) -> tuple[Any, ...]:
    there = ", ".join(layer.name for layer in runtime.layers if layer.in_force)
    missing = ", ".join(_missing(layer) for layer in runtime.layers if not layer.in_force)
    usable = Text("yes", style="green") if runtime.available else Text("no", style="red")
    return (runtime.name, usable, runtime.limits_by or "-", there or "-", missing or "-")


def _missing(layer: wire.Layer) -> str:
    return f"{layer.name} ({layer.reason})" if layer.reason else layer.name


@click.command()
@screen_options
def version(screen: Screen) -> None:
    """Show this program's version; the server's is in `ringfence status`."""
    try:
        number = installed_version("ringfence")
    except PackageNotFoundError:
        number = "not installed"  # run from a source tree
    if screen.json:
        screen.data({"version": number})
    else:
        screen.line(f"ringfence {number}")


@click.command(
    epilog=examples(
        "bash:  ringfence completion bash > ~/.local/share/bash-completion/completions/ringfence",
        'zsh:   ringfence completion zsh > "${fpath[1]}/_ringfence"',
        "fish:  ringfence completion fish > ~/.config/fish/completions/ringfence.fish",
        title="Install it",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Write a completion script for a shell to standard output."""
    kind = get_completion_class(shell)
    if kind is None:
        raise NotFound(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "ringfence", "_RINGFENCE_COMPLETE").source())
