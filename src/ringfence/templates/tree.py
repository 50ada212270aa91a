"""A root file system as a tree of files: made harmless, listed, hashed, compared, shared and removed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.domain.errors import PlatformFault
from ringfence.templates import commands

# Mount points of temporary file systems keep the mode every program expects of them.
STICKY: Final = frozenset({"tmp", "var/tmp"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a root: f, d or l; mode; size and content's SHA-256 of a file; target of a link."""

    path: str
    kind: str
    mode: int
    size: int
    detail: str

    def line(self) -> str:
        """Return the entry as one line of a manifest."""
        return json.dumps([self.path, self.kind, f"{self.mode:o}", self.size, self.detail])


def _inside(root: Path, name: str) -> Path:
    """Return root/name, refusing a name whose folder is reached through a link: it could lead out of the root."""
    path = root / name
    if path.parent.resolve() != root.resolve() / path.parent.relative_to(root):
        raise PlatformFault(f"{name} lies behind a link in the template", code="template_build_failed")
    return path


def remove(root: Path, name: str) -> None:
    """Remove root/name if it is there, without following a link."""
    path = _inside(root, name)
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def empty(root: Path, name: str) -> None:
    """Remove what is inside the folder root/name, if it is one; keep the folder."""
    path = root / name
    if path.is_symlink() or not path.is_dir():
        return
    for child in os.listdir(_inside(root, name)):
        remove(root, f"{name}/{child}")


def remove_tree(path: Path, patience: float = 5.0) -> None:
    """Remove a folder and all in it, never crossing into another file system."""
    deadline = time.monotonic() + patience
    while True:
        # Should anything ever be mounted below, its content is not ours to remove.
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=False, capture_output=True)
        if not path.exists():
            return
        if time.monotonic() > deadline:
            raise PlatformFault(
                f"cannot remove {path}", code="template_build_failed", remediation=f"remove {path} by hand"
            )
        # The last processes of a build that was just killed may still have been adding files.
        time.sleep(0.05)


def walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below `root`, folders before their content, in an order that never varies."""
    with os.scandir(root) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


def _plain_mode(name: str, mode: int) -> int:
    if stat.S_ISDIR(mode):
        return 0o1777 if name in STICKY else 0o755
    return 0o755 if mode & 0o111 else 0o644


def _strip(entry: os.DirEntry[str], name: str, owner: int) -> None:
    info = entry.stat(follow_symlinks=False)
    # A hard link may be shared with another template: it is touched only if it is not yet as it should be.
    if owner == 0 and (info.st_uid, info.st_gid) != (0, 0):
        os.chown(entry.path, 0, 0, follow_symlinks=False)
    if entry.is_symlink():
        return
    for attribute in os.listxattr(entry.path, follow_symlinks=False):
        if not attribute.startswith("security.selinux"):
            os.removexattr(entry.path, attribute, follow_symlinks=False)
    wanted = _plain_mode(name, info.st_mode)
    if stat.S_IMODE(info.st_mode) != wanted:
        os.chmod(entry.path, wanted)


def normalise(root: Path) -> None:
    """Leave only folders, plain files and links, all of root's, world-readable, writable by none but root.

    Takes away devices, sockets, set-id bits, file capabilities and every other extended attribute.
    """
    owner = os.geteuid()
    root.chmod(0o755)
    for entry in walk(root):
        if entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
            _strip(entry, os.path.relpath(entry.path, root), owner)
        else:
            os.unlink(entry.path)


def _entry(found: os.DirEntry[str], path: str) -> Entry:
    info = found.stat(follow_symlinks=False)
    mode = stat.S_IMODE(info.st_mode)
    if found.is_symlink():
        return Entry(path, "l", 0o777, 0, os.readlink(found.path))
    if found.is_dir(follow_symlinks=False):
        return Entry(path, "d", mode, 0, "")
    if not stat.S_ISREG(info.st_mode):
        return Entry(path, "?", mode, 0, "")
    with open(found.path, "rb") as file:
        return Entry(path, "f", mode, info.st_size, hashlib.file_digest(file, "sha256").hexdigest())


def manifest(root: Path) -> list[Entry]:
    """List every path of a root with its mode, size and content's hash. Times and owners are not part of it."""
    return [_entry(found, os.path.relpath(found.path, root)) for found in walk(root)]


def manifest_text(entries: list[Entry]) -> str:
    """Return the canonical text of a manifest, whose SHA-256 is the root's digest."""
    return "".join(f"{entry.line()}\n" for entry in entries)


def digest_of(text: str) -> str:
    """Return the digest of a manifest's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def differing(text: str, root: Path) -> list[str]:
    """Compare a root with its manifest and name each path that was changed, removed or added."""
    recorded = set(text.splitlines())
    present = {entry.line() for entry in manifest(root)}
    return sorted({json.loads(line)[0] for line in recorded ^ present})


def share(source: Path, target: Path) -> None:
    """Make `target` a second tree over the same files: fresh folders, hard links to every file.

    Roots are mounted read-only, so a shared file is shared disk and shared page cache, and never a way to write.
    """
    commands.run([*commands.DIES_WITH_US, "cp", "-al", "--", str(source), str(target)], program="cp")


def merge(source: Path, target: Path) -> None:
    """Move everything in `source` into `target`. A file in the way is replaced, never written through."""
    target.mkdir(exist_ok=True)
    for child in sorted(source.iterdir()):
        place = target / child.name
        if child.is_dir() and not child.is_symlink() and place.is_dir() and not place.is_symlink():
            merge(child, place)
        elif place.is_dir() and not place.is_symlink():
            raise PlatformFault(f"{place.name} is a folder in the template already", code="template_build_failed")
        else:
            os.replace(child, place) if not child.is_dir() else _replace_with_folder(child, place)


def _replace_with_folder(folder: Path, place: Path) -> None:
    place.unlink(missing_ok=True)
    folder.rename(place)
