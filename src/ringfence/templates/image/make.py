"""From a reference to a root: ask, fetch, unpack, merge, look for tricks, write."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ringfence.domain.errors import BadRequest
from ringfence.domain.template import Image
from ringfence.templates.image import jobs, lint, manifest, model
from ringfence.templates.image.access import Access
from ringfence.templates.image.fetch import Arrived, Fetcher, blob_names
from ringfence.templates.image.layers import Layer, Store, open_blob, refusal, unpack
from ringfence.templates.image.manifest import Blob, Manifest
from ringfence.templates.image.reference import Reference
from ringfence.templates.image.tar import LayerError
from ringfence.templates.image.write import write
from ringfence.templates.progress import Progress, Report, within

STAGED: Final = "layers"
FETCHED: Final = "fetched"
RESERVE: Final = 256 * 1024 * 1024

Furnish = Callable[[model.Root, str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference stands for at the moment."""

    reference: Reference
    manifest: Manifest


def resolve(reference: Reference, access: Access, work: Path, report: Report) -> Found:
    """Ask the registry what the reference is, and hold the answer against the digest it was asked by."""
    report(Progress("image", 0.0, f"asking {access.mirror or reference.registry} for {reference.path}"))
    fetcher = Fetcher(reference, access, work)
    raw = fetcher.manifest()
    if reference.digest:
        manifest.check_digest(raw, reference.digest, "the manifest")
    if manifest.is_index(raw):
        chosen = manifest.choose(raw)
        raw = fetcher.manifest(chosen)
        manifest.check_digest(raw, chosen, "the manifest")
    return Found(reference, manifest.read_manifest(raw, access.bounds))


class Maker:
    """Makes one root below `work`, with what the store has, and stages there what the store will get."""

    def __init__(
        self, found: Found, access: Access, store: Store, work: Path, report: Report, furnish: Furnish | None = None
    ) -> None:
        """`furnish` is what else is done to the tree, which knows the image's Python, before it is written."""
        self._furnish = furnish
        self._found = found
        self._access = access
        self._store = store
        self._work = work
        self._report = report

    def make(self) -> Image:
        """Write `root`; give what the image says of itself. Raises BadRequest for whatever an image must not be."""
        try:
            config, layers = self._layers()
            return self._root(config.image, layers)
        except LayerError as error:
            raise refusal(error) from None

    # -- layers ---------------------------------------------------------------------------------------------

    def _layers(self) -> tuple[manifest.Config, list[Layer]]:
        found = self._found.manifest
        staged = self._work / STAGED
        staged.mkdir(mode=0o755)
        stored = {blob: self._store.intact(blob) for blob in dict.fromkeys(found.layers)}
        have = {blob: layer for blob, layer in stored.items() if layer}
        fetcher = Fetcher(self._found.reference, self._access, self._work)
        raw = fetcher.config(found.digest)
        manifest.check_digest(raw, found.config.digest, "the configuration")
        config = manifest.read_config(raw, found, self._found.reference.text)
        with jobs.folder(self._work / FETCHED) as place:
            fetcher.blobs(found, place, list(have), self._fetching(list(have)))
            layers = self._unpack_all(place, staged, config, have)
        return config, layers

    def _fetching(self, have: list[Blob]) -> _Fetching:
        return _Fetching(self._found.manifest, frozenset(have), within(self._report, 0.02, 0.5))

    def _unpack_all(self, place: Path, staged: Path, config: manifest.Config, known: dict[Blob, Layer]) -> list[Layer]:
        bounds = self._access.bounds
        layers: list[Layer] = []
        report, blobs = within(self._report, 0.5, 0.8), self._found.manifest.layers
        # A bomb within the bounds must not fill the disk either.
        spare = shutil.disk_usage(self._work).free - RESERVE
        left_bytes, left_entries = max(0, min(bounds.unpacked_bytes, spare)), bounds.entries
        for number, blob in enumerate(blobs):
            words = f"layer {number + 1} of {len(blobs)}"
            report(Progress("unpack", number / len(blobs), f"{words}: {_size(blob.size)}"))
            if blob not in known:
                told = _Unpacking(report, number, len(blobs), blob, words)
                known[blob] = self._layer(blob, place, staged, (left_bytes, left_entries), told)
            layer = known[blob]
            left_bytes, left_entries = left_bytes - layer.unpacked_bytes, left_entries - len(layer.entries)
            _check_layer(layer, config.diff_ids[number], blob, left_bytes, left_entries)
            layers.append(layer)
        return layers

    def _layer(self, blob: Blob, place: Path, staged: Path, left: tuple[int, int], told: _Unpacking) -> Layer:
        fd = open_blob(place, blob_names(), blob, "layer")
        try:
            layer = unpack(blob, fd, staged, self._access.bounds, left, told)
        finally:
            os.close(fd)
        told.end(layer)
        return layer

    # -- the root -------------------------------------------------------------------------------------------

    def _root(self, image: Image, layers: list[Layer]) -> Image:
        self._report(Progress("merge", 0.8, f"merging {len(layers)} layers"))
        root = model.Root(self._access.bounds.entries)
        with _opened(layers) as files:
            for layer in layers:
                root.apply(layer.name, layer.entries)
            lint.check(root)
            lint.prepare(root, image.workdir, lambda file: _content(files[file.layer], file))
            python = lint.python_in(root, dict(image.env).get("PATH", ""))
            if self._furnish is not None:
                self._furnish(root, python)
            count = model.check_paths(root)
            report = within(self._report, 0.82, 0.9)
            write(root, self._work / "root", files, lambda done: report(_written(done, count)))
        (self._work / "layers.txt").write_text("".join(f"{layer.name}\n" for layer in layers))
        return replace(image, python=python)


