"""The builder at work: over a copy of the real `base`, with a wheel made here, through the host's own pip."""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import config
from ringfence.domain.errors import BadRequest, Conflict, PlatformFault
from ringfence.domain.template import Template
from ringfence.templates import inside, tree
from ringfence.templates.build import build, prune, verify
from ringfence.templates.catalog import Built, Catalog, recipe_named
from ringfence.templates.progress import Progress
from ringfence.templates.wheels import PACKAGES

WHEEL = "ringfence_sample-1.0-py3-none-any.whl"
FILES = {
    "ringfence_sample/__init__.py": "WORDS = {'alpha', 'beta', 'gamma'}\n\ndef main():\n    print('sampled')\n",
    "ringfence_sample/tests/test_it.py": "this is no Python\n",
    "ringfence_sample-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ringfence-sample\nVersion: 1.0\n",
    "ringfence_sample-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "ringfence_sample-1.0.dist-info/entry_points.txt": "[console_scripts]\nsample = ringfence_sample:main\n",
}
BASE = recipe_named("base")
# With the packages of `base`, so that its files are shared: a second bootstrap of Debian would show nothing more.
SAMPLE = Template(name="sample", debian=BASE.debian, wheels=("ringfence-sample",))
FONTS_IN_A_FRESH_HOME = """
import logging, os, shutil
logging.basicConfig(level=logging.INFO)  # Matplotlib tells at this level when it has to search for fonts
os.environ["HOME"] = "/tmp/home"
shutil.copytree("/etc/skel", "/tmp/home", symlinks=True)
import matplotlib.pyplot as plot
plot.plot([1, 2])
plot.savefig("/tmp/plot.png")
print("plotted", os.path.getsize("/tmp/plot.png") > 1000)
"""
RIGHTS_OF_A_JOB = """
import ctypes, os, socket
print(*(name for _, name in socket.if_nameindex()))
for act in (
    lambda: open("/etc/mine", "w"),
    lambda: os.chroot("/"),
    lambda: os.setgroups([0]),
    lambda: socket.create_connection(("127.0.0.1", 80), timeout=5),
):
    try:
        print("allowed", act())
    except OSError:
        print("refused")
print("no new privileges:", ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))
"""


def _quiet(_progress: Progress) -> None:
    """Progress is for people."""


def _write_wheel(folder: Path) -> None:
    record = ""
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        wheel.writestr("ringfence_sample-1.0.dist-info/RECORD", record)


@pytest.fixture(scope="module")
def built() -> dict[str, Built]:
    """The templates that `make setup` built on this machine."""
    return Catalog(config.read_server().templates_dir).load()


@pytest.fixture(scope="module")
def workshop(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A templates directory with a copy of `base`, and a pip that knows only the wheel made here."""
    directory, wheels = tmp_path_factory.mktemp("templates"), tmp_path_factory.mktemp("wheels")
    _write_wheel(wheels)
    base = built["base"]
    subprocess.run(["cp", "-a", base.root.parent, directory / base.digest], check=True)
    Catalog(directory).record(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        patch.setenv("PIP_NO_INDEX", "1")
        yield directory
    tree.remove_tree(directory)


@pytest.fixture(scope="module")
def sample(workshop: Path) -> Built:
    """The sample wheel's template, built once for this module."""
    return build(SAMPLE, workshop, _quiet)


def _leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("building-*")]


@pytest.mark.parametrize("name", ["base", "python"])
def test_a_builtin_root_holds_no_device_no_set_id_file_and_no_capability(built: dict[str, Built], name: str) -> None:
    """Only folders, plain files and links; nothing a stranger may write but the two shared folders."""
    shared = {"tmp", "var/tmp"}
    for entry in tree.walk(built[name].root):
        info = entry.stat(follow_symlinks=False)
        path = os.path.relpath(entry.path, built[name].root)
        assert stat.S_IFMT(info.st_mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}, path
        assert stat.S_ISLNK(info.st_mode) or not info.st_mode & 0o7022 or path in shared, path
        assert info.st_uid == os.geteuid(), path
        assert "security.capability" not in os.listxattr(entry.path, follow_symlinks=False), path


