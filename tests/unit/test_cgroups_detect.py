"""Finding the groups this machine gives us, and never touching one that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.domain.errors import SandboxRefused
from ringfence.runtimes.jail.cgroups.detect import LEAF, Mounts, detect, mounts_in
from tests.support.cgroups import directories

HYBRID = """\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_a_hybrid_machine_shows_every_hierarchy() -> None:
    """Controllers mounted together share a place; named hierarchies without a controller are not ours."""
    top = Path("/sys/fs/cgroup")
    together = top / "cpu,cpuacct"
    v1 = {"cpu": together, "cpuacct": together, "memory": top / "memory", "pids": top / "pids"}
    assert mounts_in(HYBRID) == Mounts(v1, top / "unified")


def test_a_pure_machine_shows_one_hierarchy() -> None:
    """The first mount counts: others are views of it for somebody else."""
    line = "35 30 0:31 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    found = mounts_in(line.format("/sys/fs/cgroup") + line.format("/run/other"))
    assert found == Mounts({}, Path("/sys/fs/cgroup"))


def test_a_mount_point_with_a_space_is_read_right() -> None:
    """The kernel writes such characters as octal escapes."""
    assert mounts_in("35 30 0:31 / /a\\040b rw - cgroup2 cgroup2 rw\n").v2 == Path("/a b")


def test_no_hierarchy_is_no_error() -> None:
    """A machine without groups has an empty answer."""
    assert mounts_in("24 1 254:0 / / rw - ext4 /dev/vda rw\n") == Mounts({}, None)


def test_an_instance_cannot_lead_elsewhere() -> None:
    """The instance's name, too, is exactly one directory."""
    with pytest.raises(SandboxRefused, match="cannot name"):
        detect("../elsewhere", root=True)


# -- from a process of its own, since finding a delegated group moves the process -------------------------------------

LOOK = """
import json, os, sys
from pathlib import Path
from ringfence.domain.limits import Limits
from ringfence.runtimes.jail.cgroups.detect import detect
instance, join, uid = sys.argv[1:]
if join: Path(join, "cgroup.procs").write_text(str(os.getpid()))
os.setpgid(0, 0)
if uid != "0": os.setgid(int(uid)); os.setuid(int(uid))
groups = detect(instance, root=uid == "0")
seen = {"kind": groups.kind, "enforces": sorted(groups.enforces), "missing": groups.missing}
seen["own"] = Path("/proc/self/cgroup").read_text().splitlines()[-1].removeprefix("0::")
if groups.enforces:
    groups.create("s1", Limits())
    child = os.fork()
    if not child:
        while True: pass
    groups.attach("s1", child)
    seen["in"] = Path(f"/proc/{child}/cgroup").read_text().splitlines()[-1].removeprefix("0::")
    seen["limited"] = groups.usage("s1").processes
    assert groups.remove("s1", 10)
    os.waitpid(child, 0)
groups.close()
print(json.dumps(seen))
"""


def look(join: Path | None = None, uid: int = 0) -> dict[str, Any]:
    """What a process started in the group `join`, as this user, finds; it must leave nothing behind."""
    instance = f"look-{uuid.uuid4().hex[:8]}"
    path = ":".join(str(Path(each).resolve()) for each in sys.path if each)
    command = [sys.executable, "-c", LOOK, instance, str(join or ""), str(uid)]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert directories(instance) == set()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def unit() -> Iterator[Path]:
    """A group as systemd makes one for a service; skips where there is no v2 with controllers, or no root."""
    if os.geteuid():
        pytest.skip("making a group needs root")
    top = mounts_in(Path("/proc/self/mountinfo").read_text()).v2
    if top is None or "memory" not in (top / "cgroup.controllers").read_text():
        pytest.skip("the controllers of this machine are not in v2")
    (top / "cgroup.subtree_control").write_text("+memory +cpu +pids")
    made = top / f"unit-{uuid.uuid4().hex[:8]}.service"
    made.mkdir()
    yield made
    for left in (made / LEAF, made):
        if left.exists():
            left.rmdir()


def give(unit: Path, uid: int) -> None:
    """Hand the group over, as systemd does for a user's own units."""
    for path in (unit, unit / "cgroup.procs", unit / "cgroup.subtree_control", unit / "cgroup.threads"):
        os.chown(path, uid, uid)


ALL = ["cpu", "memory", "pids"]
SOMEBODY = 12345


def test_a_delegated_service_uses_its_own_group(unit: Path) -> None:
    """Root in a unit with Delegate=yes stays below it, after moving its own processes to a leaf."""
    os.setxattr(unit, "trusted.delegate", b"1")
    seen = look(unit)
    assert (seen["kind"], seen["enforces"], seen["missing"], seen["limited"]) == ("cgroup v2", ALL, {}, 1)
    assert seen["own"] == f"/{unit.name}/{LEAF}"
    assert seen["in"].startswith(f"/{unit.name}/ringfence/")


def test_root_outside_a_delegated_unit_uses_the_top(unit: Path) -> None:
    """A unit that systemd keeps for itself is not divided; nor is our process moved."""
    seen = look(unit)
    assert (seen["enforces"], seen["own"]) == (ALL, f"/{unit.name}")
    assert seen["in"].startswith("/ringfence/look-")


def test_a_user_with_a_delegated_group_has_all_limits(unit: Path) -> None:
    """Without root the same holds below a group that was handed to the user."""
    give(unit, SOMEBODY)
    os.setxattr(unit, "trusted.delegate", b"1")
    seen = look(unit, SOMEBODY)
    assert (seen["kind"], seen["enforces"], seen["limited"]) == ("cgroup v2", ALL, 1)
    assert seen["own"] == f"/{unit.name}/{LEAF}"


def test_a_user_alone_in_a_group_of_its_own_needs_no_mark(unit: Path) -> None:
    """Older user managers cannot mark what they hand over; a group with only our own job in it is ours."""
    give(unit, SOMEBODY)
    assert look(unit, SOMEBODY)["enforces"] == ALL


def test_a_group_shared_with_strangers_is_left_alone(unit: Path) -> None:
    """We would have to move processes that are not ours: the limits are missing instead, and it says what to do."""
    give(unit, SOMEBODY)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (unit / "cgroup.procs").write_text(str(stranger.pid))
        seen = look(unit, SOMEBODY)
    finally:
        stranger.kill()
        stranger.wait()
    assert seen["kind"] == "rlimits"
    assert "not ours alone" in seen["missing"]["memory"]
    assert "systemd-run --user --scope -p Delegate=yes" in seen["missing"]["memory"]
    assert seen["own"] == f"/{unit.name}"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_a_user_without_a_group_has_rlimits_and_reasons() -> None:
    """The weaker kind is never taken in silence: each limit that is missing has a reason."""
    seen = look(uid=SOMEBODY)
    assert (seen["kind"], seen["enforces"]) == ("rlimits", [])
    assert seen["missing"].keys() == set(ALL)
    assert "cgroup v1: " in seen["missing"]["cpu"]
    assert "cgroup v2: " in seen["missing"]["cpu"]
