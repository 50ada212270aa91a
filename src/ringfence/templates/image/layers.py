"""Unpacked layers, kept by the digest of their blobs, so that templates which share one have it once.

A layer is <hex>/files/0, 1, 2... and <hex>/index, one line an entry. Roots are made of hard links to the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import selectors
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.templates import tree
from ringfence.templates.image import jobs
from ringfence.templates.image.access import MIB, Bounds
from ringfence.templates.image.entries import Entry, entry_from
from ringfence.templates.image.fetch import open_beneath
from ringfence.templates.image.manifest import Blob, lying
from ringfence.templates.image.tar import LayerError
from ringfence.templates.image.unpack import Dropped

NAME: Final = re.compile(r"[0-9a-f]{64}")
CHUNK: Final = MIB
LINE_BYTES: Final = 64 * 1024
MEMORY: Final = 1024 * MIB
FAILED: Final = "image_unpack_failed"


@dataclass(slots=True)
class Layer:
    """One unpacked layer: its entries in order, and what was taken out of it."""

    name: str
    folder: Path
    entries: list[Entry]
    diff_id: str
    unpacked_bytes: int
    dropped: Dropped = field(default_factory=Dropped)

    def open_files(self) -> int:
        """A descriptor of the folder with the layer's numbered files."""
        return os.open(self.folder / "files", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def refusal(error: LayerError) -> BadRequest:
    """A layer's refusal, as ours."""
    return BadRequest(error.cause, code=error.code, remediation="the image is not safe to unpack; use another")


def open_blob(place: Path, names: tuple[str, ...], blob: Blob, what: str) -> int:
    """Open a fetched blob, after its size and digest were found to be right. Raises BadRequest for a lie."""
    try:
        fd = open_beneath(place, *names, blob.name)
    except OSError:
        raise BadRequest(f"the registry did not send the {what} {blob.digest}", code="image_digest_mismatch") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size != blob.size:
            raise BadRequest(
                f"the {what} {blob.digest} has {info.st_size} bytes, its manifest says {blob.size}",
                code="image_size_mismatch",
            )
        found = _hashed(fd)
        if found != blob.digest:
            raise lying(f"the {what}", blob.digest, found)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _hashed(fd: int) -> str:
    digest = hashlib.sha256()
    while data := os.read(fd, CHUNK):
        digest.update(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return f"sha256:{digest.hexdigest()}"


def _is_whole(layer: Layer) -> bool:
    folder = layer.open_files()
    try:
        return all(_is_intact(folder, entry) for entry in layer.entries if entry.kind == "file")
    finally:
        os.close(folder)


def _is_intact(folder: int, entry: Entry) -> bool:
    fd = os.open(str(entry.number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd, "rb") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) != _mode(entry):
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.target


def _mode(entry: Entry) -> int:
    return 0o755 if entry.executable else 0o644


class Store:
    """The layers of one templates directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "layers"

    def intact(self, blob: Blob) -> Layer | None:
        """A layer that is there, and every file of it as it was unpacked: damage is not handed on to another root."""
        folder = self.directory / blob.name
        try:
            with open(folder / "index", "rb") as file:
                head = json.loads(file.readline(LINE_BYTES))
                entries = [entry_from(line) for line in file]
            dropped = Dropped(**head["dropped"])
            layer = Layer(blob.name, folder, entries, head["diff_id"], head["unpacked_bytes"], dropped)
            return layer if _is_whole(layer) else None
        except (OSError, ValueError, KeyError, TypeError, LayerError):
            return None

    def keep(self, staged: Path) -> None:
        """Take in what a finished build has unpacked."""
        self.directory.mkdir(mode=0o755, exist_ok=True)
        for folder in sorted(staged.iterdir()):
            tree.remove_tree(self.directory / folder.name)  # only a damaged one is unpacked again
            folder.rename(self.directory / folder.name)
        staged.rmdir()

    def names(self) -> set[str]:
        """Every layer that is kept."""
        found = os.listdir(self.directory) if self.directory.is_dir() else ()
        return {name for name in found if NAME.fullmatch(name)}


@dataclass(slots=True)
class _Heard:
    """What an unpacking job has told so far."""

    entries: list[Entry] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    most: int = 0

    def take(self, line: bytes, packed: Callable[[int], None]) -> None:
        """Read one line of the job. Raises LayerError for a refusal, and for nonsense."""
        if not line.startswith(b"{"):
            self.entries.append(entry_from(line))
            if len(self.entries) > self.most:
                raise LayerError("image_too_many_entries", f"a layer has more than {self.most} entries")
            return
        told = json.loads(line)
        if "refused" in told:
            code, cause = (str(word) for word in told["refused"])
            raise LayerError(code if re.fullmatch(r"image_[a-z_]{1,40}", code) else FAILED, cause[:600])
        if "failed" in told:
            raise OSError(int(told["failed"]), os.strerror(int(told["failed"])))
        if "packed" in told:
            packed(int(told["packed"]))
        else:
            self.done = told


def unpack(
    blob: Blob, blob_fd: int, staged: Path, bounds: Bounds, left: tuple[int, int], packed: Callable[[int], None]
) -> Layer:
    """Unpack a verified blob into `staged`, in a confined job, and take the result into our own hands.

    `left` is how many bytes and entries the image may still have. Raises BadRequest for what a layer must not be.
    """
    folder = staged / blob.name
    folder.mkdir(mode=0o755)
    files = folder / "files"
    files.mkdir(mode=0o700)
    jobs.give(files)
    most = {
        "unpacked_bytes": left[0], "file_bytes": min(bounds.file_bytes, left[0]), "entries": left[1],
        "ratio": bounds.ratio, "ratio_free_bytes": bounds.ratio_free_bytes,
    }  # fmt: skip
    rlimits = {"FSIZE": most["file_bytes"], "AS": MEMORY, "CPU": max(1, int(bounds.unpack_seconds)), "NPROC": 1}
    process = jobs.start("unpack", files, rlimits=rlimits, stdin=blob_fd, most=most)
    heard = _Heard(most=left[1])
    with process:
        try:
            for line in _lines(process, time.monotonic() + bounds.unpack_seconds):
                heard.take(line, packed)
        except LayerError as error:
            raise refusal(error) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PlatformFault("the job that unpacks a layer broke its protocol", code=FAILED) from None
        finally:
            words = jobs.end(process)
    return _adopted(blob, folder, heard, words)


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """The job's lines as they come, none longer than its bound. Raises LayerError when time is up."""
    buffer = bytearray()
    out = process.stdout
    with selectors.DefaultSelector() as ready:
        if out is None:
            return
        ready.register(out, selectors.EVENT_READ)
        while True:
            if not ready.select(max(0.0, deadline - time.monotonic())):
                raise LayerError("image_unpack_slow", "a layer takes longer to unpack than it may")
            data = os.read(out.fileno(), CHUNK)
            if not data:
                break
            buffer += data
            *whole, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            if len(rest) > LINE_BYTES:
                raise ValueError("a line is too long")
            yield from whole
    process.wait(timeout=max(1.0, deadline - time.monotonic()))


def _adopted(blob: Blob, folder: Path, heard: _Heard, words: str) -> Layer:
    try:
        diff_id, size = str(heard.done["done"]), int(heard.done["bytes"])
        dropped = Dropped(**{name: int(heard.done["dropped"][name]) for name in Dropped.__dataclass_fields__})
    except (KeyError, TypeError, ValueError):
        raise jobs.broken(words) or PlatformFault(
            f"the job that unpacks a layer died: {words or 'it was killed'}",
            code=FAILED,
            remediation="run: ringfence doctor",
        ) from None
    _adopt_files(folder / "files", [entry for entry in heard.entries if entry.kind == "file"])
    layer = Layer(blob.name, folder, heard.entries, diff_id, size, dropped)
    head = {"diff_id": diff_id, "unpacked_bytes": size, "dropped": asdict(dropped)}
    with open(folder / "index", "x") as file:
        file.write(json.dumps(head) + "\n")
        file.writelines(entry.line() for entry in layer.entries)
    return layer


def _adopt_files(files: Path, entries: list[Entry]) -> None:
    """Make each file ours and plain. What a job made is believed only as far as a look at each file shows it."""
    owner = (0, 0) if os.geteuid() == 0 else (-1, -1)
    folder = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if {entry.number for entry in entries} != set(range(len(entries))) or len(os.listdir(folder)) != len(entries):
            raise PlatformFault("the job that unpacks a layer made other files than it told", code=FAILED)
        for entry in entries:
            fd = os.open(str(entry.number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                info = os.fstat(fd)
                if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size != entry.size:
                    raise PlatformFault("the job that unpacks a layer made other files than it told", code=FAILED)
                os.fchown(fd, *owner)
                os.fchmod(fd, _mode(entry))
            finally:
                os.close(fd)
        os.fchown(folder, *owner)
        os.fchmod(folder, 0o755)
    except OSError as error:
        raise PlatformFault(f"the files of a layer cannot be taken over: {error}", code=FAILED) from error
    finally:
        os.close(folder)