@contextlib.contextmanager
def _opened(layers: list[Layer]) -> Iterator[dict[str, int]]:
    """Descriptors of the layers' files, by layer."""
    files: dict[str, int] = {}
    try:
        for layer in layers:
            if layer.name not in files:
                files[layer.name] = layer.open_files()
        yield files
    finally:
        for fd in files.values():
            os.close(fd)


def _content(folder: int, file: model.File) -> bytes:
    fd = os.open(str(file.number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd, "rb") as opened:
        return opened.read(lint.TEXT_BYTES)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def _written(done: int, count: int) -> Progress:
    return Progress("write", done / max(1, count), f"{done} of {count} files and folders")


def _check_layer(layer: Layer, diff_id: str, blob: Blob, left_bytes: int, left_entries: int) -> None:
    if layer.diff_id != diff_id:
        raise manifest.lying(f"the unpacked layer {blob.digest[:19]}", diff_id, layer.diff_id)
    if left_bytes < 0 or left_entries < 0:
        raise BadRequest("the image unpacks to more than is taken", code="image_too_large")


class _Fetching:
    """Tells how a download goes: the layers that are there, and the bytes of all."""

    def __init__(self, found: Manifest, have: frozenset[Blob], report: Report) -> None:
        self._names = {blob.name for blob in found.layers} - {blob.name for blob in have}
        self._shared = len({blob.name for blob in have})
        self._total = max(1, found.download_bytes - sum(blob.size for blob in have))
        self._report = report
        self._last = ""

    def __call__(self, arrived: Arrived) -> None:
        """Report, if there is anything new to say."""
        done = len(self._names & arrived.blobs)
        received = min(arrived.received, self._total)
        shared = f", {self._shared} shared" if self._shared else ""
        text = f"layer {done} of {len(self._names)}{shared}: {_size(received)} of {_size(self._total)}"
        if text != self._last:
            self._last = text
            self._report(Progress("fetch", received / self._total, text))


class _Unpacking:
    """Tells how far one layer is unpacked, and what was taken out of it."""

    def __init__(self, report: Report, number: int, count: int, blob: Blob, words: str) -> None:
        self._report, self._number, self._count = report, number, count
        self._size, self._words = max(1, blob.size), words

    def __call__(self, packed: int) -> None:
        """Some of the blob's bytes are read."""
        share = min(1.0, packed / self._size)
        text = f"{self._words}: {_size(packed)} of {_size(self._size)}"
        self._report(Progress("unpack", (self._number + share) / self._count, text))

    def end(self, layer: Layer) -> None:
        """Say what a layer had that no root has."""
        dropped = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in asdict(layer.dropped).items() if n)
        if dropped:
            self._report(Progress("unpack", (self._number + 1) / self._count, f"{self._words}: left out {dropped}"))


def names_of(place: Path) -> set[str]:
    """The layers that a finished root was made of."""
    try:
        return set((place / "layers.txt").read_text().split())
    except OSError:
        return set()


def prunable(store: Store, places: list[Path]) -> list[str]:
    """The stored layers that no kept root was made of."""
    used: set[str] = set()
    for place in places:
        used |= names_of(place)
    return sorted(store.names() - used)
