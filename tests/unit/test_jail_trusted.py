"""A jail of files that a tenant made: until the fences stand, nothing of them runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.domain.sandbox import new_id
from ringfence.runtimes.base import StartSpec
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.templates.catalog import Catalog
from tests.support.subjects import SMALL, TEMPLATES

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (TEMPLATES / "index" / "base.json").exists(),
        reason="needs root and the template `base`",
    ),
]


@contextlib.asynccontextmanager
async def jails() -> AsyncIterator[Jail]:
    """A jail of one's own, gone in the end."""
    jail = Jail(detect(f"test-{uuid.uuid4().hex[:12]}", root=True), privileged=True)
    try:
        yield jail
    finally:
        await jail.close()


def inside(pid: int, name: str, write: str = "") -> str:
    """A file of a sandbox's, or of its own in /proc; changed first if told to."""
    place = Path(f"/proc/{pid}/root") / name if not name.startswith("..") else Path(f"/proc/{pid}") / name[3:]
    if write:
        place.write_text(write)
    return place.read_text()


@pytest.fixture
def hostile(tmp_path: Path) -> StartSpec:
    """Files whose Python ends at once, and whose variables name a library to be loaded before any other."""
    base = Catalog(TEMPLATES).read("base")
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", str(base.root), str(root)], check=True)
    for python in root.glob("usr/bin/python3*"):
        python.unlink()
    (root / "usr/bin/python3").write_text("#!/bin/sh\nexit 1\n")
    (root / "usr/bin/python3").chmod(0o755)
    env = {"LD_PRELOAD": "/opt/evil.so", "LD_LIBRARY_PATH": "/run/ringfence/stage/opt", "PYTHONHOME": "/opt", "A": "1"}
    template = dataclasses.replace(base.template, name="hostile", env=tuple(sorted(env.items())))
    return StartSpec(new_id("s"), "a", template, root, "h" * 64, SMALL, one_shot=False, trusted_root=base.root)


async def test_a_tenant_s_interpreter_is_never_the_zygote_s(hostile: StartSpec) -> None:
    """With the files of ours it starts, and its sandbox shows the tenant's; without them it cannot."""
    async with jails() as jail:
        started = await jail.start(hostile)
        shown = inside(started.pid, "usr/bin/python3")
        await jail.stop(hostile.id)
        assert shown == "#!/bin/sh\nexit 1\n"
        with pytest.raises(SandboxRefused):
            await jail.start(dataclasses.replace(hostile, id=new_id("s"), tenant="b", trusted_root=None))


async def test_a_build_s_root_is_its_own_copy(hostile: StartSpec) -> None:
    """It may be changed, and what it was copied from is as before; all fences stand but the read-only root."""
    async with jails() as jail:
        limits = dataclasses.replace(SMALL, scratch_bytes=512 << 20, memory_bytes=512 << 20)
        spec = dataclasses.replace(hostile, writable=True, limits=limits)
        started = await jail.start(spec)
        inside(started.pid, "etc/hostname", write="changed")
        mounts = inside(started.pid, "../mounts")
        await jail.stop(spec.id)
        assert (hostile.template_root / "etc/hostname").read_text() != "changed"
        assert str(hostile.template_root) not in mounts
        assert "read_only_root" not in started.layers
        assert {"seccomp", "no_new_privileges", "capabilities", "user_namespace"} <= set(started.layers)
