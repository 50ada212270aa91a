"""A file system that is a dictionary: absolute path to file or directory."""

from __future__ import annotations

import base64
import json
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

HOME: Final = "/home/user"
_DIRECTORIES: Final = ("/", "/home", HOME, "/tmp", "/etc")  # noqa: S108 - names in a dictionary
_KEPT: Final = (f"{HOME}/", "/tmp/")  # noqa: S108 - likewise
Listener = Callable[[str, str], None]


class TreeError(Exception):
    """What a request ends with: a code of the agent's, and a cause."""

    def __init__(self, code: str, cause: str) -> None:
        super().__init__(cause)
        self.code = code


@dataclass(slots=True)
class Node:
    """A file's bytes, or a directory when there are none."""

    data: bytearray | None = None
    mode: int = 0o644
    mtime: float = field(default_factory=time.time)


class Tree:
    """Files and directories, bounded in bytes like a sandbox's scratch."""

    def __init__(self, most_bytes: int) -> None:
        self._nodes = {name: Node(mode=0o755) for name in _DIRECTORIES}
        self._most = most_bytes
        self.listeners: list[Listener] = []

    @property
    def full(self) -> bool:
        """Whether the last byte allowed is used."""
        return self.used() >= self._most

    def used(self) -> int:
        """Bytes of all files."""
        return sum(len(node.data) for node in self._nodes.values() if node.data is not None)

    def _tell(self, what: str, path: str) -> None:
        for listener in list(self.listeners):
            listener(what, path)

    def at(self, path: str, cwd: str = HOME) -> str:
        """The absolute path. Raises TreeError for what is not a path."""
        if not isinstance(path, str) or not path or "\0" in path:
            raise TreeError("bad_request", "path must be a non-empty text without NUL")
        return posixpath.normpath(posixpath.join(cwd, path))

    def find(self, path: str) -> Node:
        """What stands there. Raises TreeError."""
        node = self._nodes.get(path)
        if node is None:
            raise TreeError("not_found", "No such file or directory")
        return node

    def is_dir(self, path: str) -> bool:
        """Whether a directory stands there."""
        return path in self._nodes and self._nodes[path].data is None

    def entry(self, path: str) -> dict[str, Any]:
        """A row as the agent's `stat` and `ls` show it."""
        node = self.find(path)
        data = node.data
        return {
            "name": posixpath.basename(path) or path,
            "path": path,
            "type": "dir" if data is None else "file",
            "size": 0 if data is None else len(data),
            "mode": node.mode,
            "uid": 1000,
            "gid": 1000,
            "mtime": node.mtime,
        }

    def listing(self, top: str, depth: int) -> list[dict[str, Any]]:
        """What is below a directory, sorted by path."""
        if self.find(top).data is not None:
            raise TreeError("bad_request", "Not a directory")
        prefix = top.rstrip("/") + "/"
        below = [p for p in self._nodes if p.startswith(prefix) and p != "/"]
        return [self.entry(p) for p in sorted(below) if p[len(prefix) :].count("/") < depth]

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        data = self.find(path).data
        if data is None:
            raise TreeError("not_a_file", "only regular files have contents to send or take")
        return bytes(data)

    def mkdir(self, path: str, *, parents: bool) -> None:
        """Make a directory, and with `parents` those above it."""
        if path in self._nodes:
            if parents and self.is_dir(path):
                return
            raise TreeError("exists", "File exists")
        above = posixpath.dirname(path)
        if above not in self._nodes and parents:
            self.mkdir(above, parents=True)
        if self.find(above).data is not None:
            raise TreeError("bad_request", "Not a directory")
        self._nodes[path] = Node(mode=0o755)
        self._tell("create", path)

    def write(self, path: str, data: bytes, *, append: bool = False, parents: bool = True) -> None:
        """Put a file there, or add to it. Raises TreeError, also when the scratch is full."""
        above = posixpath.dirname(path)
        if parents and above not in self._nodes:
            self.mkdir(above, parents=True)
        if not self.is_dir(above):
            raise TreeError("not_found", "No such file or directory")
        if self.is_dir(path):
            raise TreeError("not_a_file", "a directory stands there")
        old = self._nodes.get(path)
        kept = bytes(old.data or b"") if old is not None else b""
        whole = kept + data if append else data
        if self.used() - len(kept) + len(whole) > self._most:
            raise TreeError("no_space", "No space left on device")
        self._nodes[path] = Node(bytearray(whole), old.mode if old is not None else 0o644)
        self._tell("write" if old is not None else "create", path)

    def chmod(self, path: str, mode: int) -> None:
        """Change the permission bits, which nothing here looks at."""
        self.find(path).mode = mode
        self._tell("chmod", path)

    def move(self, source: str, target: str) -> None:
        """Rename a file, or a directory with all below it."""
        node = self.find(source)
        if self.is_dir(target) or not self.is_dir(posixpath.dirname(target)):
            raise TreeError("exists" if self.is_dir(target) else "not_found", "cannot be moved there")
        moved = {p: n for p, n in self._nodes.items() if p.startswith(source + "/")}
        for path, inner in moved.items():
            self._nodes[target + path[len(source) :]] = inner
            del self._nodes[path]
        self._nodes[target] = node
        del self._nodes[source]
        self._tell("rename", target)

    def dump(self) -> bytes:
        """What is below the kept places, as bytes that load() takes."""
        kept = {path: node for path, node in self._nodes.items() if path.startswith(_KEPT)}
        rows = {
            path: [None if node.data is None else base64.b64encode(node.data).decode(), node.mode, node.mtime]
            for path, node in kept.items()
        }
        return json.dumps(rows).encode()

    def load(self, data: bytes) -> int:
        """Put back what dump() gave, in place of what is there; how many entries. Raises TreeError."""
        try:
            rows = json.loads(data)
            nodes = {
                path: Node(None if text is None else bytearray(base64.b64decode(text)), mode, mtime)
                for path, (text, mode, mtime) in rows.items()
            }
        except (ValueError, TypeError, AttributeError):
            raise TreeError("bad_request", "this is no archive of a sandbox's files") from None
        self._nodes = {path: node for path, node in self._nodes.items() if not path.startswith(_KEPT)} | nodes
        return len(nodes)

    def remove(self, path: str, *, recursive: bool) -> None:
        """Remove a file or an empty directory; with `recursive`, all below it too."""
        self.find(path)
        below = [p for p in self._nodes if p.startswith(path + "/")]
        if below and not recursive:
            raise TreeError("exists", "Directory not empty")
        for inner in [*below, path]:
            del self._nodes[inner]
            self._tell("remove", inner)
