"""`ringfence templates`: list what a server has; build, add, create and verify on this machine."""

from __future__ import annotations

import sys
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
from ringfence.domain.template import RUNTIMES, Template, template_from
from ringfence.templates.build import build as build_template
from ringfence.templates.build import verify as verify_template
from ringfence.templates.catalog import Built, Catalog, builtin_names, recipe_named
from ringfence.templates.image import access as reach
from ringfence.templates.image import reference
from ringfence.templates.progress import Progress

COLUMNS = ("NAME", "SIZE", "DIGEST", "PRELOADED", "WARM", "WHAT")
state_option = click.option("--state", metavar="DIR", help="The state directory (default: RINGFENCE_STATE).")


@click.group(
    cls=Subcommands,
    epilog=examples(
        "ringfence templates list",
        "ringfence templates build base python",
        "ringfence templates add ./my-template.toml",
        "ringfence templates create node --image docker.io/library/node:22-slim",
        "ringfence templates verify",
    ),
)
def templates() -> None:
    """List a server's templates; build, add, create and verify them on this machine.

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
        recipe = recipe_named(file, config.read_server(state=state).egress.floor())
        _build(screen, recipe, _directory(state), rebuild=rebuild)


@templates.command(
    epilog=examples(
        "ringfence templates create node --image docker.io/library/node:22-slim",
        "ringfence templates create tools --image registry.example/tools@sha256:... --isolation gvisor",
        "ringfence templates create mine --image registry.example/mine --username me --password-stdin < secret",
    )
)
@click.argument("name")
@click.option("--image", "image", required=True, metavar="REF", help="What to pull: registry/name:tag or @sha256:...")
@click.option("--description", default="", metavar="TEXT", help="A line for people.")
@click.option("--isolation", type=click.Choice(RUNTIMES), default="auto", help="How its sandboxes are isolated.")
@click.option("--auth-file", metavar="FILE", help="An auth.json, as podman login and docker login write it.")
@click.option("--username", metavar="NAME", help="Who asks the registry; needs --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the input.")
@click.option("--ca", metavar="FILE", help="Certificates (PEM) of the registry's own authority.")
@click.option("--mirror", default="", metavar="HOST[/PREFIX]", help="Ask this registry instead.")
@click.option(
    "--allow", multiple=True, metavar="HOST[:PORT]", help="A registry at a private address; http:// for no TLS."
)
@click.option("--rebuild", is_flag=True, help="Fetch and unpack again what is built already.")
@state_option
@screen_options
def create(screen: Screen, name: str, state: str | None, *, rebuild: bool, **options: Any) -> None:
    """Make a template from a container image, pulled from a registry. It needs neither Python nor a shell.

    Jobs without rights fetch and unpack it. Devices, set-id bits and capabilities are left out; an image that plays
    tricks with links, names or sizes is refused.
    """
    access = _access(options, config.read_server(state=state).image_registries)
    reference.parse(options["image"], access.allowed)
    fields = {"name": name, "image": options["image"], "description": options["description"]}
    template = template_from({**fields, "runtime": options["isolation"]})
    _build(screen, template, _directory(state), rebuild=rebuild, access=access)


def _access(options: dict[str, Any], settled: list[str]) -> reach.Access:
    """What the options say of the registry. No secret is ever a word on a command line."""
    allow, mirror = reach.checked_allow((*settled, *options["allow"])), reach.checked_mirror(options["mirror"])
    auth = reach.read_auth(options["auth_file"]) if options["auth_file"] else {}
    if options["password_stdin"] != bool(options["username"]):
        raise click.UsageError("--username and --password-stdin go together")
    if options["username"]:
        password = sys.stdin.readline(reach.FILE_BYTES).rstrip("\n")
        asked = (
            mirror or reference.parse(options["image"], frozenset(n.removeprefix("http://") for n in allow)).registry
        )
        auth = {**auth, **reach.basic_auth(asked.partition("/")[0], options["username"], password)}
    return reach.Access(allow, mirror, reach.read_ca(options["ca"]) if options["ca"] else "", auth)


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


def _build(
    screen: Screen, template: Template, directory: Path, *, rebuild: bool, access: reach.Access | None = None
) -> None:
    access = access or reach.Access()
    if screen.json or not screen.err.is_terminal:
        built = build_template(template, directory, _Lines(screen, template.name), rebuild=rebuild, access=access)
    else:
        columns = (
            TextColumn("{task.fields[name]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Bars(*columns, console=screen.err) as bars:
            bar = bars.add_task("", name=template.name, total=1.0)
            built = build_template(template, directory, _Bar(bars, bar), rebuild=rebuild, access=access)
    _built(screen, built)


def _built(screen: Screen, built: Built) -> None:
    facts: dict[str, Any] = {"name": built.template.name, "digest": built.digest, "size_bytes": built.size_bytes}
    if built.template.image:
        facts["image"] = built.template.image.reference
        facts["image_digest"] = built.template.image.digest
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
