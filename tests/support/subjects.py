"""The runtimes that the conformance suite is run on: how to open each, what it needs, and where it may differ."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringfence.domain.limits import MIB, Limits
from ringfence.domain.sandbox import new_id
from ringfence.domain.template import Template
from ringfence.runtimes.base import Runtime, StartSpec
from ringfence.runtimes.fake import Fake
from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.runtime import Jail
from ringfence.runtimes.oci.carried import Carried
from ringfence.runtimes.oci.runtime import Oci
from ringfence.runtimes.oci.versions import choose, installed, lacking
from ringfence.templates.catalog import Catalog

TEMPLATES = Path(os.environ.get("RINGFENCE_TEMPLATES", "/var/lib/ringfence/templates"))
SMALL = Limits(memory_bytes=128 * MIB, cpus=2.0, scratch_bytes=32 * MIB, processes=32, wall_seconds=60)


@dataclass(frozen=True)
class Subject:
    """One runtime under test. What differs between runtimes is said here, and nowhere in the tests."""

    name: str
    open: Callable[[], Runtime]
    missing: Callable[[], str]  # why it cannot be tested here; empty when it can
    template: Callable[[], tuple[Template, Path, str]]
    real: bool = True  # a kernel runs its programs: any Python, any command, every signal
    fill_memory: str = "tail /dev/zero"
    memory_ends: str = "program"  # what dies of too much memory: the program alone, or the whole "sandbox"
    echo_server: str = (
        'python3 -c \'import socket;s=socket.create_server(("127.0.0.1",7000));print("listening",flush=True)\n'
        "while 1:\n c=s.accept()[0]\n while d:=c.recv(65536): c.sendall(d)\n c.close()'"
    )

    def spec(self, tenant: str = "tenant-a", limits: Limits = SMALL) -> StartSpec:
        """A fresh order for a sandbox."""
        template, root, digest = self.template()
        return StartSpec(new_id("s"), tenant, template, root, digest, limits)


def _jail() -> Runtime:
    privileged = os.geteuid() == 0
    groups = detect(f"test-{uuid.uuid4().hex[:12]}", root=privileged)
    return Jail(groups, privileged=privileged, compiled=Carried(TEMPLATES).compiled)


def _jail_missing() -> str:
    if sys.platform != "linux":
        return "needs Linux"
    return "" if (TEMPLATES / "index" / "base.json").exists() else f"no template `base` is built in {TEMPLATES}"


def _oci(isolation: str) -> Runtime:
    tool = choose(isolation, installed())
    assert tool is not None
    return Oci(tool, detect(f"test-{uuid.uuid4().hex[:12]}", root=True), Carried(TEMPLATES))


def _oci_missing(isolation: str) -> str:
    if os.geteuid() != 0:
        return "needs root"
    return _jail_missing() or lacking(isolation, installed())


def _base() -> tuple[Template, Path, str]:
    built = Catalog(TEMPLATES).read("base")
    return built.template, built.root, built.digest


SUBJECTS = (
    Subject(
        name="fake",
        open=Fake,
        missing=lambda: "",
        template=lambda: (Template(name="base"), Path("/nowhere"), "0" * 64),
        real=False,
        fill_memory="fill-memory",
        echo_server="echo-server 7000",
    ),
    Subject(name="jail", open=_jail, missing=_jail_missing, template=_base),
    Subject(
        name="container",
        open=lambda: _oci("container"),
        missing=lambda: _oci_missing("container"),
        template=_base,
    ),
    Subject(
        name="gvisor",
        open=lambda: _oci("gvisor"),
        missing=lambda: _oci_missing("gvisor"),
        template=_base,
        memory_ends="sandbox",  # its programs' memory is its kernel's, which is one process of the host's
    ),
)
