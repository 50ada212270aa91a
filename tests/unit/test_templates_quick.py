"""pip from one file: the same modules, found where the path would find them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.templates import quick

#: How many modules come from the one file, how many of pip's do not, and that a module still knows its source.
COUNT = """
import sys, inspect, pip._internal.cli.main
from pip._internal.commands import create_command
create_command("install")
specs = [(m, getattr(m, "__spec__", None)) for m in sys.modules.values()]
quick = [m for m, spec in specs if type(spec and spec.loader).__name__ == "Loader"]
own = [m for m, spec in specs if type(spec and spec.loader).__name__ == "SourceFileLoader" and m.__name__[:4] == "pip."]
print(len(quick) > 200, len(own) < 10, all(inspect.getsourcefile(m) == m.__file__ == m.__spec__.origin for m in quick))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a pip that was made quick, as a template's build does it."""
    made = tmp_path_factory.mktemp("packages")
    there = importlib.util.find_spec("pip")
    assert there is not None
    assert there.submodule_search_locations
    shutil.copytree(next(iter(there.submodule_search_locations)), made / "pip")
    assert quick.add(made)
    how = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([sys.executable, *how, str(made / "pip")], check=True)
    said(made, "-c", quick.COLLECTOR.read_text("utf-8"))
    yield made
    shutil.rmtree(made)


def said(packages: Path, *words: str, before: Path | None = None) -> str:
    """What this Python says when it finds its pip there."""
    path = os.pathsep.join(str(each) for each in (before, packages) if each)
    clean = {"PATH": os.defpath, "PYTHONPATH": path, "PIP_CONFIG_FILE": os.devnull, "HOME": str(packages)}
    return subprocess.run(
        [sys.executable, "-P", "-s", *words], env=clean, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def test_its_modules_come_out_of_one_file_and_know_where_they_lie(packages: Path) -> None:
    """But for the two that look into it, which must be found before, and what a failing installation did not want."""
    assert said(packages, "-c", COUNT) == "True True True"


def test_it_works(packages: Path) -> None:
    """It says its version, and which folder it lies in."""
    assert str(packages / "pip") in said(packages, "-m", "pip", "--version")


def test_a_module_that_comes_earlier_on_the_path_still_wins(packages: Path, tmp_path: Path) -> None:
    """As for anyone who has a configparser.py beside his program."""
    (tmp_path / "configparser.py").write_text("")
    asked = "import pip, configparser, json; print(configparser.__file__, json.__spec__.loader.__class__.__name__)"
    assert said(packages, "-c", asked, before=tmp_path) == f"{tmp_path / 'configparser.py'} Loader"
    assert said(packages, "-c", asked) == said(packages, "-c", asked.replace("pip, ", "")).replace(
        "SourceFileLoader", "Loader"
    )


def test_a_package_that_lies_elsewhere_is_asked_for_its_own_modules(packages: Path, tmp_path: Path) -> None:
    """A module below a package is taken from the file only if the package was."""
    (tmp_path / "json").mkdir()
    (tmp_path / "json/__init__.py").write_text("")
    (tmp_path / "json/decoder.py").write_text("mine = True")
    assert said(packages, "-c", "import pip, json.decoder; print(json.decoder.mine)", before=tmp_path) == "True"


@pytest.mark.parametrize("harm", ["another version", "gone", "optimised"])
def test_where_the_file_does_not_fit_modules_are_imported_from_their_own(
    packages: Path, tmp_path: Path, harm: str
) -> None:
    """Made for another Python, or not there, or not what was asked for."""
    shutil.copytree(packages / "pip", tmp_path / "pip")
    if harm == "gone":
        (tmp_path / "pip/_quick.bin").unlink()
    elif harm == "another version":
        (tmp_path / "pip/_quick.bin").write_bytes(bytes(8))
    words = ["-O"] if harm == "optimised" else []
    assert said(tmp_path, *words, "-c", COUNT).startswith("False")


def test_a_file_shared_with_another_template_is_not_written_to(tmp_path: Path) -> None:
    """Roots share files by hard links. What pip's list of files says of the changed ones is changed with them."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip-1.dist-info").mkdir()
    (tmp_path / "pip/__init__.py").write_text("old = 1\n")
    (tmp_path / "pip-1.dist-info/RECORD").write_text("pip/__init__.py,sha256=x,8\npip/other.py,,\n")
    os.link(tmp_path / "pip/__init__.py", tmp_path / "shared")
    assert quick.add(tmp_path)
    assert (tmp_path / "shared").read_text() == "old = 1\n"
    assert (tmp_path / "pip/__init__.py").read_text().startswith("old = 1\n\nfrom pip import _quick")
    record = (tmp_path / "pip-1.dist-info/RECORD").read_text().splitlines()
    assert record == ["pip/other.py,,", "pip/__init__.py,,", "pip/_quick.py,,", "pip/_quick.bin,,"]


def test_a_template_without_pip_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is made."""
    assert not quick.add(tmp_path)
    assert list(tmp_path.iterdir()) == []
