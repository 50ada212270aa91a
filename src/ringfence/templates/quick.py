"""Let a template's pip start from one file: half of its time under gVisor was spent on opening five hundred."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Final

from ringfence.templates import commands, inside, tree

#: Part of the recipe of every template with wheels: raise it when this makes other files.
VERSION: Final = 1
_TEXTS: Final = importlib.resources.files("ringfence.templates")
FINDER: Final = _TEXTS / "quick.txt"
COLLECTOR: Final = _TEXTS / "collect.txt"
_HOOK: Final = "\nfrom pip import _quick as _quick  # by ringfence: see there\n"


def add(packages: Path) -> bool:
    """Give the pip in `packages`, if there is one, the module that looks into the one file; returns whether it did.

    To be called before anything of the wheels has run: these files are written by the host.
    """
    package = packages / "pip"
    if not (package / "__init__.py").is_file():
        return False
    text = (package / "__init__.py").read_text("utf-8")
    for name, content in (("__init__.py", text + _HOOK), ("_quick.py", FINDER.read_text("utf-8"))):
        tree.remove(packages, f"pip/{name}")  # a file that another template shares is not written to
        (package / name).write_text(content, "utf-8")
    for record in packages.glob("pip-*.dist-info/RECORD"):
        kept = [line for line in record.read_text("utf-8").splitlines() if not line.startswith("pip/__init__.py,")]
        added = (f"pip/{name},," for name in ("__init__.py", "_quick.py", "_quick.bin"))
        record.write_text("\n".join([*kept, *added]) + "\n", "utf-8")
    return True


def collect(root: Path) -> str:
    """Have the template's own Python write that file. Returns why it could not; then pip starts as it always did."""
    try:
        inside.run_python(root, ["-c", COLLECTOR.read_text("utf-8")])
    except commands.CommandError as failed:
        return failed.last_words()
    return ""
