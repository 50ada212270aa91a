"""Make an image's tree a sandbox's root, or refuse it: no link where we mount, our user, our names, our mount points.

A link at such a place is how an image has its runtime mount, or write, somewhere else (attack 16 and its kin).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from typing import Final

from ringfence.templates import furnish
from ringfence.templates.image.model import Absent, File, Folder, Link, Root, Text, shown
from ringfence.templates.image.tar import LayerError

# Whatever is mounted, bound or written by any runtime, or lies on the way there.
FOLDERS: Final = (
    "dev", "dev/mqueue", "dev/pts", "dev/shm", "etc", "home", "home/user", "mnt", "proc", "run", "run/ringfence",
    "sys", "tmp", "var", "var/tmp",
)  # fmt: skip
FILES: Final = (
    "dev/console", "dev/full", "dev/null", "dev/random", "dev/tty", "dev/urandom", "dev/zero",
    "etc/group", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/passwd", "etc/resolv.conf",
)  # fmt: skip
# The kernel's own: whatever an image has there, it is not the kernel's.
WITHOUT_LINKS: Final = ("proc", "sys")
# Mounted over in every sandbox, so what an image has there would never be seen.
EMPTIED: Final = ("dev", "proc", "run", "sys", "tmp", "var/tmp", "etc/skel")
REMOVED: Final = ("etc/gshadow", "etc/gshadow-", "etc/shadow", "etc/shadow-")
TEXT_BYTES: Final = 1024 * 1024
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OLDEST_PYTHON: Final = 8
_PYTHON: Final = re.compile(r"python3\.([0-9]{1,3})")

Read = Callable[[File], bytes]


def _refuse(path: str, what: str) -> LayerError:
    return LayerError("image_unsafe_path", f"the image has {what} at {shown(path)}, where every sandbox has its own")


def check(root: Root) -> None:
    """Raise LayerError, with the path, for a link or file where a folder is mounted, or the other way round."""
    for path in FOLDERS:
        node = root.lookup(path)
        if isinstance(node, Link):
            raise _refuse(path, "a symbolic link")
        if node is not None and not isinstance(node, Folder):
            raise _refuse(path, "a file")
    for path in FILES:
        node = root.lookup(path)
        if isinstance(node, Link):
            raise _refuse(path, "a symbolic link")
        if isinstance(node, Folder) and node.children:
            raise _refuse(path, "a folder")
    for place in WITHOUT_LINKS:
        folder = root.lookup(place)
        for name, node in folder.children.items() if isinstance(folder, Folder) else ():
            if isinstance(node, Link):
                raise _refuse(f"{place}/{name}", "a symbolic link")


def prepare(root: Root, workdir: str, read: Read) -> None:
    """Furnish a checked tree as every template's root is. Raises LayerError for a working directory that cannot be."""
    for path in EMPTIED:
        node = root.lookup(path)
        if isinstance(node, Folder):
            node.children.clear()
    etc = root.folder("etc", create=True)
    for path in REMOVED:
        etc.children.pop(posixpath.basename(path), None)
    for path in furnish.MOUNT_POINTS:
        root.folder(path, create=True)
    root.folder(workdir, create=True)
    user = f"{furnish.USER}:x:{furnish.UID}:{furnish.UID}:{furnish.USER}:/home/{furnish.USER}:/bin/sh"
    _add_line(root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh", user, read)
    _add_line(root, "etc/group", "root:x:0:", f"{furnish.USER}:x:{furnish.UID}:", read)
    for path in ("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id"):
        root.put(path, Text(furnish.TEXTS[path].encode()))


def _add_line(root: Root, path: str, first: str, line: str, read: Read) -> None:
    """Enter our user into one of the image's lists, which begins with root where the image has none."""
    node = root.lookup(path)
    if isinstance(node, File) and node.size > TEXT_BYTES:
        raise LayerError("image_too_large", f"the image has a list larger than 1 MiB at {shown(path)}")
    text = read(node) if isinstance(node, File) else first.encode() + b"\n"
    name = line.encode().partition(b":")[0]
    kept = [old for old in text.split(b"\n") if old and old.partition(b":")[0] != name]
    root.put(path, Text(b"\n".join([*kept, line.encode(), b""])))


def shell_in(root: Root) -> str:
    """The tree's shell, bash before any other; empty when there is none."""
    return next((f"/{path}" for path in ("bin/bash", "bin/sh") if _is_program(root, path)), "")


def _is_program(root: Root, path: str) -> bool:
    try:
        node = root.find(path)[1]
    except (Absent, LayerError):
        return False
    return isinstance(node, File) and node.executable


def python_in(root: Root, search: str) -> str:
    """The path of a Python 3.8 or newer in the tree, with its library beside it; empty when there is none."""
    folders = [folder for folder in f"{search}:{PATH}".split(":") if folder.startswith("/")]
    for name in ("python3", "python"):
        for folder in dict.fromkeys(folders[:64]):
            path = posixpath.normpath(posixpath.join(folder, name))
            if _is_python(root, path):
                return path
    return ""


def _is_python(root: Root, path: str) -> bool:
    try:
        place, node = root.find(path.lstrip("/"))
    except (Absent, LayerError):
        return False
    if not isinstance(node, File) or not node.executable:
        return False
    named = _PYTHON.fullmatch(posixpath.basename(place))
    prefix = posixpath.dirname(posixpath.dirname(place))
    versions = {int(found[1]) for found in map(_PYTHON.fullmatch, _libraries(root, prefix)) if found}
    if named:
        versions &= {int(named[1])}
    return any(version >= OLDEST_PYTHON for version in versions)


def _libraries(root: Root, prefix: str) -> list[str]:
    """Names of folders in PREFIX/lib that hold a standard library."""
    found = []
    for lib in ("lib", "lib64"):
        try:
            folder = root.folder(os.path.join(prefix, lib))
        except (Absent, LayerError):
            continue
        found += [
            name for name, node in folder.children.items() if isinstance(node, Folder) and "os.py" in node.children
        ]
    return found
