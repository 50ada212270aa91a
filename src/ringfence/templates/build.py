"""Build a template: its root file system, named by the hash of its content, made once and never changed.

`python -m ringfence.templates.build [--state DIR | --templates DIR] [--rebuild] NAME|FILE.toml ...` builds by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringfence.domain.errors import Conflict, PlatformFault, RingfenceError
from ringfence.domain.template import Image, Template
from ringfence.templates import commands, debian, furnish, quick, tree, wheels
from ringfence.templates.catalog import Built, Catalog, recipe_named
from ringfence.templates.image import make as images
from ringfence.templates.image.access import Access
from ringfence.templates.image.layers import Store
from ringfence.templates.image.reference import parse
from ringfence.templates.progress import Printer, Progress, Report, within

# Part of every recipe: raise it when the builder makes different roots from the same template.
BUILDER_VERSION: Final = 4
IMAGE_BUILDER_VERSION: Final = 1
DAMAGED: Final = ".damaged"
PLACE: Final = re.compile(r"[0-9a-f]{64}(\.damaged)?")
LOCK_SECONDS: Final = 1800.0
SPACE: Final = 400 * 1024 * 1024
SPACE_WITH_WHEELS: Final = 900 * 1024 * 1024
DEFAULT_ACCESS: Final = Access()


def recipe_digest(template: Template) -> str:
    """Hash what decides the content of a template's root. Limits, pools and variables do not: they apply at start."""
    recipe: list[object]
    if template.image:
        recipe = ["image", IMAGE_BUILDER_VERSION, template.image.digest]
    else:
        recipe = [BUILDER_VERSION, debian.SUITE, sorted(set(template.debian)), sorted(set(template.wheels))]
        recipe += [quick.VERSION] if template.wheels else []
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


@contextlib.contextmanager
def _lock(directory: Path, report: Report, seconds: float) -> Iterator[None]:
    """Hold the directory's build lock; the kernel lets it go if this process dies."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with open(directory / ".lock", "w") as file:
        told = False
        while not _locked(file.fileno()):
            if not told:
                report(Progress("lock", 0.0, "waiting for another build to end"))
                told = True
            if time.monotonic() > deadline:
                raise Conflict(
                    f"another build has held {directory} for {seconds:g} seconds",
                    code="build_in_progress",
                    remediation="wait for it to end, then try again",
                )
            time.sleep(0.1)
        yield


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(directory: Path) -> None:
    """Remove what a killed build left. Only the lock's holder may, so nothing here is in use."""
    for left in directory.glob("building-*"):
        tree.remove_tree(left)


