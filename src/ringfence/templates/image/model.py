"""An image's merged files as a tree in memory: layers applied, links followed as the image would, nothing touched.

Here a link that leads to the host's /etc leads to the image's own, since there is no other: the names of an image
meet a file system only when the finished tree is written, into a fresh folder, from the top down (see write.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ringfence.templates.image.entries import DEPTH, OPAQUE, PATH_BYTES, WHITEOUT, Entry, plain_parts
from ringfence.templates.image.tar import LayerError

HOPS: Final = 40
# A crafted image could make every one of its paths a walk through forty long links.
STEPS: Final = 12_000_000


@dataclass(slots=True)
class Folder:
    """A folder and what is in it."""

    children: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a layer; two names of one file are one object."""

    layer: str
    number: int
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link, by its text."""

    target: str


@dataclass(frozen=True, slots=True)
class Text:
    """A small file of our own."""

    content: bytes
    executable: bool = False


Node = Folder | File | Link | Text


class Absent(Exception):
    """There is nothing of that name."""


def shown(path: str) -> str:
    """A path as people write it."""
    return repr("/" + path)[:220]


class Root:
    """The tree, from its top. `most` is how many names it may have."""

    def __init__(self, most: int) -> None:
        self.top = Folder()
        self._most = most
        self._made = 0
        self._steps = 0

    def apply(self, layer: str, entries: list[Entry]) -> None:
        """Lay a layer over what is there. Raises LayerError, with the path, for what cannot be."""
        # A removal concerns the layers below, wherever in its own layer it stands.
        for entry in entries:
            if entry.kind == "gone":
                self._remove(entry)
        for entry in entries:
            if entry.kind != "gone":
                self._add(layer, entry)

    def folder(self, path: str, *, create: bool = False) -> Folder:
        """The folder at `path`, through links. Raises Absent, and LayerError for a loop or a file in the way."""
        return self._walk(path, plain_parts(path), create=create)

    def find(self, path: str) -> tuple[str, Node]:
        """What `path` is in the end, through links: its own path and its node. Raises Absent."""
        for _ in range(HOPS):
            parts = plain_parts(path)
            if not parts:
                return "", self.top
            stack = self._stack(path, parts[:-1], create=False)
            node = stack[-1][1].children.get(parts[-1])
            names = [name for name, _ in stack[1:]] + [parts[-1]]
            if node is None:
                raise Absent
            if not isinstance(node, Link):
                return "/".join(names), node
            path = _joined(names[:-1], node.target)
        raise Absent

    def lookup(self, path: str) -> Node | None:
        """What stands at `path` itself, with no link followed anywhere; None where there is nothing."""
        node: Node = self.top
        for part in plain_parts(path):
            if not isinstance(node, Folder) or part not in node.children:
                return None
            node = node.children[part]
        return node

    def put(self, path: str, node: Node) -> None:
        """Set a name of our own, at a path that has been found to have no links in it."""
        parts = plain_parts(path)
        self._walk(path, parts[:-1], create=True).children[parts[-1]] = node

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every name with its path, folders before what is in them."""
        waiting: list[tuple[str, Folder]] = [("", self.top)]
        while waiting:
            place, folder = waiting.pop()
            for name in sorted(folder.children):
                node = folder.children[name]
                path = f"{place}/{name}" if place else name
                yield path, node
                if isinstance(node, Folder):
                    waiting.append((path, node))

    # -- one entry ------------------------------------------------------------------------------------------

    def _remove(self, entry: Entry) -> None:
        parts = plain_parts(entry.path)
        try:
            parent = self._walk(entry.path, parts[:-1], create=False)
        except Absent:
            return
        if parts[-1] == OPAQUE:
            parent.children.clear()
        else:
            parent.children.pop(parts[-1].removeprefix(WHITEOUT), None)

    def _add(self, layer: str, entry: Entry) -> None:
        parts = plain_parts(entry.path)
        if not parts:
            return
        parent = self._walk(entry.path, parts[:-1], create=True)
        there = parent.children.get(parts[-1])
        if entry.kind == "folder":
            if not isinstance(there, Folder):
                parent.children[parts[-1]] = self._new_folder()
        elif entry.kind == "link":
            parent.children[parts[-1]] = Link(entry.target)
        elif entry.kind == "hard":
            parent.children[parts[-1]] = self._same(entry)
        else:
            parent.children[parts[-1]] = File(layer, entry.number, entry.size, entry.executable)

    def _same(self, entry: Entry) -> Node:
        """The file that a hard link names: one of the image, or nothing."""
        parts = plain_parts(entry.target)
        try:
            node = self._walk(entry.target, parts[:-1], create=False).children.get(parts[-1]) if parts else None
        except Absent:
            node = None
        if node is None or isinstance(node, Folder):
            raise LayerError(
                "image_hard_link_out",
                f"the hard link {shown(entry.path)} names {shown(entry.target)}, which is no file of the image",
            )
        return node

    # -- paths ----------------------------------------------------------------------------------------------

    def _new_folder(self) -> Folder:
        self._made += 1
        if self._made > self._most:
            raise LayerError("image_too_many_entries", f"the image has more than {self._most} folders")
        return Folder()

    def _walk(self, path: str, parts: tuple[str, ...], *, create: bool) -> Folder:
        return self._stack(path, parts, create=create)[-1][1]

    def _stack(self, path: str, parts: tuple[str, ...], *, create: bool) -> list[tuple[str, Folder]]:
        """The folders on the way, the top first. A link is walked from where it stands, and never past the top."""
        stack: list[tuple[str, Folder]] = [("", self.top)]
        pending, hops = list(reversed(parts)), 0
        while pending:
            self._count_step()
            part = pending.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                del stack[max(1, len(stack) - 1) :]
                continue
            child = stack[-1][1].children.get(part)
            if isinstance(child, Link):
                hops += 1
                if hops > HOPS:
                    raise LayerError("image_link_loop", f"links lead in circles on the way to {shown(path)}")
                if child.target.startswith("/"):
                    del stack[1:]
                pending.extend(reversed(child.target.split("/")))
                continue
            stack.append((part, self._enter(path, stack, part, child, create=create)))
        return stack

    def _enter(
        self, path: str, stack: list[tuple[str, Folder]], part: str, child: Node | None, *, create: bool
    ) -> Folder:
        if isinstance(child, Folder):
            return child
        if child is not None:
            if not create:
                raise Absent
            raise LayerError("image_path_below_file", f"the path {shown(path)} lies below a file")
        if not create:
            raise Absent
        if len(stack) > DEPTH:
            raise LayerError("image_name_too_long", f"the path {shown(path)} is too deep")
        folder = self._new_folder()
        stack[-1][1].children[part] = folder
        return folder

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise LayerError("image_too_many_links", "the image's paths lead through too many links")


def _joined(folder: list[str], target: str) -> str:
    """A link's text as a path from the top, `..` resolved by name; enough to look for a program."""
    names = [] if target.startswith("/") else list(folder)
    for part in target.split("/"):
        if part == "..":
            del names[-1:]
        elif part not in {"", "."}:
            names.append(part)
    return "/".join(names)


def check_paths(root: Root) -> int:
    """Raise LayerError for a path longer than any tool could open; give how many names there are."""
    count = 0
    for path, _ in root.walk():
        count += 1
        if path.count("/") > DEPTH or len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES:
            raise LayerError("image_name_too_long", f"the path {shown(path)} is too long")
    return count
