"""Our own code comes compiled into zygotes; whatever is wrong with that, a zygote starts all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.runtimes.jail.cgroups.detect import detect
from ringfence.runtimes.jail.launcher import CODE
from ringfence.runtimes.jail.runtime import Jail
from ringfence.runtimes.oci.carried import Carried
from tests.support import ledger
from tests.support.guestharness import Host
from tests.support.subjects import SUBJECTS, TEMPLATES

JAIL = next(subject for subject in SUBJECTS if subject.name == "jail")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(JAIL.missing()), reason=JAIL.missing() or "-"),
    pytest.mark.skipif(os.geteuid() != 0, reason="what is brought along is made by root"),
]


def untouched(_: Path) -> None:
    """As it was made."""


def cut(place: Path) -> None:
    """Files of which a part is missing."""
    for file in place.iterdir():
        file.write_bytes(file.read_bytes()[:100])


def emptied(place: Path) -> None:
    """Files with nothing in them."""
    for file in place.iterdir():
        file.write_bytes(b"")


def of_another_python(place: Path) -> None:
    """Files that another version would read, and a magic number that no version has."""
    for file in place.iterdir():
        file.write_bytes(b"\0\0\r\n" + file.read_bytes()[4:])


def without_one(place: Path) -> None:
    """One of them was not made."""
    next(place.glob("agent.*.pyc")).unlink()


def away(place: Path) -> None:
    """The directory is gone."""
    shutil.rmtree(place)


def inside(pid: int) -> dict[str, bytes]:
    """What lies compiled in a zygote."""
    return contents(Path(f"/proc/{pid}/root{CODE}/ringfence/guest/__pycache__"))


def contents(place: Path) -> dict[str, bytes]:
    """All files of a directory."""
    return {file.name: file.read_bytes() for file in place.iterdir()}


async def started(compiled: Callable[[], Path | None]) -> tuple[dict[str, bytes], bytes]:
    """What lies compiled in a zygote, and what a program in a fork of it says."""
    jail = Jail(detect(f"test-{uuid.uuid4().hex[:12]}", root=True), privileged=True, compiled=compiled)
    try:
        box = await jail.start(JAIL.spec())
        box.channel.setblocking(True)
        reply = Host(box.channel).open("run", code="print(6 * 7)")
        reply.answer()
        (zygote,) = jail._zygotes.values()
        pid = next(pid for pid in ledger.pids() if ledger.parent_of(pid) == zygote.launcher_pid)
        return inside(pid), bytes(reply.out)
    finally:
        await jail.close()


async def test_a_zygote_loads_what_was_compiled_before() -> None:
    """The files that were made once are those that its interpreter finds: it writes none of its own."""
    carried = Carried(TEMPLATES)
    carried.tree()
    place = carried.compiled()
    assert place is not None
    found, said = await started(carried.compiled)
    assert found == contents(place)
    assert said == b"42\n"


async def test_without_any_a_zygote_compiles_for_itself() -> None:
    """As an ordinary user, or before the first tree is made, every zygote starts from the sources."""
    found, said = await started(lambda: None)
    assert any(name.startswith("zygote.") for name in found)
    assert said == b"42\n"


@pytest.mark.parametrize("damage", [untouched, cut, emptied, of_another_python, without_one, away])
async def test_whatever_became_of_them_a_zygote_starts(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Compiled files that are damaged, missing or another version's cost time and nothing else."""
    carried = Carried(TEMPLATES)
    carried.tree()
    place = carried.compiled()
    assert place is not None
    copy = Path(shutil.copytree(place, tmp_path / "compiled"))
    damage(copy)
    assert (await started(lambda: copy))[1] == b"42\n"


def test_nothing_is_made_by_asking_for_it(tmp_path: Path) -> None:
    """Without a tree, or without templates at all, there are no compiled files, and none appear."""
    assert Carried(tmp_path).compiled() is None
    shutil.copytree(TEMPLATES / "index", tmp_path / "index")
    assert Carried(tmp_path).compiled() is None
    assert not (tmp_path / "carried").exists()


@pytest.mark.parametrize("launcher", ["jail", "oci"])
def test_a_launcher_imports_little(launcher: str) -> None:
    """Each start of a sandbox waits for its launcher's imports: neither the agent nor typing is among them."""
    asked = f"import sys, ringfence.runtimes.{launcher}.launcher as _; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert not {"typing", "asyncio", "ringfence.guest.agent", "ringfence.guest.zygote"} & set(done.stdout.split())
