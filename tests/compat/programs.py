"""The programs that are compared, from four sources; each is one piece of source code with its arguments."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.test_runtime_python import ROWS

HERE = Path(__file__).parent
MODULES = HERE / "modules.txt"
STDLIB_MAIN = HERE / "stdlib_main.py"
HELPER = "X = 42\n"
WHOLE = HERE.parent / "support" / "ordinary.py"


@dataclass(frozen=True)
class Program:
    """Source code, and what it is started with."""

    name: str
    code: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    template: str = "compat"

    @property
    def lines_are_tests(self) -> bool:
        """Whether its output is compared test by test."""
        return self.name.startswith("test.")

    def digest(self) -> str:
        """Names this exact program in the file of results."""
        words = [self.name, self.code, self.args, self.env, self.files, self.template]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def modules() -> list[str]:
    """The chosen test modules of the standard library."""
    lines = MODULES.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def of_module(name: str) -> Program:
    """One test module as a program."""
    return Program(name, STDLIB_MAIN.read_text(), (name,))


def rows(template: str) -> list[Program]:
    """What the conformance suite runs, here against a real `python3 FILE`."""
    return [
        Program(
            f"row: {name}",
            row.code,
            tuple(row.fields.get("argv", ())),
            tuple(row.fields.get("env", {}).items()),
            (("helper.py", HELPER),),
            template,
        )
        for name, row in ROWS.items()
    ]


def ordinary(template: str) -> list[Program]:
    """Small programs as people write them, and the one that the attack suite runs to see that all is well."""
    paths = [*sorted((HERE / "ordinary").glob("*.py")), WHOLE]
    return [
        Program(f"program: {path.stem if path != WHOLE else 'all sorts'}", path.read_text(), template=template)
        for path in paths
    ]


def everything() -> list[Program]:
    """All of them, on the template that has the standard library's tests."""
    return [*rows("compat"), *ordinary("compat"), *map(of_module, modules())]


def left_out() -> list[tuple[str, str]]:
    """Test modules that were not chosen, and why."""
    lines = (line.removeprefix("# ") for line in MODULES.read_text().splitlines() if line.startswith("# test."))
    return [(name, why) for name, _, why in (line.partition(": ") for line in lines)]
