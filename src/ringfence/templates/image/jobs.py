"""Start a confined job: how the builder hands over a folder and hears what came of it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ringfence.domain.errors import PlatformFault
from ringfence.templates import tree

# Below every range the jail hands out; nothing on a machine belongs to it.
JOB_ID: Final = 0x1FFF_F000
PACKAGES: Final = Path(__file__).parents[3]
BOOT: Final = (
    "import sys; sys.path.insert(0, {path!r}); from ringfence.templates.image.confine import main; sys.exit(main())"
)
ENDING_SECONDS: Final = 10.0  # for a killed process to be gone on the most crowded machine
WORDS_BYTES: Final = 2000
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _ids() -> dict[str, Any]:
    if os.geteuid() == 0:
        return {"privileged": True, "uid": JOB_ID, "gid": JOB_ID}
    return {"privileged": False, "uid": os.geteuid(), "gid": os.getegid()}


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A fresh folder that a job may write to; removed with all in it in the end."""
    path.mkdir(mode=0o700)
    try:
        give(path)
        yield path
    finally:
        tree.remove_tree(path)


def give(path: Path) -> None:
    """Make a fresh file or folder the job's own."""
    if os.geteuid() == 0:
        os.chown(path, JOB_ID, JOB_ID, follow_symlinks=False)


def broken(words: str) -> PlatformFault | None:
    """What kept a job from being confined, if that is what it complains about; then it has read nothing."""
    if "confine: " not in words:
        return None
    return PlatformFault(
        f"a job without rights could not be started: {words.partition('confine: ')[2].strip():.300}",
        code="image_job_refused",
        remediation="images need user namespaces: run: ringfence doctor",
    )


def start(
    job: str, place: Path, *, rlimits: dict[str, int], stdin: int = subprocess.DEVNULL, pass_fds: Sequence[int] = (),
    **more: Any,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a job on its folder. Its output is a pipe, and so is what it complains about."""
    config = {"job": job, "folder": str(place), "rlimits": rlimits, **_ids(), **more}
    argv = [sys.executable, "-I", "-B", "-c", BOOT.format(path=str(PACKAGES)), json.dumps(config)]
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        env={"PATH": PATH},
        cwd="/",
    )


def end(process: subprocess.Popen[bytes]) -> str:
    """Kill a job and wait until nothing of it holds its pipes any more; what it has complained about.

    The process that was started is not the one that works: that one dies of its parent's death, a moment later.
    """
    process.kill()
    words = bytearray()
    deadline = time.monotonic() + ENDING_SECONDS
    with selectors.DefaultSelector() as ready:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map() and (events := ready.select(max(0.0, deadline - time.monotonic()))):
            for key, _ in events:
                data = os.read(key.fd, 65536)
                if not data:
                    ready.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    words += data[: WORDS_BYTES - len(words)]
    process.wait(ENDING_SECONDS)
    return words.decode("utf-8", "replace").strip()[:400]
