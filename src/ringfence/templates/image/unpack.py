"""Unpack one layer, in a job without rights or network that sees one empty folder and nothing else.

Names of a layer never become names on a file system here: its files are written as 0, 1, 2 and so on, and what they
are to be called is told on the output, as text. A folder to climb out of, a link to write through, a device to make:
none of them has anything to act on.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.templates.image.entries import OPAQUE, WHITEOUT, Entry, check_target, plain_parts
from ringfence.templates.image.tar import CHUNK, Archive, LayerError, Member, damaged

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
GZIP_BITS: Final = 31
LATEST: Final = 1 << 34
TOLD_EVERY: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Most:
    """The bounds of one layer."""

    unpacked_bytes: int
    file_bytes: int
    entries: int
    ratio: int
    ratio_free_bytes: int


@dataclass(slots=True)
class Dropped:
    """What a layer had and a sandbox's root never has."""

    devices: int = 0
    pipes: int = 0
    set_id_bits: int = 0
    capabilities: int = 0
    attributes: int = 0


class Inflated:
    """A blob's bytes, decompressed as they are read, hashed, and counted against the bounds."""

    def __init__(self, fd: int, most: Most) -> None:
        self._fd = fd
        self._most = most
        self._ready = bytearray()
        self._raw = self._more()
        self._gzip = zlib.decompressobj(GZIP_BITS) if self._raw.startswith(GZIP) else None
        self._within = False  # a gzip stream that has not ended
        if self._raw.startswith(ZSTD):
            raise LayerError("image_compression", "a layer is compressed with zstd; only gzip and none are read")
        self.packed = len(self._raw)
        self.unpacked = 0
        self.hash = hashlib.sha256()

    def _more(self) -> bytes:
        return os.read(self._fd, CHUNK)

    def _refill(self) -> bytes:
        if not self._raw:
            self._raw = self._more()
            self.packed += len(self._raw)
        return self._raw

    def _piece(self) -> bytes:
        """Some decompressed bytes; none at the end."""
        while raw := self._refill():
            if self._gzip is None:
                self._raw = b""
                return raw
            piece = self._inflate(self._gzip, raw)
            if self._gzip.eof:
                # Several gzip streams behind each other are one file; zeros behind the last are padding.
                while self._refill() and not self._raw.strip(b"\0"):
                    self._raw = b""
                self._raw = self._raw.lstrip(b"\0")
                self._gzip = zlib.decompressobj(GZIP_BITS)
            if piece:
                return piece
        if self._within:
            raise damaged("its compressed data ends too soon")
        return b""

    def _inflate(self, stream: Any, raw: bytes) -> bytes:
        try:
            piece: bytes = stream.decompress(raw, CHUNK)
        except zlib.error:
            raise damaged("its compressed data is none") from None
        self._within = not stream.eof
        self._raw = stream.unused_data if stream.eof else stream.unconsumed_tail
        return piece

    def _count(self, size: int) -> None:
        self.unpacked += size
        if self.unpacked > self._most.unpacked_bytes:
            raise LayerError(
                "image_too_large",
                f"a layer unpacks to more than the {self._most.unpacked_bytes >> 20} MiB that are left",
            )
        if self.unpacked > self._most.ratio_free_bytes + self._most.ratio * self.packed:
            raise LayerError(
                "image_bomb", f"a layer of {self.packed} bytes unpacks to more than {self._most.ratio} times as much"
            )

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        while len(self._ready) < size:
            piece = self._piece()
            if not piece:
                break
            self._count(len(piece))
            self.hash.update(piece)
            self._ready += piece
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def drain(self) -> None:
        """Read what is behind the archive's end: it belongs to the digest."""
        while self.read(CHUNK):
            pass


