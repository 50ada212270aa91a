"""`ringfence sandbox cp`: files in and out.

Where a file lands on this machine is decided by the words of the command alone. Names that come out of a sandbox are
used only inside a directory this command has just made, one plain name at a time, never through a link.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import click

from ringfence.cli.groups import examples
from ringfence.cli.options import Shared, server_options
from ringfence.cli.output import ProgramOutput, Screen, size
from ringfence.client import Files, Sandbox
from ringfence.domain.errors import BadRequest, TooLarge
from ringfence.domain.sandbox import ID

MOST_ENTRIES: Final = 100_000
MOST_DEPTH: Final = 64
NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a copy: a path here, or a path in a sandbox."""

    sandbox: str | None
    path: str


def place(word: str) -> Place:
    """Read `ID:path` or a local path."""
    head, colon, rest = word.partition(":")
    return Place(head, rest) if colon and ID.fullmatch(head) else Place(None, word)


@click.command(
    epilog=examples(
        "ringfence sandbox cp data.csv ID:data.csv",
        "ringfence sandbox cp ID:chart.png .",
        "ringfence sandbox cp -r ID:results results",
        "ringfence sandbox cp ID:log.txt - | tail",
    )
)
@click.argument("source")
@click.argument("target")
@click.option("--recursive", "-r", is_flag=True, help="Copy a directory and what is in it.")
@server_options
def cp(shared: Shared, source: str, target: str, recursive: bool) -> None:
    """Copy a file into a sandbox or out of one. One side is ID:PATH, the other a local path, or - for a pipe.

    A directory is copied out only into one that does not exist yet; links and devices in it are left out.
    """
    here, there = place(source), place(target)
    if (here.sandbox is None) == (there.sandbox is None):
        raise click.UsageError("exactly one of SOURCE and TARGET must be in a sandbox, as ID:PATH")
    with shared.client() as client:
        if there.sandbox is not None:
            _in(shared.screen, Sandbox.connect(there.sandbox, client=client).files, here.path, there.path, recursive)
        else:
            files = Sandbox.connect(str(here.sandbox), client=client).files
            _out(shared.screen, files, here.path, there.path, recursive)


def _in(screen: Screen, files: Files, local: str, inside: str, recursive: bool) -> None:
    if local == "-":
        total = files.upload(sys.stdin.buffer, inside).size
    elif recursive:
        total = sum(_tree_in(files, Path(local), PurePosixPath(inside)))
    else:
        name = inside if inside and not inside.endswith("/") else inside + Path(local).name
        if not Path(local).is_file():
            raise click.UsageError(f"{local} is not a file (a directory needs --recursive)")
        total = files.upload(local, name).size
    _report(screen, total, "copied in")


def _tree_in(files: Files, local: Path, inside: PurePosixPath) -> Iterator[int]:
    if not local.is_dir():
        raise click.UsageError(f"{local} is not a directory")
    for folder, _, names in os.walk(local):
        below = inside / PurePosixPath(Path(folder).relative_to(local).as_posix())
        files.mkdir(str(below))
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield files.upload(path, str(below / name)).size


def _out(screen: Screen, files: Files, inside: str, local: str, recursive: bool) -> None:
    if local == "-":
        _to_stdout(files, inside)
        return
    if recursive:
        _report(screen, sum(tree_out(files, inside, Path(local), screen)), "copied out")
        return
    target = Path(local)
    if target.is_dir():
        name = PurePosixPath(inside).name
        if name in {"", ".", ".."}:
            raise click.UsageError(f"{inside!r} names no file")
        target = target / name
    _report(screen, files.download(inside, target), "copied out")


def _to_stdout(files: Files, inside: str) -> None:
    output = ProgramOutput()
    for piece in files.read_pieces(inside):
        output.write("stdout", piece)
    output.close()


def _report(screen: Screen, total: int, what: str) -> None:
    if screen.json:
        screen.data({"size": total})
    else:
        screen.say(f"{size(total)} {what}")


def tree_out(files: Files, inside: str, local: Path, screen: Screen) -> Iterator[int]:
    """Copy a directory out into a new one; yield each file's size. Raises BadRequest when the target exists."""
    try:
        local.mkdir()
    except OSError as error:
        raise BadRequest(
            f"cannot make {local}: {error.strerror}", remediation="name a directory that does not exist yet"
        ) from None
    left = MOST_ENTRIES
    with _held(os.open(local, DIRECTORY)) as top:
        waiting: list[tuple[str, tuple[str, ...]]] = [(inside, ())]
        while waiting:
            path, below = waiting.pop()
            listed = files.list(path)
            left -= len(listed.entries)
            if left < 0 or len(below) > MOST_DEPTH or listed.truncated:
                raise TooLarge(f"{path} holds more than can be copied at once", remediation="pack it with tar inside")
            for entry in listed.entries:
                inner = f"{path.rstrip('/')}/{plain(entry.name)}"
                if entry.type == "dir":
                    waiting.append((inner, (*below, entry.name)))
                elif entry.type == "file":
                    yield _file_out(files, inner, top, below, entry.name)
                else:
                    screen.say(f"left out: {inner} ({entry.type})", style="yellow")


def plain(name: str) -> str:
    """Return a name that is one step down and nothing else. Raises BadRequest for any other."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise BadRequest(f"the sandbox named a file {name!r:.80}", remediation="copy the files you want one by one")
    return name


def _file_out(files: Files, inside: str, top: int, below: tuple[str, ...], name: str) -> int:
    with contextlib.ExitStack() as stack:
        folder = top
        for step in below:
            with contextlib.suppress(FileExistsError):
                os.mkdir(step, dir_fd=folder)
            folder = stack.enter_context(_held(os.open(step, DIRECTORY, dir_fd=folder)))
        file = stack.enter_context(os.fdopen(os.open(name, NEW_FILE, 0o644, dir_fd=folder), "wb"))
        return files.download(inside, file)


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