def test_a_builtin_root_is_furnished(built: dict[str, Built]) -> None:
    """It knows its user, its name and its mount points, and keeps nothing of the machine it was built on."""
    root = built["base"].root
    assert "user:x:1000:1000:user:/home/user:/bin/bash" in (root / "etc/passwd").read_text().splitlines()
    assert (root / "etc/hostname").read_text() == "sandbox\n"
    assert (root / "etc/resolv.conf").read_text() == (root / "etc/machine-id").read_text() == ""
    for name in ("dev", "home/user", "mnt", "proc", "root", "run", "sys", "tmp", "var/cache", "var/log", "var/tmp"):
        assert list((root / name).iterdir()) == [], name
    for name in ("bash", "sh", "awk", "find", "grep", "gzip", "less", "ls", "python3", "sed", "tar"):
        assert os.path.lexists(root / "usr/bin" / name), name


@pytest.mark.parametrize("name", ["base", "python"])
def test_the_builtin_roots_are_what_was_built(built: dict[str, Built], name: str) -> None:
    """Every byte of them still matches the manifest that names them."""
    assert verify(built[name]) == []


def test_python_plots_at_once_and_without_a_word(built: dict[str, Built]) -> None:
    """The font list is found through the skeleton, so Matplotlib neither searches fonts nor warns."""
    said: list[str] = []
    inside.run_python(built["python"].root, ["-W", "error", "-c", FONTS_IN_A_FRESH_HOME], said.append)
    assert said == ["plotted True"]


def test_python_trusts_one_store_of_authorities(built: dict[str, Built]) -> None:
    """requests and curl's like believe the same certificates: the root's own."""
    bundle = built["python"].root / PACKAGES / "certifi/cacert.pem"
    assert os.readlink(bundle) == "/etc/ssl/certs/ca-certificates.crt"
    assert "BEGIN CERTIFICATE" in (built["python"].root / "etc/ssl/certs/ca-certificates.crt").read_text()


def test_python_shares_the_files_of_base(built: dict[str, Built]) -> None:
    """One copy of bash on disk and in memory serves both."""
    shells = [(built[name].root / "usr/bin/bash").stat() for name in ("base", "python")]
    assert shells[0].st_ino == shells[1].st_ino


def test_a_wheel_is_installed_compiled_and_runs_only_inside(sample: Built) -> None:
    """Its script points at the sandbox's Python, its modules at no source, and its file list at no host path."""
    packages = sample.root / PACKAGES
    assert (sample.root / "usr/local/bin/sample").read_text().startswith("#!/usr/bin/python3\n")
    compiled = (packages / "ringfence_sample/__pycache__/__init__.cpython-313.pyc").read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 1, "hash-based and never checked"
    assert not (packages / "ringfence_sample/tests/__pycache__").exists()
    assert "../" not in (packages / "ringfence_sample-1.0.dist-info/RECORD").read_text()
    said: list[str] = []
    inside.run_python(sample.root, ["/usr/local/bin/sample"], said.append)
    assert said == ["sampled"]


def test_a_job_inside_a_root_has_no_rights_and_no_network(sample: Built) -> None:
    """Downloaded code that runs while a root is built may do nothing but compute."""
    said: list[str] = []
    inside.run_python(sample.root, ["-c", RIGHTS_OF_A_JOB], said.append)
    assert said == ["lo", "refused", "refused", "refused", "refused", "no new privileges: 1"]


def test_an_equal_recipe_is_not_built_again_and_takes_new_limits(sample: Built, workshop: Path) -> None:
    """A template that differs only in what applies at start shares the root of the other."""
    told: list[Progress] = []
    twin = build(dataclasses.replace(SAMPLE, name="twin", description="the same"), workshop, told.append)
    assert (twin.digest, twin.built_at) == (sample.digest, sample.built_at)
    assert [step.stage for step in told] == ["done"]
    assert Catalog(workshop).read("twin").template.description == "the same"


def test_building_again_from_the_same_packages_gives_the_same_digest(sample: Built, workshop: Path) -> None:
    """Nothing of the time, the process or the order of hashing gets into a root."""
    assert build(SAMPLE, workshop, _quiet, rebuild=True).digest == sample.digest
    assert _leftovers(workshop) == []


def test_a_wheel_that_does_not_exist_is_refused_by_name(workshop: Path) -> None:
    """The author of the template reads which name is wrong; nothing stays behind."""
    with pytest.raises(BadRequest, match="no-such-wheel") as caught:
        build(dataclasses.replace(SAMPLE, name="wrong", wheels=("no-such-wheel",)), workshop, _quiet)
    assert caught.value.code == "wheel_not_found"
    assert _leftovers(workshop) == []
    assert "wrong" not in Catalog(workshop).load()


