"""The attacking programs, as text: each file under probes/ with the shared prelude put in its place."""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

_IMPORT: Final = re.compile(r"^from ringfence\.attack\.probes\.prelude import .*\n", re.MULTILINE)


def text(name: str) -> str:
    """The whole program `name`, ready to be sent into a sandbox."""
    folder = resources.files("ringfence.attack.probes")
    program = (folder / f"{name}.py").read_text()
    prelude = (folder / "prelude.py").read_text()
    return _IMPORT.sub(lambda _: prelude, program, count=1)


def names() -> list[str]:
    """Every program there is, the prelude aside."""
    files = resources.files("ringfence.attack.probes").iterdir()
    found = {file.name.removesuffix(".py") for file in files if file.name.endswith(".py")}
    return sorted(found - {"__init__", "prelude"})
