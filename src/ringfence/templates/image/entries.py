"""What a layer holds, as the job that unpacks it tells it and as the store keeps it: a line an entry, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ringfence.templates.image.tar import LayerError, damaged

PART_BYTES: Final = 255
PATH_BYTES: Final = 1024
DEPTH: Final = 100
TARGET_BYTES: Final = 4095
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
_KINDS: Final = frozenset({"file", "folder", "link", "hard", "gone"})
_SHAPES: Final = (str, str, str, int, int, bool)


@dataclass(frozen=True, slots=True)
class Entry:
    """One change a layer makes: a file (by its number among the layer's files), a folder, a link, or a removal.

    `target` is what a link leads to, and of a file the SHA-256 of what is in it.
    """

    kind: str
    path: str
    target: str = ""
    number: int = 0
    size: int = 0
    executable: bool = False

    def line(self) -> str:
        """The entry as one line of text."""
        return json.dumps([self.kind, self.path, self.target, self.number, self.size, self.executable]) + "\n"


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def plain_parts(path: str) -> tuple[str, ...]:
    """Split a path of a layer into names, from the root on. Raises LayerError for one that climbs, or is too long."""
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    if ".." in parts:
        raise LayerError("image_path_escapes", f"a layer names a path that climbs out of the root: {path!r:.200}")
    if "\0" in path:
        raise damaged(f"a path has a zero byte: {path!r:.200}")
    if len(parts) > DEPTH or _bytes(path) > PATH_BYTES or any(_bytes(part) > PART_BYTES for part in parts):
        raise LayerError("image_name_too_long", f"a layer has a path that is too long: {path!r:.200}")
    return parts


def check_target(path: str, target: str) -> None:
    """Raise LayerError for a link's text that no file system would keep."""
    if not target or "\0" in target or _bytes(target) > TARGET_BYTES:
        raise damaged(f"the link {path!r:.200} has no usable target")


def entry_from(line: bytes) -> Entry:
    """Read one line back. Raises LayerError: the job that wrote it had read a stranger's bytes."""
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise damaged("its list of entries cannot be read") from None
    shaped = isinstance(values, list) and len(values) == len(_SHAPES)
    if not shaped or not all(type(value) is shape for value, shape in zip(values, _SHAPES, strict=True)):
        raise damaged("its list of entries cannot be read")
    entry = Entry(*values)
    if entry.kind not in _KINDS or entry.number < 0 or entry.size < 0:
        raise damaged("its list of entries cannot be read")
    try:
        plain_parts(entry.path)
        if entry.kind in {"link", "hard"}:
            check_target(entry.path, entry.target)
    except UnicodeEncodeError:
        raise damaged("its list of entries cannot be read") from None
    return entry
