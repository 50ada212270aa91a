"""`ringfence templates`: list what a server has; build, add and verify on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ringfence import config, wire
from ringfence.cli.groups import Subcommands, examples
from ringfence.cli.options import Shared, screen_options, server_options
from ringfence.cli.output import Screen, size
from ringfence.cli.safe import clean
from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.domain.template import Template
from ringfence.templates.build import build as build_template
from ringfence.templates.build import verify as verify_template
from ringfence.templates.catalog import Built, Catalog, builtin_names, recipe_named
from ringfence.templates.progress import Progress

COLUMNS = ("NAME", "SIZE", "DIGEST", "PRELOADED", "WARM", "WHAT")
state_option = click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")


@click.group(
    cls=Subcommands,
    epilog=examples(
        "ringfence templates list",
        "ringfence templates build base python",
        "ringfence templates add ./my-template.toml",
        "ringfence templates verify",
    ),
)
def templates() -> None:
    """List a server's templates; build, add and verify them on this machine.

    A template is a sandbox's recipe: its packages, what is imported beforehand, its default limits.
    """


@templates.command(name="list")
@server_options
def list_(shared: Shared) -> None:
    """List the templates the server has."""
    with shared.client() as client:
        found = client.templates()
    shared.screen.show(found, COLUMNS, _row)


def _row(found: wire.Template) -> tuple[str, ...]:
    warm = f"{found.pool.idle} of {found.pool.least}..{found.pool.most}" if found.pool else "-"
    preload = " ".join(found.preload) or "-"
    return (found.name, size(found.size_bytes), found.digest[:12], preload, warm, found.description)


@templates.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--rebuild", is_flag=True, help="Build again, with the packages of today.")
@state_option
@screen_options
def build(screen: Screen, names: tuple[str, ...], rebuild: bool, state: str | None) -> None:
    """Build templates that come with ringfence; all of them when none is named. What is built already stays."""
    known = builtin_names()
    for name in names:
        if name not in known:
            hint = f"use one of {', '.join(known)}, or `ringfence templates add FILE.toml`"
            raise BadRequest(f"no template {name!r} comes with ringfence", remediation=hint)
    for name in names or known:
        _build(screen, recipe_named(name), _directory(state), rebuild=rebuild)


@templates.command(
    epilog=examples(
        'name = "science"',
        'description = "numbers and graphs"',
        'debian = ["graphviz"]',
        'wheels = ["numpy", "scipy"]',
        'preload = ["numpy"]',
        title="A file looks like this",
    )
)
@click.argument("files", nargs=-1, required=True, metavar="FILE.toml...", type=click.Path(exists=True, dir_okay=False))
@click.option("--rebuild", is_flag=True, help="Build again, with the packages of today.")
@state_option
@screen_options
def add(screen: Screen, files: tuple[str, ...], rebuild: bool, state: str | None) -> None:
    """Build templates of your own from TOML files; each is known by the `name` in it."""
    for file in files:
        if not file.endswith(".toml"):
            raise BadRequest(f"{file} is not a .toml file")
        _build(screen, recipe_named(file), _directory(state), rebuild=rebuild)


@templates.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@state_option
@screen_options
def verify(screen: Screen, names: tuple[str, ...], state: str | None) -> int:
    """Read built templates again and compare every file with what was built; all when none is named."""
    catalog = Catalog(_directory(state))
    found = [catalog.read(name) for name in names] if names else list(catalog.load().values())
    wrong = 0
    for built in found:
        differing = verify_template(built)
        wrong += bool(differing)
        if screen.json:
            screen.data({"name": built.template.name, "digest": built.digest, "differing": differing})
        else:
            screen.line(f"{built.template.name}: {'intact' if not differing else f'{len(differing)} paths differ'}")
            for path in differing[:20]:
                screen.line(f"  {path}")
    if wrong:
        hint = "build them again: ringfence templates build --rebuild NAME"
        raise PlatformFault(f"{wrong} templates differ from what was built", code="template_damaged", remediation=hint)
    return 0


def _directory(state: str | None) -> Path:
    return config.read_server(state=state).templates_dir


def _build(screen: Screen, template: Template, directory: Path, *, rebuild: bool) -> None:
    if screen.json or not screen.err.is_terminal:
        built = build_template(template, directory, _Lines(screen, template.name), rebuild=rebuild)
    else:
        columns = (
            TextColumn("{task.fields[name]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Bars(*columns, console=screen.err) as bars:
            bar = bars.add_task("", name=template.name, total=1.0)
            built = build_template(template, directory, _Bar(bars, bar), rebuild=rebuild)
    _built(screen, built)


def _built(screen: Screen, built: Built) -> None:
    facts: dict[str, Any] = {"name": built.template.name, "digest": built.digest, "size_bytes": built.size_bytes}
    if screen.json:
        screen.data({**facts, "root": str(built.root)})
    else:
        screen.line(f"{built.template.name} {built.digest[:12]} {size(built.size_bytes)}")


class _Lines:
    """Progress as lines, for logs."""

    def __init__(self, screen: Screen, name: str) -> None:
        self._screen, self._name = screen, name

    def __call__(self, step: Progress) -> None:
        self._screen.say(f"{self._name}: {step.fraction:4.0%} {step.stage}: {step.text}")


class _Bar:
    """Progress as a bar, for people."""

    def __init__(self, bars: Bars, bar: TaskID) -> None:
        self._bars, self._bar = bars, bar

    def __call__(self, step: Progress) -> None:
        self._bars.update(self._bar, completed=step.fraction, description=f"{step.stage}: {clean(step.text)[:60]}")