def _check_space(template: Template, directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise commands.no_space(
            f"{directory} has {free >> 20} MiB free, a build of {template.name} needs {needed >> 20}"
        )


def _debian_layer(template: Template, root: Path, catalog: Catalog, report: Report) -> None:
    """Make the part without wheels: shared with a template that has the same, else bootstrapped."""
    wanted = recipe_digest(dataclasses.replace(template, wheels=()))
    for built in catalog.usable():
        # A damaged layer is not shared: its damage would be part of the new root's manifest.
        if template.wheels and built.recipe == wanted and not verify(built):
            report(Progress("debian", 1.0, f"sharing the files of {built.template.name}"))
            tree.share(built.root, root)
            return
    debian.bootstrap(template.debian, root, report)
    furnish.furnish(root)


def _make(template: Template, work: Path, catalog: Catalog, report: Report) -> None:
    root, scratch = work / "root", work / "scratch"
    scratch.mkdir(mode=0o755)
    _debian_layer(template, root, catalog, within(report, 0.0, 0.4 if template.wheels else 0.9))
    if template.wheels:
        wheels.install(template.wheels, root, scratch, within(report, 0.4, 0.9))
    tree.remove_tree(scratch)
    report(Progress("seal", 0.92, "removing devices, set-id bits and capabilities"))
    tree.normalise(root)


def _publish(template: Template, work: Path, catalog: Catalog, report: Report) -> Built:
    """Give the finished root its name. An equal root that is already there and intact is kept, and ours dropped."""
    report(Progress("seal", 0.95, "hashing"))
    entries = tree.manifest(work / "root")
    text = tree.manifest_text(entries)
    (work / "manifest").write_text(text)
    digest = tree.digest_of(text)
    place = catalog.directory / digest
    size = sum(entry.size for entry in entries)
    built = Built(template, digest, place / "root", size, time.time(), recipe_digest(template))
    if template.image:
        Store(catalog.directory).keep(work / images.STAGED)
    if place.exists() and verify(built):
        # Sandboxes may still run on the damaged one: it is put aside, and `prune` removes it.
        aside = place.with_suffix(DAMAGED)
        tree.remove_tree(aside)
        place.rename(aside)
    if not place.exists():
        work.rename(place)
    return built


@contextlib.contextmanager
def _workplace(name: str, catalog: Catalog) -> Iterator[Path]:
    """A folder to build in, gone in the end unless it was published; and every failure said as ours."""
    work = catalog.directory / f"building-{os.getpid()}"
    work.mkdir(mode=0o755)
    try:
        yield work
    except commands.CommandError as failed:
        cause = f"building {name} failed: {failed}: {failed.last_words()}"
        raise PlatformFault(cause, code="template_build_failed") from failed
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise commands.no_space() from error
        raise PlatformFault(f"building {name} failed: {error}", code="template_build_failed") from error
    finally:
        if work.exists():
            tree.remove_tree(work)


def _reusable(template: Template, catalog: Catalog) -> Built | None:
    """What is built already from an equal recipe."""
    recipe = recipe_digest(template)
    return next((built for built in catalog.usable() if built.recipe == recipe), None)


def _build_debian(template: Template, catalog: Catalog, report: Report, *, rebuild: bool) -> Built:
    same = _reusable(template, catalog)
    if same and not rebuild:
        return dataclasses.replace(same, template=template)
    _check_space(template, catalog.directory, SPACE_WITH_WHEELS if template.wheels else SPACE)
    with _workplace(template.name, catalog) as work:
        _make(template, work, catalog, report)
        return _publish(template, work, catalog, report)


def _build_image(
    template: Template, image: Image, catalog: Catalog, report: Report, access: Access, *, rebuild: bool
) -> Built:
    """Ask what the reference is now; fetch it only if that is not built yet."""
    reference = parse(image.reference, access.allowed)
    with _workplace(template.name, catalog) as work:
        found = images.resolve(reference, access, work, report)
        wanted = Image(reference.text, found.manifest.digest)
        same = _reusable(dataclasses.replace(template, image=wanted), catalog)
        if same and same.template.image and not rebuild:
            known = dataclasses.replace(same.template.image, reference=reference.text)
            return dataclasses.replace(same, template=dataclasses.replace(template, image=known))
        _check_space(template, catalog.directory, SPACE + 4 * found.manifest.download_bytes)
        made = images.Maker(found, access, Store(catalog.directory), work, report).make()
        report(Progress("seal", 0.92, "looking for what is left of rights"))
        tree.normalise(work / "root")
        return _publish(dataclasses.replace(template, image=made), work, catalog, report)


def build(
    template: Template, directory: Path, report: Report, *, rebuild: bool = False,
    lock_seconds: float = LOCK_SECONDS, access: Access = DEFAULT_ACCESS,
) -> Built:  # fmt: skip
    """Build `template` in the templates directory, or find it built, and enter it in the catalog.

    An equal recipe is never built twice unless `rebuild` asks for today's packages. Raises BadRequest for a package
    that does not exist or an image that is not safe, PlatformFault when a tool, the network or the disk fails; then
    nothing is left behind. `access` says how an image's registry is reached.
    """
    catalog = Catalog(directory)
    with _lock(directory, report, lock_seconds):
        _sweep(directory)
        if template.image:
            built = _build_image(template, template.image, catalog, report, access, rebuild=rebuild)
        else:
            built = _build_debian(template, catalog, report, rebuild=rebuild)
        catalog.record(built)
    report(Progress("done", 1.0, f"{built.digest[:12]}, {built.size_bytes >> 20} MiB"))
    return built


def prune(directory: Path, report: Report, *, lock_seconds: float = LOCK_SECONDS) -> list[str]:
    """Remove each root that no template in the catalog names any more, and each image layer that no root has.

    Returns the names of what was removed.

    For the operator, after a rebuild, when no node still runs on the old roots.
    """
    with _lock(directory, report, lock_seconds):
        _sweep(directory)
        named = {built.digest for built in Catalog(directory).load().values()}
        spare = [place.name for place in directory.iterdir() if PLACE.fullmatch(place.name) and place.name not in named]
        for digest in spare:
            tree.remove_tree(directory / digest)
        store = Store(directory)
        for layer in images.prunable(store, [directory / digest for digest in named]):
            tree.remove_tree(store.directory / layer)
            spare.append(f"layers/{layer}")
    return sorted(spare)


def verify(built: Built) -> list[str]:
    """Hash a root again and name every path that differs from what was built; an empty list means it is intact."""
    try:
        text = (built.root.parent / "manifest").read_text()
    except OSError:
        return ["manifest"]
    if tree.digest_of(text) != built.digest:
        return ["manifest"]
    return tree.differing(text, built.root)


def _default_state() -> Path:
    return Path("/var/lib/ringfence") if os.geteuid() == 0 else Path.home() / ".local/share/ringfence"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ringfence.templates.build", description="Build templates.")
    parser.add_argument("--state", type=Path, default=_default_state(), help="state directory (default: %(default)s)")
    parser.add_argument("--templates", type=Path, help="templates directory (default: STATE/templates)")
    parser.add_argument("--rebuild", action="store_true", help="build again, with the packages of today")
    parser.add_argument("--verify", action="store_true", help="then hash what is built and name each difference")
    parser.add_argument("--prune", action="store_true", help="then remove roots that no template names any more")
    parser.add_argument("names", nargs="*", metavar="NAME|FILE.toml")
    return parser.parse_args(arguments)


def _build_all(options: argparse.Namespace, directory: Path) -> bool:
    """Build each named template; return whether all that were to be verified are intact."""
    intact = True
    for name in options.names:
        template = recipe_named(name)
        built = build(template, directory, Printer(template.name, sys.stderr), rebuild=options.rebuild)
        print(template.name, built.digest, built.root)
        for path in verify(built) if options.verify else []:
            intact = False
            print(f"{template.name}: differs: {path}", file=sys.stderr)
    return intact


def main(arguments: list[str] | None = None) -> int:
    """Build the named templates: progress to stderr, one line a template to stdout."""
    options = _arguments(arguments)
    directory = options.templates or options.state / "templates"
    try:
        intact = _build_all(options, directory)
        for digest in prune(directory, Printer("prune", sys.stderr)) if options.prune else []:
            print("removed", digest, file=sys.stderr)
    except RingfenceError as error:
        hint = f"\n  {error.remediation}" if error.remediation else ""
        print(f"{error.code}: {error.cause}{hint}", file=sys.stderr)
        return 1
    return 0 if intact else 2


if __name__ == "__main__":
    sys.exit(main())
