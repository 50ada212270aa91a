"""Jobs that run a root's own Python inside it while it is built: no network, no privilege, nothing of the host."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from ringfence.templates import commands, tree

NOBODY: Final = 65534
DEADLINE: Final = 900.0
FONT_LIST: Final = re.compile(r"fontlist-v[0-9.]{1,20}\.json")
FONT_LIST_BYTES: Final = 4 * 1024 * 1024
LIST_FONTS: Final = """
import os, matplotlib.font_manager
folder = matplotlib.get_cachedir()
for name in sorted(os.listdir(folder)):
    if name.startswith("fontlist"):
        print("|" + name, *("|" + line for line in open(os.path.join(folder, name))), sep="\\n")
"""
# The mounts live in this job's own mount namespace and vanish with it. multiprocessing wants /dev/shm.
ENTER: Final = """
set -e
mount -t tmpfs -o mode=755,size=64m none "$1/dev"
mkdir -m 1777 "$1/dev/shm"
: > "$1/dev/null"
mount --bind /dev/null "$1/dev/null"
mount -t tmpfs -o mode=1777,size=256m none "$1/tmp"
root=$1
shift
exec chroot "$root" /usr/bin/setpriv "$@"
"""


def _drop() -> list[str]:
    """Return how the job sheds its rights: all capabilities, and root itself where there is another user to become."""
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if os.geteuid() == 0:
        rights += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return rights


def run_python(root: Path, arguments: list[str], on_line: commands.OnLine = commands.ignore) -> None:
    """Run `python3 arguments` inside `root` as nobody. Raises CommandError as commands.run does."""
    fence = [*commands.FENCED, "--net", "--ipc", "--uts"]
    if os.geteuid() != 0:
        fence += ["--user", "--map-root-user"]
    clean = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0"]
    argv = [*fence, "sh", "-c", ENTER, "enter", str(root), *_drop(), *clean, "/usr/bin/python3", "-P", "-s", *arguments]
    commands.run(argv, on_line=on_line, deadline=DEADLINE, program="python3 in the template")


def _let_nobody_add(folder: Path) -> None:
    """Give the folders, not the files, to the job's user; `tree.normalise` takes them back."""
    if os.geteuid() != 0:
        return
    for entry in tree.walk(folder):
        if entry.is_dir(follow_symlinks=False):
            os.chown(entry.path, NOBODY, NOBODY)
    os.chown(folder, NOBODY, NOBODY)


def compile_modules(root: Path, folder: str) -> None:
    """Compile the modules in root/folder, so that no sandbox ever has to.

    A wheel's tests are left out: nobody imports them, and they are a third of the work.
    """
    _let_nobody_add(root / folder)
    # These compiled files never look at their source: the root cannot change, and file times must not matter.
    how = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-x", r"/tests?/"]
    try:
        run_python(root, [*how, f"/{folder}"])
    except commands.CommandError as failed:
        # Status 1: some file is not valid Python, as the code templates a few wheels carry; it stays uncompiled.
        if failed.status != 1:
            raise


def list_fonts(root: Path) -> tuple[str, str] | None:
    """Have the root's Matplotlib list its fonts once; return its cache file's name and text, None if it made none."""
    lines: list[str] = []
    run_python(root, ["-c", LIST_FONTS], lines.append)
    marked = [line[1:] for line in lines if line.startswith("|")]
    text = "\n".join(marked[1:])
    # What ran in there was downloaded: its answer is checked like anyone's.
    if not marked or not FONT_LIST.fullmatch(marked[0]) or len(text) > FONT_LIST_BYTES:
        return None
    return marked[0], text