@dataclass(slots=True)
class Unpacker:
    """One layer's way from its blob to numbered files in `folder_fd` and lines told to `say`."""

    source: Inflated
    most: Most
    folder_fd: int
    say: Callable[[str], None]
    dropped: Dropped = field(default_factory=Dropped)
    entries: int = 0
    files: int = 0
    told: int = 0

    def run(self) -> str:
        """Unpack all; give the digest of the uncompressed layer. Raises LayerError and OSError."""
        archive = Archive(self.source)
        for member in archive:
            self.entries += 1
            if self.entries > self.most.entries:
                raise LayerError("image_too_many_entries", f"a layer has more than {self.most.entries} entries")
            entry = self._entry(member, archive)
            if entry is not None:
                self.say(entry.line())
            if self.source.unpacked - self.told > TOLD_EVERY:
                self.told = self.source.unpacked
                self.say(json.dumps({"packed": self.source.packed}) + "\n")
        self.source.drain()
        return f"sha256:{self.source.hash.hexdigest()}"

    def _entry(self, member: Member, archive: Archive) -> Entry | None:
        path = "/".join(plain_parts(member.path))
        name = path.rpartition("/")[2]
        if name.startswith(WHITEOUT):
            return self._whiteout(path, name)
        self._note(member)
        if not path or member.kind in {"device", "pipe"}:
            return None  # the root itself has no name to give
        if member.kind == "file":
            return self._file(path, member, archive)
        if member.kind in {"link", "hard"}:
            check_target(path, member.target)
            target = "/".join(plain_parts(member.target)) if member.kind == "hard" else member.target
            return Entry(member.kind, path, target)
        return Entry("folder", path)

    @staticmethod
    def _whiteout(path: str, name: str) -> Entry | None:
        if name == OPAQUE:
            return Entry("gone", path)
        hidden = name.removeprefix(WHITEOUT)
        if hidden.startswith(WHITEOUT):
            return None  # another file system's own bookkeeping
        if hidden in {"", ".", ".."}:
            raise LayerError("image_path_escapes", f"a layer removes a path that is none: {path!r:.200}")
        return Entry("gone", path)

    def _note(self, member: Member) -> None:
        self.dropped.devices += member.kind == "device"
        self.dropped.pipes += member.kind == "pipe"
        self.dropped.set_id_bits += member.kind == "file" and bool(member.mode & 0o6000)
        self.dropped.capabilities += member.has_capability
        self.dropped.attributes += member.has_attributes and not member.has_capability

    def _file(self, path: str, member: Member, archive: Archive) -> Entry:
        if member.size > self.most.file_bytes:
            raise LayerError("image_too_large", f"a layer has a file of {member.size} bytes: {path!r:.200}")
        executable = bool(member.mode & 0o111)
        number, self.files = self.files, self.files + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(str(number), flags, 0o600, dir_fd=self.folder_fd)
        digest = hashlib.sha256()
        try:
            for chunk in archive.chunks():
                digest.update(chunk)
                _write(fd, chunk)
            # Python compares the time of a module with the one in its compiled file.
            seconds = min(max(member.mtime, 0), LATEST)
            os.utime(fd, (seconds, seconds))
        finally:
            os.close(fd)
        return Entry("file", path, digest.hexdigest(), number, member.size, executable)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def unpack(blob_fd: int, folder_fd: int, most: dict[str, int], say: Callable[[str], None]) -> None:
    """Unpack a blob; the last line said is the outcome: what came of it, or the refusal."""
    try:
        unpacker = Unpacker(Inflated(blob_fd, limits := Most(**most)), limits, folder_fd, say)
        diff_id = unpacker.run()
    except LayerError as refused:
        say(json.dumps({"refused": [refused.code, refused.cause]}) + "\n")
    except OSError as error:
        say(json.dumps({"failed": error.errno or 0}) + "\n")
    except MemoryError:
        say(json.dumps({"refused": ["image_too_large", "a layer needs more memory than unpacking may take"]}) + "\n")
    else:
        dropped = {name: getattr(unpacker.dropped, name) for name in Dropped.__dataclass_fields__}
        outcome = {"files": unpacker.files, "bytes": unpacker.source.unpacked, "dropped": dropped}
        say(json.dumps({"done": diff_id, **outcome}) + "\n")
