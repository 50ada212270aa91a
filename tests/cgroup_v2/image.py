"""Make what the guest boots: Debian's own kernel and a minimal Debian, cached; and on top of it, this checkout."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.cgroup_v2.archive import Archive

PACKAGES = "python3,util-linux,iproute2"
CHECKOUT = Path(__file__).resolve().parents[2]
HOME = "ringfence"
NOT_SOURCE = frozenset({".git", ".venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
PYTHON_PATH = f"{HOME}-python"

# In the chroot, so that the kernel is of the guest's release and not of whatever this machine runs.
FETCH_KERNEL = """
set -e
cd "$1/root"
package=$(chroot "$1" apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/.*Depends: //p')
chroot "$1" sh -c "cd /root && apt-get -q download $package"
dpkg-deb -x linux-image-*.deb kernel
"""
# The first process. The kernel unpacks the archive as its root of roots, which pivot_root(2) cannot leave: so the
# guest lives in a bind mount of it.
INIT = """#!/bin/sh
mount --rbind / /mnt && cd /mnt && mount --move . / && exec chroot . /{home}/start
"""
START = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /tmp /run; do mount -t tmpfs tmpfs $place; done
ip link set lo up
hostname guest
uname -sr
stty -F /dev/console cols 120 2>/dev/null
cd /{home}
export PYTHONPATH=/{home}/src:/{home}:/{python} PYTHONDONTWRITEBYTECODE=1 RINGFENCE_GUEST=cgroup_v2 PY_COLORS=0
python3 -m pytest -p no:cacheprovider -o timeout={patience} {arguments}
echo "{mark} $?"
# Whoever reads that ends the machine; nobody does when the serial line is broken.
sleep 10
echo b > /proc/sysrq-trigger
"""


def base(cache: Path, suite: str) -> tuple[Path, Path]:
    """The kernel and the minimal Debian as an archive, from the cache or made now (about a minute)."""
    recipe = hashlib.sha256(f"{suite} {PACKAGES} {FETCH_KERNEL}".encode()).hexdigest()[:12]
    made = cache / f"{suite}-{recipe}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _build(Path(work), suite)
            ready = Path(work) / "ready"
            # Whole or not at all: an interrupted build leaves nothing that looks finished.
            ready.rename(made)
    return made / "vmlinuz", made / "base.cpio"


def _build(work: Path, suite: str) -> None:
    ready = work / "ready"
    ready.mkdir()
    fetch = work / "fetch-kernel"
    fetch.write_text(f"#!/bin/sh{FETCH_KERNEL}")
    fetch.chmod(0o755)
    hooks = [str(fetch), f"cp \"$1\"/root/kernel/boot/vmlinuz-* '{ready}/vmlinuz'", 'rm -rf "$1"/root/*']
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "locale", "man", "info")]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *excluded]
    command += [*(f"--customize-hook={hook}" for hook in hooks), suite, str(work / "base.tar")]
    subprocess.run(command, check=True)
    with (ready / "base.cpio").open("wb") as file:
        archive = Archive(file)
        archive.tar(work / "base.tar")
        archive.close()


def needed(distributions: Iterable[str]) -> set[str]:
    """These distributions and all they need on this Python, by name."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        # A marker (;) means: only for an old Python, another system, or an extra.
        plain = (each for each in importlib.metadata.requires(name) or [] if ";" not in each)
        waiting.extend(re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in plain)
    return found


def add_distributions(archive: Archive, distributions: Iterable[str]) -> None:
    """Copy installed packages, file by file, to where the guest's Python looks."""
    archive.directory(PYTHON_PATH)
    for name in sorted(needed(distributions)):
        for file in importlib.metadata.files(name) or []:
            source = Path(str(file.locate()))
            if ".." in file.parts or source.suffix == ".pyc" or not source.is_file():
                continue
            archive.directory(f"{PYTHON_PATH}/{file.parent}")
            archive.add(f"{PYTHON_PATH}/{file}", source.stat().st_mode, source.read_bytes())


def boot_image(
    target: Path,
    base_image: Path,
    *,
    arguments: Sequence[str],
    distributions: Sequence[str],
    extra: Mapping[str, Path],
    mark: str,
    patience: int,
) -> None:
    """Write the archive to boot: the base, the checkout, the packages, the extra directories, and what to run."""
    quoted = " ".join("'" + argument.replace("'", "'\\''") + "'" for argument in arguments)
    words = {"home": HOME, "python": PYTHON_PATH, "arguments": quoted, "mark": mark, "patience": patience}
    with target.open("wb") as file:
        with base_image.open("rb") as start:
            shutil.copyfileobj(start, file)
        archive = Archive(file)
        archive.tree(CHECKOUT, HOME, NOT_SOURCE)
        add_distributions(archive, distributions)
        for where, source in extra.items():
            archive.tree(source, where.strip("/"))
        archive.add("init", 0o100755, INIT.format(**words).encode())
        archive.add(f"{HOME}/start", 0o100755, START.format(**words).encode())
        archive.close()


def cache_directory() -> Path:
    """Where the base is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringfence" / "cgroup_v2"