def test_verifying_names_a_changed_byte_and_a_forged_manifest(sample: Built, workshop: Path) -> None:
    """Neither the root nor its list can be altered unnoticed."""
    copy = workshop / "copy"
    copy.mkdir()
    tree.share(sample.root, copy / "root")
    shutil.copy(sample.root.parent / "manifest", copy)
    name = f"{PACKAGES}/ringfence_sample/__init__.py"
    text = (sample.root / name).read_text()
    (copy / "root" / name).unlink()
    (copy / "root" / name).write_text(text.replace("alpha", "alphb"))
    altered = dataclasses.replace(sample, root=copy / "root")
    assert verify(altered) == [name]
    (copy / "manifest").write_text(tree.manifest_text(tree.manifest(copy / "root")))
    assert verify(altered) == ["manifest"]
    tree.remove_tree(copy)


def test_building_again_heals_a_damaged_root(sample: Built, workshop: Path) -> None:
    """The damaged root is put aside whole, for sandboxes that still run on it, until it is pruned."""
    module = sample.root / PACKAGES / "ringfence_sample/__init__.py"
    module.write_text("damaged")
    assert build(SAMPLE, workshop, _quiet, rebuild=True).digest == sample.digest
    assert verify(sample) == []
    assert prune(workshop, _quiet) == [f"{sample.digest}.damaged"]


def test_a_killed_build_leaves_nothing_once_the_next_one_ran(workshop: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: the next build sweeps its folder, and no process of it lives on."""
    recipe = tmp_path / "killed.toml"
    recipe.write_text(f'name = "killed"\ndebian = {json.dumps(BASE.debian)}\nwheels = ["ringfence-sample==1.0"]\n')
    argv = [sys.executable, "-m", "ringfence.templates.build", "--templates", str(workshop), str(recipe)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as builder:
        while not list(workshop.glob("building-*/scratch")):
            time.sleep(0.01)
        builder.send_signal(signal.SIGKILL)
    assert _leftovers(workshop) == [f"building-{builder.pid}"]
    built = build(recipe_named(str(recipe)), workshop, _quiet)
    assert _leftovers(workshop) == []
    assert verify(built) == []


def test_two_builders_do_not_collide(workshop: Path) -> None:
    """The second waits for the first, says so, and gives up after its deadline with a word about why."""
    told: list[Progress] = []
    with open(workshop / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict) as caught:
            build(SAMPLE, workshop, told.append, lock_seconds=0.2)
    assert caught.value.code == "build_in_progress"
    assert [step.stage for step in told] == ["lock"]


def test_a_small_disk_is_refused_before_anything_is_fetched(built: dict[str, Built], tmp_path: Path) -> None:
    """On a file system of a few MiB the builder says how much it needs, and leaves it empty."""
    small = tmp_path / "small"
    small.mkdir()
    script = (
        'mount -t tmpfs -o size=8m none "$1" && "$2" -m ringfence.templates.build --templates "$1/t" base; ls "$1/t"'
    )
    fenced = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(small), sys.executable]
    done = subprocess.run(fenced, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("no_space: "), done.stderr
    assert done.stdout == ""


def test_pruning_removes_only_roots_that_no_template_names(sample: Built, workshop: Path) -> None:
    """A root survives as long as one name leads to it."""
    spare = workshop / ("b" * 64)
    (spare / "root").mkdir(parents=True)
    assert prune(workshop, _quiet) == [spare.name]
    assert sample.root.is_dir()


def test_a_failing_report_stops_the_build_and_leaves_nothing(workshop: Path) -> None:
    """An interrupt from whoever watches ends the work at once."""

    def interrupted(progress: Progress) -> None:
        if progress.stage == "wheels":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(SAMPLE, workshop, interrupted, rebuild=True)
    assert _leftovers(workshop) == []


def test_a_root_that_vanished_is_no_base_for_another(workshop: Path, built: dict[str, Built]) -> None:
    """An index entry without its root is refused at start, with the way to repair it."""
    catalog = Catalog(workshop)
    lost = built["base"]
    catalog.record(Built(Template(name="lost"), "c" * 64, lost.root, 1, 1.0, lost.recipe))
    with pytest.raises(PlatformFault, match="lost"):
        catalog.load()
    (catalog.index / "lost.json").unlink()
