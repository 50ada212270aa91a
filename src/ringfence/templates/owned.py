"""Make a template of what a tenant's build left: `python -m ringfence.templates.owned`, one job on standard input.

The node starts it as root, in a process of its own: what a build left is a stranger's archive, unpacked by a job
without rights (image/unpack.py) that writes numbered files and tells their names; names meet a file system only here,
in a fresh folder, after they were merged and looked at in memory, as an image's are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import BadRequest, PlatformFault, RingfenceError
from ringfence.domain.limits import Limits, limits_from
from ringfence.domain.template import Image, PoolPolicy, Template, template_from
from ringfence.guest import syscalls as sc
from ringfence.guest.plan import HOME
from ringfence.templates import furnish, homes, tree
from ringfence.templates.catalog import Built, Catalog, Owned
from ringfence.templates.image import lint, model
from ringfence.templates.image.access import Bounds
from ringfence.templates.image.entries import Entry
from ringfence.templates.image.layers import Layer, refusal, unpack
from ringfence.templates.image.manifest import Blob
from ringfence.templates.image.tar import LayerError
from ringfence.templates.image.write import write

PYTHON: Final = "usr/bin/python3"
BASE: Final = "base"  # what the files of what was built upon are called among the layers
FACTS: Final = "facts"
JOB_BYTES: Final = 4 * 1024 * 1024
PLACE: Final = re.compile(r"[0-9a-f]{64}")
# What a sandbox has of its own, and what our own recipes alone say of every home.
_NOT_KEPT: Final = ("dev/", "proc/", "run/", "sys/", "tmp/", "var/tmp/", "etc/skel/", f"{homes.PLACE}/")


class Base:
    """The files that were built upon, as a layer."""

    def __init__(self, root: Path) -> None:
        self.paths: list[str] = []
        self.entries = [entry for found in tree.walk(root) if (entry := self._entry(root, found)) is not None]

    def _entry(self, root: Path, found: os.DirEntry[str]) -> Entry | None:
        path = os.path.relpath(found.path, root)
        place = _moved(path, homes.PLACE, homes.HOUSE)
        if found.is_symlink():
            return Entry("link", place, os.readlink(found.path))
        if found.is_dir(follow_symlinks=False):
            return Entry("folder", place)
        if not found.is_file(follow_symlinks=False):
            return None
        info = found.stat(follow_symlinks=False)
        self.paths.append(path)
        return Entry("file", place, "", len(self.paths) - 1, info.st_size, bool(info.st_mode & 0o111))


def _moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if path == old or path.startswith(f"{old}/") else path


class Maker:
    """One template, from the blobs of a work folder."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._work = Path(job["work"])
        self.shell = self.python = ""
        self._bounds = replace(Bounds(), **job["bounds"])

    def make(self) -> int:
        """Write the root; give the bytes that are its own. Raises BadRequest for whatever a build must not leave."""
        try:
            layers = self._unpacked()
            base = Base(Path(self._job["base"]))
            root = model.Root(self._bounds.entries)
            root.apply(BASE, base.entries)
            for layer in layers:
                root.apply(layer.name, [entry for entry in layer.entries if not _own(entry.path)])
            self._prepare(root)
            self._write(root, base, layers)
        except LayerError as error:
            raise refusal(error) from None
        return sum(layer.unpacked_bytes for layer in layers)

    def _unpacked(self) -> list[Layer]:
        staged = self._work / "layers"
        staged.mkdir(mode=0o755)
        layers: dict[str, Layer] = {}
        left_bytes, left_entries = self._bounds.unpacked_bytes, self._bounds.entries
        for number, told in enumerate(self._job["blobs"]):
            blob, place = Blob(f"sha256:{told['sha256']}", told["size"]), self._work / f"blob-{number}"
            if blob.name not in layers:
                fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    layers[blob.name] = unpack(blob, fd, staged, self._bounds, (left_bytes, left_entries), _nobody)
                finally:
                    os.close(fd)
            left_bytes -= layers[blob.name].unpacked_bytes
            left_entries -= len(layers[blob.name].entries)
            if left_bytes < 0 or left_entries < 0:
                raise BadRequest("the build left more than a template may have", code="template_too_large")
        return [layers[told["sha256"]] for told in self._job["blobs"]]

    def _prepare(self, root: model.Root) -> None:
        """No link where a sandbox mounts, nothing in its own places, an interpreter, and the home put aside."""
        lint.check(root)
        for path in lint.EMPTIED:
            node = root.lookup(path)
            if isinstance(node, model.Folder) and path != "etc/skel":
                node.children.clear()
        for path in furnish.MOUNT_POINTS:
            root.folder(path, create=True)
        if not self._job["foreign"] and not isinstance(root.find(PYTHON)[1], model.File):
            raise model.Absent
        search = self._job["template"]["env"].get("PATH", "")
        self.shell, self.python = lint.shell_in(root), lint.python_in(root, search)
        homes.put_aside(root, self._job["home"]["files"], self._job["home"]["bytes"])
        model.check_paths(root)

    def _write(self, root: model.Root, base: Base, layers: list[Layer]) -> None:
        files = {layer.name: layer.open_files() for layer in layers}
        files[BASE] = os.open(self._job["base"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write(root, self._work / "root", files, _nobody, _names(base))
        finally:
            for fd in files.values():
                os.close(fd)
        tree.normalise(self._work / "root")


def _names(base: Base) -> Callable[[model.File], str]:
    return lambda node: base.paths[node.number] if node.layer == BASE else str(node.number)


def _own(path: str) -> bool:
    return f"{path}/".startswith(_NOT_KEPT)


def _nobody(_: int) -> None:
    return


def _template(job: dict[str, Any], source: Template, facts: dict[str, Any]) -> Template:
    """What its sandboxes get: the limits of the template it was built upon, unless it was built with others."""
    asked = job["template"]
    shell = {"SHELL": facts["shell"]} if job["foreign"] and facts["shell"] else {}
    env = {**shell, **dict(source.env), **asked["env"]}
    limits: Limits = limits_from(job["limits"], source.limits)
    return replace(
        source,
        name=job["name"],
        description=asked["description"],
        debian=(),
        wheels=(),
        env=tuple(sorted(env.items())),
        limits=limits,
        pool=PoolPolicy(least=0, most=4),
        # For containers and gVisor it is an image: they bring an interpreter for their agent.
        image=Image(
            reference=f"e2b/{job['name']}", digest=f"sha256:{job['key']}", env=(), workdir=HOME,
            user=f"{furnish.UID}:{furnish.UID}", python=facts["python"],
        ),
    )  # fmt: skip


def publish(job: dict[str, Any]) -> dict[str, Any]:
    """Make the root unless it is there, and enter it under its name."""
    place = Path(job["directory"])
    trusted = Path(job["trusted"])
    catalog = Owned(place, trusted.parent.parent)
    source = _source(job, catalog)
    root = place / job["key"] / "root"
    if not root.is_dir():
        maker = Maker(job)
        facts: dict[str, Any] = {"size": maker.make() + job["base_bytes"], "shell": maker.shell, "python": maker.python}
        root.parent.mkdir(mode=0o755, exist_ok=True)
        (root.parent / FACTS).write_text(json.dumps(facts))
        (Path(job["work"]) / "root").rename(root)
    else:
        facts = _facts(root.parent)
    words = job["key"], root, facts["size"], time.time(), job["key"], job["tenant"], trusted, job["foreign"]
    catalog.record(Built(_template(job, source, facts), *words))
    catalog.read(job["name"])  # what nobody could use is not said to be made
    return {"digest": job["key"], "size": facts["size"], "shell": facts["shell"]}


def _facts(place: Path) -> dict[str, Any]:
    """What is known of a root; of one that an earlier version made, its size, and that it was ours."""
    try:
        found: dict[str, Any] = json.loads((place / FACTS).read_text())
    except FileNotFoundError:
        found = {"size": int((place / "size").read_text()), "shell": "/bin/bash", "python": f"/{PYTHON}"}
    return found


def _source(job: dict[str, Any], catalog: Owned) -> Template:
    """The template that was built upon; what was pulled has none that anybody could name, so its own comes along."""
    if job.get("source") is not None:
        return template_from(job["source"])
    trusted = Path(job["trusted"]).parent.parent
    return (catalog.read(job["from"]) if job["from_owned"] else Catalog(trusted).read(job["from"])).template


def remove(job: dict[str, Any]) -> dict[str, Any]:
    """Forget a tenant's names, then roots without any."""
    catalog = Owned(Path(job["directory"]), Path("/"))
    for name in job["names"]:
        if _owner(catalog, name) == job["tenant"]:
            catalog.forget(name)
    return sweep(job)


def _owner(catalog: Owned, name: str) -> str:
    try:
        return str(json.loads((catalog.index / f"{name}.json").read_text())["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def sweep(job: dict[str, Any]) -> dict[str, Any]:
    """Remove what was left half made, and roots without a name."""
    place = Path(job["directory"])
    index = place / "index"
    if not place.is_dir():
        return {}
    for left in place.glob("building-*") if job["job"] == "sweep" else ():
        tree.remove_tree(left)
    named = {_digest(file) for file in index.glob("*.json")}
    for spare in place.iterdir():
        if PLACE.fullmatch(spare.name) and spare.name not in named:
            tree.remove_tree(spare)
    return {}


def _digest(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


JOBS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "publish": publish,
    "remove": remove,
    "sweep": sweep,
}


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return JOBS[job["job"]](job)
    except RingfenceError as error:
        told = error
    except model.Absent:
        told = BadRequest(
            f"a step took away /{PYTHON}, or a folder that every sandbox needs",
            code="template_unusable",
            remediation="leave Python and the usual folders where they are",
        )
    except OSError as error:
        told = PlatformFault(f"making the template failed: {error.strerror}", code="template_build_failed")
    words = {"code": told.code, "cause": told.cause, "remediation": told.remediation}
    return {"error": {**words, "status": type(told).status}}


def main() -> int:
    """Read a job, do it, say what came of it."""
    sc.execute(sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL))
    os.umask(0o022)
    job = json.loads(sys.stdin.buffer.read(JOB_BYTES))
    sys.stdout.write(json.dumps(_done(job)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
